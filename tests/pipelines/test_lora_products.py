"""LoHa, LoKr, LoCon with a core, IA3 and DoRA change each layer as peft's own layers do, or as their formula says."""

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from safetensors.torch import save_file

from basinguard.exports.lora import lora_layers
from basinguard.exports.lora_formats import kohya_tensors
from basinguard.exports.merge import folded
from basinguard.pipelines.lora_files import load_lora
from basinguard.pipelines.lora_products import as_lora
from support.tiny_pipeline import build_tiny_pipeline

LINEAR = [
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
]
CONV = ["mid_block.resnets.0.conv1"]
FACTORS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
           "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")  # fmt: skip
KINDS = {
    "LoHa": LoHaConfig(r=2, alpha=3, target_modules=LINEAR + CONV, init_weights=False),
    "LoHa of a rank whose square is more than the layer": LoHaConfig(
        r=8, alpha=4, target_modules=LINEAR, init_weights=False
    ),
    "LoHa with cores": LoHaConfig(r=2, alpha=3, target_modules=CONV, init_weights=False, use_effective_conv2d=True),
    "LoKr": LoKrConfig(r=1, alpha=3, target_modules=LINEAR + CONV, init_weights=False),
    "LoKr of two products": LoKrConfig(r=1, alpha=3, target_modules=LINEAR, init_weights=False, decompose_both=True),
    "LoKr without low rank": LoKrConfig(r=16, alpha=16, target_modules=LINEAR + CONV, init_weights=False),
    "LoKr with a core": LoKrConfig(r=2, alpha=3, target_modules=CONV, init_weights=False, use_effective_conv2d=True),
}


def unet_with(config, seed=0):
    """A tiny UNet under an adapter of peft's with random factors, and its layers by path."""
    torch.manual_seed(seed)
    model = get_peft_model(build_tiny_pipeline().unet, config)
    for name, factor in model.named_parameters():
        if any(kind in name for kind in ("hada_", "lokr_")):
            torch.nn.init.normal_(factor)
    named = ((name.removeprefix("base_model.model."), layer) for name, layer in model.named_modules())
    return model, {name: layer for name, layer in named if hasattr(layer, "get_delta_weight")}


def loaded_deltas(tmp_path, state, strength=1.0):
    """What the loader makes of a file: what each layer's weight gains."""
    path = tmp_path / "adapter.safetensors"
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in state.items()}, path)
    pipe = build_tiny_pipeline()
    load_lora(pipe, path, strength=strength)
    return added_to(pipe)


def added_to(pipe):
    layers = {name: layer for name, layer in pipe.unet.named_modules() if "default" in getattr(layer, "lora_A", {})}
    return {name: layer.get_delta_weight("default") for name, layer in layers.items()}


def require_same(ours, right):
    assert ours.keys() == right.keys()
    for name, delta in right.items():
        torch.testing.assert_close(ours[name], delta.detach(), rtol=1e-5, atol=1e-4)


def kohya_state(layers, alpha):
    state = {}
    for name, layer in layers.items():
        key = "lora_unet_" + name.replace(".", "_")
        own = {factor: getattr(layer, factor) for factor in FACTORS if "default" in getattr(layer, factor, {})}
        state |= {f"{key}.{factor}": tensors["default"] for factor, tensors in own.items()}
        state[f"{key}.alpha"] = torch.tensor(float(alpha))
    return state


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_peft(tmp_path, kind):
    _, layers = unet_with(KINDS[kind])
    right = {name: layer.get_delta_weight("default") for name, layer in layers.items()}
    assert all(delta.abs().max() > 0.1 for delta in right.values())
    require_same(loaded_deltas(tmp_path, kohya_state(layers, KINDS[kind].alpha)), right)


def test_what_peft_saves_of_a_loha_is_read_with_its_alpha(tmp_path):
    model, layers = unet_with(KINDS["LoHa"])
    model.save_pretrained(tmp_path)
    pipe = build_tiny_pipeline()
    load_lora(pipe, tmp_path / "adapter_model.safetensors")
    require_same(added_to(pipe), {name: layer.get_delta_weight("default") for name, layer in layers.items()})


