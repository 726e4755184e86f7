"""A LoRA is applied entirely, at the strength it was trained with, in whichever layout it lies, or it is refused."""

from __future__ import annotations

import json
import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file

from basinguard.core.safetensors_header import read_header
from basinguard.exports.inspect import describe_file
from basinguard.exports.lora_layout import stored_layers
from basinguard.exports.merge import merged
from basinguard.exports.original_layout import unet_names
from basinguard.pipelines.latent_model import LatentModel
from basinguard.pipelines.lora_files import load_lora, require_lora
from support.tiny_pipeline import build_tiny_pipeline, build_tiny_xl

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")


@pytest.fixture(scope="module")
def base():
    return build_tiny_pipeline()


def layers_of(module, ends, seed=0, rank=2, alpha=1.0):
    """Random halves for every layer of a module whose name ends so: path -> down, up, alpha."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name, part in module.named_modules():
        if name.endswith(ends) and isinstance(part, torch.nn.Linear | torch.nn.Conv2d):
            outputs, inputs, *kernel = part.weight.shape
            down = torch.randn(rank, inputs, *kernel, generator=generator)
            layers[name] = down, torch.randn(outputs, rank, *(1 for _ in kernel), generator=generator), alpha
    return layers


def flat(name):
    return name.replace(".", "_")


def kohya(unet, text, te="lora_te"):
    named = {f"lora_unet_{flat(name)}": layer for name, layer in unet.items()}
    named |= {f"{te}_text_model_{flat(name.removeprefix('text_model.'))}": layer for name, layer in text.items()}
    state = {}
    for name, (down, up, alpha) in named.items():
        state |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(alpha)}
    return state


def dotted(unet, text, *, prefixes=("unet.", "text_encoder."), ends=(".lora_A.weight", ".lora_B.weight"), alpha=True):
    """Names with dots; without alphas `up` takes them, as it must where alpha is the rank."""
    state = {}
    for prefix, layers in zip(prefixes, (unet, text), strict=True):
        for name, (down, up, own) in layers.items():
            state[f"{prefix}{name}{ends[0]}"] = down
            state[f"{prefix}{name}{ends[1]}"] = up if alpha else up * own / down.shape[0]
            if alpha:
                state[f"{prefix}{name}.alpha"] = torch.tensor(own)
    return state


def processors(unet, text):
    state = {}
    for name, (down, up, own) in unet.items():
        attention, to = re.fullmatch(r"(.+)\.(to_q|to_k|to_v|to_out)(?:\.0)?", name).groups()
        key = f"unet.{attention}.processor.{to}_lora"
        state |= {f"{key}.down.weight": down, f"{key}.up.weight": up * own / down.shape[0]}
    ends = (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")
    return state | dotted({}, text, ends=ends, alpha=False)


def as_original(unet, text, prefixes):
    """Names of the UNet's layers as in the authors' single files."""
    names = unet_names(build_tiny_pipeline().unet)
    renamed = {names[f"{name}.weight"].removesuffix(".weight"): layer for name, layer in unet.items()}
    return dotted(renamed, text, prefixes=prefixes, ends=(".lora_down.weight", ".lora_up.weight"))


LAYOUTS = {
    "sd-scripts": kohya,
    "OneTrainer, older": lambda unet, text: kohya(unet, text, "lora_te1"),
    "OneTrainer's own": lambda unet, text: dotted(unet, text, ends=(".lora_down.weight", ".lora_up.weight")),
    "diffusers": lambda unet, text: dotted(unet, text, alpha=False),
    "an adapter's name in it": lambda unet, text: dotted(
        unet, text, ends=(".lora_A.default_0.weight", ".lora_B.default_0.weight"), alpha=False
    ),
    "SimpleTuner for ComfyUI": lambda unet, text: dotted(unet, text, prefixes=("diffusion_model.", "text_encoder.")),
    "ai-toolkit's in peft's names": lambda unet, text: dotted(unet, text, prefixes=("unet.", "lora_te."), alpha=False),
    "peft": lambda unet, text: dotted(
        unet, text, prefixes=("base_model.model.unet.", "base_model.model.text_encoder."), alpha=False
    ),
    "no prefix": lambda unet, text: dotted(unet, text, prefixes=("", ""), alpha=False),
    "diffusers 0.15": processors,
    "diffusers 0.17": lambda unet, text: dotted(unet, text, ends=(".lora.down.weight", ".lora.up.weight"), alpha=False),
    "OneTrainer's Original": lambda unet, text: as_original(unet, text, ("", "text_encoder.")),
    "OneTrainer's Comfy": lambda unet, text: as_original(
        unet, text, ("diffusion_model.", "text_encoders.clip_h.transformer.")
    ),
    "LyCORIS": lambda unet, text: {k.replace("lora_unet_", "lycoris_"): v for k, v in kohya(unet, text).items()},
}


def deltas(module):
    """What the adapter adds to each layer's weight, by the layer's name."""
    layers = {name: layer for name, layer in module.named_modules() if "default" in getattr(layer, "lora_A", {})}
    return {name: layer.get_delta_weight("default") for name, layer in layers.items()}


def meant(layers):
    """alpha / rank * up @ down, in the shape of the layer's weight."""
    return {
        name: (up.float().flatten(1) @ down.float().flatten(1) * alpha / len(down)).reshape(len(up), *down.shape[1:])
        for name, (down, up, alpha) in layers.items()
    }


