"""A Stable Diffusion pipeline's weights under the names of its authors' single files, which user interfaces load.

UNet: blocks are numbered one after the other, `input_blocks.0` to `output_blocks.N`. VAE: decoder levels are counted
from the other end, and attention is 1 x 1 convolutions. Text: Stable Diffusion 1 has CLIP's own names, Stable Diffusion
2 OpenCLIP's, where queries, keys and values are one matrix. XL has one of each, the second with its projection.

Source: CompVis/stable-diffusion (`openaimodel.py`, `ldm/modules/diffusionmodules/model.py`), mlfoundations/open_clip
(`transformer.py`) and Stability-AI/generative-models (`sgm/modules/encoders/modules.py`); what is written is read back
by `diffusers.loaders.single_file`, which is how it is tested.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .model_kind import kind_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor

UNET, VAE, CLIP, OPEN_CLIP = (
    "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model.",
    "cond_stage_model.model.",
)  # fmt: skip
XL_CLIP, XL_OPEN_CLIP = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
PROJECTION = "text_projection.weight"
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip
VAE_PARTS = {
    "resnets": "block", "downsamplers.0": "downsample", "upsamplers.0": "upsample", "conv_shortcut": "nin_shortcut",
    "conv_norm_out": "norm_out",
}  # fmt: skip
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
TEXT = {
    "embeddings.position_embedding.weight": "positional_embedding", "embeddings.token_embedding": "token_embedding",
    "final_layer_norm": "ln_final", "encoder.layers.": "transformer.resblocks.", "layer_norm1": "ln_1",
    "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn": "attn",
}  # fmt: skip
BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)")
QUERY = re.compile(r"(.*self_attn)\.q_proj\.(weight|bias)")


def original_state(pipe: DiffusionPipeline, *, second: bool = False) -> dict[str, Tensor]:
    """Every weight of a pipeline's UNet, VAE and text encoders.

    Args:
        pipe: a diffusers `StableDiffusionPipeline` or `StableDiffusionXLPipeline` without adapters.
        second: Stable Diffusion 2's names of the text encoder, else Stable Diffusion 1's; XL has its own.
    """
    whole: Any = pipe
    unet, levels = unet_names(whole.unet), len(whole.vae.config.block_out_channels)
    named = {f"{UNET}{unet[k]}": v for k, v in whole.unet.state_dict().items()}
    named |= {f"{VAE}{vae_name(k, levels)}": _convolution(k, v) for k, v in whole.vae.state_dict().items()}
    text = _text_state(whole.text_encoder)
    if kind_of(pipe).xl:
        named |= {f"{XL_CLIP}{name}": value for name, value in text.items()}
        return named | {f"{XL_OPEN_CLIP}{k}": v for k, v in open_clip_tensors(_text_state(whole.text_encoder_2))}
    if second:
        return named | {f"{OPEN_CLIP}{name}": value for name, value in open_clip_tensors(text)}
    return named | {f"{CLIP}{name}": value for name, value in text.items()}


def _text_state(encoder: Any) -> dict[str, Tensor]:
    return {name.removeprefix("text_model."): value for name, value in encoder.state_dict().items()}


def unet_names(unet: Any) -> dict[str, str]:
    """The original name of each of a UNet's weights, by diffusers' name."""
    return {name: name_in(unet, name) for name in unet.state_dict()}


def name_in(unet: Any, name: str) -> str:
    """The original name of one weight of a UNet of diffusers."""
    return unet_name(name, unet.config.layers_per_block, ["Attn" in kind for kind in unet.config.up_block_types])


def unet_name(name: str, layers: int, attends: Sequence[bool] = (False, True, True, True)) -> str:
    """A UNet tensor's original name.

    Args:
        name: diffusers' name.
        layers: resnets of a level on the way down; there is one more on the way up.
        attends: whether each level on the way up has attention; Stable Diffusion 1's and 2's by default.

    Example:
        >>> unet_name("down_blocks.1.attentions.0.norm.weight", 2)
        'input_blocks.4.1.norm.weight'
    """
    if not (match := BLOCK.fullmatch(name)):
        name = renamed(name, ENDS)
        return renamed(name, RESNET) if name.startswith(("middle_block.0", "middle_block.2")) else name
    side, level, kind, number, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    per_level = layers + 1
    if kind == "downsamplers":
        return f"input_blocks.{per_level * (level + 1)}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":  # after the attention, where there is one
        return f"output_blocks.{per_level * (level + 1) - 1}.{2 if attends[level] else 1}.{rest}"
    down = side == "down"
    block = f"input_blocks.{per_level * level + number + 1}" if down else f"output_blocks.{per_level * level + number}"
    return f"{block}.1.{rest}" if kind == "attentions" else f"{block}.0.{renamed(rest, RESNET)}"


def vae_name(name: str, levels: int) -> str:
    """A VAE tensor's original name.

    Example:
        >>> vae_name("decoder.up_blocks.0.resnets.1.conv1.weight", 4)
        'decoder.up.3.block.1.conv1.weight'
    """
    name = re.sub(r"decoder\.up_blocks\.(\d+)", lambda m: f"decoder.up.{levels - 1 - int(m[1])}", name)
    name = re.sub(r"encoder\.down_blocks\.(\d+)", r"encoder.down.\1", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if "mid_block.attentions.0" in name:
        return renamed(name.replace("mid_block.attentions.0", "mid.attn_1"), VAE_ATTENTION)
    return renamed(name, VAE_PARTS)


def open_clip_tensors(text: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """CLIP's text model as OpenCLIP names it, without the last of its layers where the model has none.

    Stable Diffusion 2 leaves it out, and the projection to the space of images too, but diffusers before 0.35 take the
    width of the attention from its shape: an identity stands in its place. XL's own is stored transposed.

    Args:
        text: transformers' names, without `text_model.`.
    """
    import torch

    own = text.get(PROJECTION)
    yield "text_projection", torch.eye(text["final_layer_norm.weight"].numel()) if own is None else own.T
    for name, value in text.items():
        if name == PROJECTION:
            continue
        if match := QUERY.fullmatch(name):
            three = [text[f"{match[1]}.{part}_proj.{match[2]}"] for part in "qkv"]
            yield f"{renamed(match[1], TEXT)}.in_proj_{match[2]}", torch.cat(three)
        elif not re.search(r"\.[kv]_proj\.", name) and "position_ids" not in name:
            yield renamed(name, TEXT), value


def renamed(name: str, table: Mapping[str, str]) -> str:
    """A name with each part that a table knows in the words of the table's other side."""
    for new, old in table.items():
        name = name.replace(new, old)
    return name


def _convolution(name: str, value: Tensor) -> Tensor:
    is_linear = "mid_block.attentions" in name and value.ndim == 2
    return value[:, :, None, None] if is_linear else value