def test_a_core_between_the_halves(tmp_path):
    """up (out, r), core (r, s, h, w) and down (s, in), one after the other."""
    up, core, down = torch.randn(32, 2, 1, 1), torch.randn(2, 2, 3, 3), torch.randn(2, 32, 1, 1)
    key = "lora_unet_mid_block_resnets_0_conv1"
    state = {f"{key}.lora_up.weight": up, f"{key}.lora_mid.weight": core, f"{key}.lora_down.weight": down}
    images = torch.randn(1, 32, 5, 5)
    right = torch.conv2d(torch.conv2d(torch.conv2d(images, down), core), up)
    (delta,) = loaded_deltas(tmp_path, state).values()
    torch.testing.assert_close(torch.conv2d(images, delta), right, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def dora():
    """A UNet under peft's DoRA with magnitudes of its own, and what that adds to each weight."""
    config = LoraConfig(r=2, lora_alpha=3, target_modules=LINEAR + CONV, use_dora=True, init_lora_weights=False)
    model, layers = unet_with(config)
    for layer in layers.values():
        layer.lora_magnitude_vector["default"].weight.data *= 1.5
    plain = folded(model.base_model.model)
    return model, {
        name: plain.get_submodule(name).weight - layer.get_base_layer().weight for name, layer in layers.items()
    }


def test_a_dora_is_that_of_peft_and_half_of_it_at_half_the_strength(tmp_path, dora):
    model, right = dora
    model.save_pretrained(tmp_path)
    for strength in (1.0, 0.5):
        pipe = build_tiny_pipeline()
        load_lora(pipe, tmp_path / "adapter_model.safetensors", strength=strength)
        require_same(added_to(pipe), {name: strength * delta for name, delta in right.items()})


def test_a_dora_exported_as_kohyas_lora_is_the_same(tmp_path, dora):
    model, right = dora
    model.save_pretrained(tmp_path)
    pipe = build_tiny_pipeline()
    load_lora(pipe, tmp_path / "adapter_model.safetensors")
    state = {name: torch.as_tensor(value) for name, value in kohya_tensors(lora_layers(pipe)).items()}
    require_same(loaded_deltas(tmp_path, state), right)


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3, 3)])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_magnitude_is_the_length_of_what_belongs_to_an_output_or_an_input(shape, axis):
    """kohya's `dora_scale` is for either; the direction stays that of the weight with the LoRA on it."""
    weight, up, down = torch.randn(shape), torch.randn(6, 2), torch.randn(2, *shape[1:])
    magnitude = torch.rand(shape[axis]) + 0.5
    scale = magnitude.reshape([-1 if k == axis else 1 for k in range(len(shape))])
    down, up, alpha = as_lora({"up": up, "down": down, "dora_scale": scale}, 0.5, weight)
    changed = weight + ((up.flatten(1) @ down.flatten(1)) * alpha / len(down)).reshape(shape)
    torch.testing.assert_close(changed.transpose(0, axis).flatten(1).norm(dim=1), magnitude, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("on_input", [0, 1])
def test_an_ia3_scales_inputs_or_outputs(tmp_path, on_input):
    weight = build_tiny_pipeline().unet.get_submodule(LINEAR[1]).weight
    scale = torch.randn(weight.shape[on_input])
    key = "lora_unet_" + LINEAR[1].replace(".", "_")
    deltas = loaded_deltas(tmp_path, {f"{key}.weight": scale, f"{key}.on_input": torch.tensor(on_input)})
    require_same(deltas, {LINEAR[1]: weight * (scale if on_input else scale[:, None])})


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda state: {k: v[:-1] if "w2_b" in k else v for k, v in state.items()}, "do not fit"),
        (lambda state: {k: v[:, :-2] if "w1_b" in k else v for k, v in state.items()}, "do not fit"),
        (lambda state: {k: v * float("nan") if "w1_a" in k else v for k, v in state.items()}, "holds NaN"),
        (lambda state: {k: v for k, v in state.items() if "w2_b" not in k}, "a half or less of it"),
    ],
)
def test_factors_that_do_not_fit_change_nothing(tmp_path, change, word):
    _, layers = unet_with(KINDS["LoHa"])
    with pytest.raises(ValueError, match=word) as caught:
        loaded_deltas(tmp_path, change(kohya_state(layers, 3)))
    assert "\n" not in str(caught.value)