def require_same(ours, right):
    assert ours.keys() == right.keys()
    for name, delta in right.items():
        torch.testing.assert_close(ours[name], delta, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_applied_entirely(tmp_path, layout):
    pipe, path = build_tiny_pipeline(), tmp_path / "lora.safetensors"
    unet, text = layers_of(pipe.unet, ATTENTION), layers_of(pipe.text_encoder, TEXT, seed=1, rank=3)
    save_file({k: v.contiguous() for k, v in LAYOUTS[layout](unet, text).items()}, path)
    assert len(stored_layers(path, read_header(path))) == len(unet) + len(text)
    state = torch.random.get_rng_state()
    load_lora(pipe, path)
    assert torch.equal(torch.random.get_rng_state(), state)
    require_same(deltas(pipe.unet), meant(unet))
    require_same(deltas(pipe.text_encoder), meant(text))
    assert not any(p.requires_grad for part in (pipe.unet, pipe.text_encoder) for p in part.parameters())


PARTIAL = {
    "text encoder alone": (lambda pipe: ({}, layers_of(pipe.text_encoder, TEXT))),
    "text encoder without out_proj": (
        lambda pipe: (layers_of(pipe.unet, ATTENTION), layers_of(pipe.text_encoder, TEXT[:3]))
    ),
    "feed-forward and projections": (lambda pipe: (layers_of(pipe.unet, ("proj_in", "proj", "net.2")), {})),
    "LoCon": (lambda pipe: (layers_of(pipe.unet, ("conv1", "conv2", "conv_shortcut", "to_q")), {})),
    "mixed alphas and ranks": (
        lambda pipe: (layers_of(pipe.unet, ("to_q",), alpha=4.0) | layers_of(pipe.unet, ("to_v",), rank=5), {})
    ),
}


@pytest.mark.parametrize("layers", PARTIAL)
@pytest.mark.parametrize("layout", ["sd-scripts", "diffusers"])
def test_whichever_layers_were_trained(tmp_path, layers, layout):
    pipe, path = build_tiny_pipeline(), tmp_path / "lora.safetensors"
    unet, text = PARTIAL[layers](pipe)
    save_file(LAYOUTS[layout](unet, text), path)
    load_lora(pipe, path)
    require_same(deltas(pipe.unet), meant(unet))
    require_same(deltas(pipe.text_encoder), meant(text))
    assert torch.isfinite(merged(pipe).unet.conv_in.weight).all()


def test_projections_stored_as_convolutions_are_the_same(tmp_path, base):
    """sd-scripts trains Stable Diffusion 2 with its projections as 1 x 1 convolutions; here they are linear."""
    pipe, path = build_tiny_pipeline(), tmp_path / "lora.safetensors"
    unet = layers_of(pipe.unet, ("proj_in", "proj_out"))
    wide = {name: (down[..., None, None], up[..., None, None], alpha) for name, (down, up, alpha) in unet.items()}
    assert next(iter(wide.values()))[0].ndim == 4
    save_file(kohya(wide, {}), path)
    load_lora(pipe, path)
    require_same(deltas(pipe.unet), meant(unet))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16])
