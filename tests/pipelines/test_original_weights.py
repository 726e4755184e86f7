"""A whole fine-tune in one file becomes the base with the file's weights, as diffusers' own converters read them."""

import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file

from basinguard.exports.original_layout import original_state, unet_names
from basinguard.pipelines.original_weights import XL_CLIP, XL_OPEN_CLIP, load_original
from support.original_layout import build_small_sd2
from support.tiny_pipeline import build_tiny_pipeline, build_tiny_xl

UNET = "model.diffusion_model."
RENAMED = {  # from OpenCLIP's names to transformers'
    "transformer.resblocks.": "encoder.layers.", ".ln_1.": ".layer_norm1.", ".ln_2.": ".layer_norm2.",
    ".mlp.c_fc.": ".mlp.fc1.", ".mlp.c_proj.": ".mlp.fc2.", ".attn.out_proj.": ".self_attn.out_proj.",
}  # fmt: skip


def moved(pipe):
    """The same pipeline with every weight a little further."""
    for part in (pipe.unet, pipe.text_encoder, getattr(pipe, "text_encoder_2", None)):
        for parameter in part.parameters() if part is not None else ():
            parameter.data += 0.25
    return pipe


def same(ours, theirs):
    for part in ("unet", "text_encoder", "text_encoder_2"):
        if getattr(ours, part, None) is not None:
            right = getattr(theirs, part).state_dict()
            wrong = [k for k, v in getattr(ours, part).state_dict().items() if not torch.equal(v, right[k])]
            assert wrong == [], part


@pytest.mark.parametrize(("build", "second"), [(build_tiny_pipeline, False), (build_small_sd2, True)])
def test_stable_diffusion_1_and_2_are_read_back(tmp_path, build, second):
    """`original_state` is held against diffusers' reader in tests/exports/test_single_file.py."""
    pipe, base, path = moved(build()), build(), tmp_path / "model.safetensors"
    save_file({k: v.contiguous().clone() for k, v in original_state(pipe, second=second).items()}, path)
    load_original(base, path)
    same(base, pipe)


def xl_state(pipe):
    """As generative-models names an XL: the first encoder as CLIP does, the second as OpenCLIP does."""
    names = unet_names(pipe.unet)
    state = {f"{UNET}{names[k]}": v for k, v in pipe.unet.state_dict().items()}
    first = pipe.text_encoder.state_dict()
    state |= {f"{XL_CLIP}{k.removeprefix('text_model.')}": v for k, v in first.items()}
    second = {k.removeprefix("text_model."): v for k, v in pipe.text_encoder_2.state_dict().items()}
    own = {
        "positional_embedding": second["embeddings.position_embedding.weight"],
        "token_embedding.weight": second["embeddings.token_embedding.weight"],
        "text_projection": second["text_projection.weight"].T,
        **{f"ln_final.{end}": second[f"final_layer_norm.{end}"] for end in ("weight", "bias")},
    }
    for k in range(pipe.text_encoder_2.config.num_hidden_layers):
        block = f"transformer.resblocks.{k}."
        for ours, theirs in list(RENAMED.items())[1:]:
            for end in ("weight", "bias"):
                own[f"{block}{ours[1:]}{end}"] = second[f"encoder.layers.{k}{theirs}{end}"]
        for end in ("weight", "bias"):
            parts = [second[f"encoder.layers.{k}.self_attn.{q}_proj.{end}"] for q in "qkv"]
            own[f"{block}attn.in_proj_{end}"] = torch.cat(parts)
    return state | {f"{XL_OPEN_CLIP}{k}": v for k, v in own.items()}


def test_xl_is_read_as_diffusers_converters_read_it(tmp_path):
    pipe, base, path = moved(build_tiny_xl()), build_tiny_xl(), tmp_path / "xl.safetensors"
    save_file({k: v.contiguous().clone() for k, v in xl_state(pipe).items()}, path)
    load_original(base, path)
    same(base, pipe)
    theirs = single_file_utils.convert_ldm_unet_checkpoint(load_file(path), dict(base.unet.config))
    ours = base.unet.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


def test_a_file_of_another_model_changes_nothing(tmp_path):
    base, path = build_tiny_pipeline(), tmp_path / "model.safetensors"
    before = {k: v.clone() for k, v in base.unet.state_dict().items()}
    state = {k: v.contiguous().clone() for k, v in original_state(moved(build_tiny_pipeline()), second=False).items()}
    for broken, message in (
        (
            {k: v for k, v in state.items() if "time_embed.2.bias" not in k},
            "no time_embedding.linear_2.bias of the unet",
        ),
        (state | {f"{UNET}out.2.bias": torch.zeros(5)}, "another conv_out.bias than the base"),
    ):
        save_file(broken, path)
        with pytest.raises(ValueError, match=message):
            load_original(base, path)
        assert all(torch.equal(v, before[k]) for k, v in base.unet.state_dict().items())