def test_narrow_weights_are_rescaled_in_float32(tmp_path, dtype):
    pipe, path = build_tiny_pipeline(), tmp_path / "lora.safetensors"
    unet = layers_of(pipe.unet, ("to_q",), alpha=0.3) | layers_of(pipe.unet, ("to_k",), alpha=1.7)
    narrow = {name: (down.to(dtype), up.to(dtype), alpha) for name, (down, up, alpha) in unet.items()}
    save_file(kohya(narrow, {}), path)
    load_lora(pipe, path)
    require_same(deltas(pipe.unet), meant(narrow))


def test_what_peft_itself_saves_is_read_with_its_alpha(tmp_path):
    trained, pipe = build_tiny_pipeline(), build_tiny_pipeline()
    model = get_peft_model(
        trained.unet,
        LoraConfig(r=4, lora_alpha=16, use_rslora=True, target_modules=["to_q", "to_k"], init_lora_weights=False),
    )
    model.save_pretrained(tmp_path)
    load_lora(pipe, tmp_path / "adapter_model.safetensors")
    require_same(deltas(pipe.unet), {name.removeprefix("base_model.model."): d for name, d in deltas(model).items()})


def test_what_diffusers_saves_for_a_bare_unet_is_read_with_its_alpha(tmp_path):
    trained, pipe = build_tiny_pipeline(), build_tiny_pipeline()
    trained.unet.add_adapter(
        LoraConfig(
            r=4, lora_alpha=2, alpha_pattern={"to_q": 6}, target_modules=["to_q", "to_k"], init_lora_weights=False
        )
    )
    trained.unet.save_lora_adapter(tmp_path)
    load_lora(pipe, tmp_path / "pytorch_lora_weights.safetensors")
    require_same(deltas(pipe.unet), deltas(trained.unet))


KEY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
OTHERS = {
    "DoRA of ai-toolkit": {f"{KEY}.lora_down.weight": (2, 32), f"{KEY}.magnitude": (32,)},
    "OFT": {f"{KEY}.oft_blocks": (2, 2, 2)},
    "IA3 of peft": {"base_model.model.x.ia3_l": (1, 32)},
    "norms": {f"{KEY}.w_norm": (32,), f"{KEY}.b_norm": (32,)},
    "differences": {f"{KEY}.diff": (32, 32)},
    "embeddings": {"bundle_emb.sks.clip_l": (1, 32), f"{KEY}.lora_down.weight": (2, 32)},
    "no part of a LoRA": {
        f"{KEY}.lora_down.weight": (2, 32), f"{KEY}.lora_up.weight": (32, 2), "unet.conv_in.weight": (3,)
    },
    "half": {f"{KEY}.lora_down.weight": (2, 32)},
    "biases": {f"{KEY}.lora_down.weight": (2, 32), f"{KEY}.lora_up.weight": (32, 2), f"{KEY}.lora_up.bias": (32,)},
    "do not fit": {f"{KEY}.lora_down.weight": (2, 32), f"{KEY}.lora_up.weight": (32, 3)},
    "2 adapters": {
        f"unet.x.lora_{half}.{name}.weight": (2, 2) for half in "AB" for name in ("first", "second")
    },
    "third text encoder": {"lora_te3_text_model_x.lora_down.weight": (2, 2)},
    "transformer": {"transformer.blocks.0.attn.to_q.lora_A.weight": (2, 2)},
    r"kohya's names for a transformer \(SD 3.*'lora_unet_joint_blocks_0.*read in diffusers' format": {
        f"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_{half}.weight": (2, 2) for half in ("down", "up")
    },
    "kohya's names for a transformer .*'lora_unet_double_blocks_0": {
        "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (2, 2), "lora_te3_x.lora_down.weight": (2, 2)
    },
    "only lokr_w1, a half or less of it, as a LoKr is not read": {f"{KEY}.lokr_w1": (2, 2)},
    "only hada_w1_a, a half or less of it, as a LoHa is not read": {f"{KEY}.hada_w1_a": (2, 2)},
    "only dora_scale, a half or less of it, as a DoRA is not read": {f"{KEY}.dora_scale": (2, 1)},
    "not a LoRA": {"conv_in.weight": (2, 2)},
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_what_cannot_be_applied_entirely_is_refused_by_its_header(tmp_path, kind):
    path = tmp_path / "other.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in OTHERS[kind].items()}, path)
    with pytest.raises(ValueError, match=kind) as caught:
        require_lora(path, {"cross_attention_dim": 32})
    assert "\n" not in str(caught.value)
    if kind != "not a LoRA":
        assert "audit         not possible: " in describe_file(path)


def original(unet, layers):
    """kohya's names of Stable Diffusion XL's UNet, and of text encoders by the number of the encoder."""
    state, names = {}, unet_names(unet)
    for part, own in layers.items():
        for name, (down, up, alpha) in own.items():
            inner = names[f"{name}.weight"].removesuffix(".weight") if part == "unet" else name
            key = f"lora_{part}_{flat(inner)}"
            state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(alpha)}
    return state


@pytest.mark.long  # the layouts above are read likewise; exports/test_xl_lora.py reads XL's
def test_a_lora_of_xl_acts_as_diffusers_own_reader_has_it(tmp_path):
    """In kohya's names, which are the original file's for the UNet, and with both text encoders."""
    pipe, other, path = build_tiny_xl(), build_tiny_xl(), tmp_path / "xl.safetensors"
    layers = {
        "unet": layers_of(pipe.unet, (*ATTENTION, "ff.net.2", "proj_in", "samplers.0.conv", "conv1")),
        "te1": layers_of(pipe.text_encoder, TEXT, seed=1), "te2": layers_of(pipe.text_encoder_2, TEXT, seed=2),
    }  # fmt: skip
    save_file({k: v.contiguous() for k, v in original(pipe.unet, layers).items()}, path)
    plain = answer(pipe)
    require_lora(path, {"cross_attention_dim": 80})
    load_lora(pipe, path)
    require_same(deltas(pipe.unet), meant(layers["unet"]))
    require_same(deltas(pipe.text_encoder_2), meant(layers["te2"]))
    other.load_lora_weights(path, adapter_name="default")
    for part in ("unet", "text_encoder", "text_encoder_2"):
        require_same(deltas(getattr(pipe, part)), deltas(getattr(other, part)))
    ours = answer(pipe)
    assert (ours - plain).abs().max() > 0.1
    torch.testing.assert_close(answer(merged(pipe)), ours, rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match="layers for a text_encoder_2, which this base lacks"):
        load_lora(build_tiny_pipeline(), path)


@torch.no_grad()
def answer(pipe):
    """What the UNet makes of noise and a caption."""
    model = LatentModel(pipe)
    noise = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    return model.denoiser(["a red ball"])(noise, torch.tensor([500]), torch.tensor([0]))


def test_a_lora_of_another_generation_is_told_by_its_width(tmp_path):
    path, key = tmp_path / "xl.safetensors", "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    save_file({f"{key}.lora_down.weight": torch.zeros(2, 2048), f"{key}.lora_up.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(ValueError, match=r"is for Stable Diffusion XL, the base is Stable Diffusion 2\.x"):
        require_lora(path, {"cross_attention_dim": 1024})


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda state: {k.replace("mid_block", "mid_blocks"): v for k, v in state.items()}, "have no counterpart"),
        (
            lambda state: {k: v[:, :16] if "lora_down" in k else v for k, v in state.items()},
            "do not fit the base's layer",
        ),
        (lambda state: {k: v * float("nan") if "lora_up" in k else v for k, v in state.items()}, "holds NaN"),
        (lambda state: {k: v * 0 if k.endswith("alpha") else v for k, v in state.items()}, "alpha 0"),
        (lambda state: state | {k.replace("te_", "te1_"): v.clone() for k, v in state.items()}, "two layers for"),
        (lambda state: state | {f"{KEY}_x.alpha": torch.tensor(1.0)}, "an alpha without a layer"),
    ],
)
def test_a_lora_of_another_model_changes_nothing(tmp_path, change, word):
    pipe, path = build_tiny_pipeline(), tmp_path / "lora.safetensors"
    state = change(kohya(layers_of(pipe.unet, ATTENTION), layers_of(pipe.text_encoder, TEXT)))
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    with pytest.raises(ValueError, match=word) as caught:
        load_lora(pipe, path)
    assert "\n" not in str(caught.value)
    assert deltas(pipe.unet) == deltas(pipe.text_encoder) == {}


def test_alphas_given_by_patterns_are_those_that_peft_finds(tmp_path, base):
    """The first pattern that the end of a layer's path fits, as `peft.utils.get_pattern_key` reads them."""
    path, unet = tmp_path / "lora.safetensors", layers_of(base.unet, ATTENTION)
    patterns = {r"mid_block\..*attn1.to_(q|k)": 4, ".*attn1.*": 5, "to_out.0": 6}
    config = {"unet.lora_alpha": 1, "unet.alpha_pattern": patterns}
    save_file(dotted(unet, {}, alpha=False), path, metadata={"lora_adapter_metadata": json.dumps(config)})
    alphas = {layer.flat: layer.alpha for layer in stored_layers(path, read_header(path))}
    keys = {flat(name): get_pattern_key(patterns, name) for name in unet}
    assert alphas == {name: float(patterns.get(key, 1)) for name, key in keys.items()}
    assert set(alphas.values()) == {1.0, 4.0, 5.0, 6.0}


@pytest.mark.parametrize("pattern", ["(a+)+x", ".*.*.*.*x", "(", "x" * 300, r"(a)\1"])
def test_a_pattern_that_could_take_for_ever_is_not_tried(tmp_path, base, pattern):
    path = tmp_path / "lora.safetensors"
    config = {"unet.lora_alpha": 1, "unet.alpha_pattern": {pattern: 4}}
    state = dotted(layers_of(base.unet, ATTENTION), {}, alpha=False)
    save_file(state, path, metadata={"lora_adapter_metadata": json.dumps(config)})
    with pytest.raises(ValueError, match="patterns that are not read"):
        stored_layers(path, read_header(path))


def test_inspect_describes_any_lora_and_prints_the_command_that_audits_it(tmp_path, base):
    path = tmp_path / "my cat.safetensors"
    save_file(kohya(layers_of(base.unet, ATTENTION), {}), path, metadata={"ss_sd_model_name": "v2-1.safetensors"})
    text = describe_file(path)
    assert f"unet          {len(layers_of(base.unet, ATTENTION))} layers, rank 2" in text
    assert "text_encoder  no layer" in text
    assert "alpha         in the file" in text
    assert "ss_sd_model_name  v2-1.safetensors" in text
    assert f"basinguard audit BASE --lora '{path}' --data IMAGES" in text
