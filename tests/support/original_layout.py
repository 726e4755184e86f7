"""A small Stable Diffusion 2 in the original single-file layout, written from a diffusers pipeline."""

import re

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from support.tiny_pipeline import build_tiny_pipeline

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip
KEPT = ("vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id")
MID_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
TEXT = {
    "embeddings.position_embedding.weight": "positional_embedding", "embeddings.token_embedding": "token_embedding",
    "final_layer_norm": "ln_final", "encoder.layers.": "transformer.resblocks.", "layer_norm1": "ln_1",
    "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn": "attn",
}  # fmt: skip


def build_small_sd2(prediction_type="v_prediction", width=1024):
    """Four levels and a text encoder as wide as Stable Diffusion 2's: everything the layout depends on."""
    pipe = build_tiny_pipeline(prediction_type)
    old = pipe.text_encoder.config
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe.text_encoder = CLIPTextModel(
            CLIPTextConfig(**{
                **{name: getattr(old, name) for name in KEPT},
                "hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 16,
            })
        ).eval()  # fmt: skip
        pipe.unet = UNet2DConditionModel(
            sample_size=16, block_out_channels=(32,) * 4, cross_attention_dim=width, attention_head_dim=(1,) * 4,
            use_linear_projection=True,
        ).eval()  # fmt: skip
        pipe.vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(32, 32, 32, 32), layers_per_block=2, latent_channels=4, sample_size=32,
        ).eval()  # fmt: skip
    pipe.register_modules(unet=pipe.unet, vae=pipe.vae, text_encoder=pipe.text_encoder)
    return pipe


def save_original(pipe, path, metadata=None):
    """Writes the pipeline's weights under the names of Stability AI's files."""
    state = {f"model.diffusion_model.{unet_name(k)}": v for k, v in pipe.unet.state_dict().items()}
    state |= {f"first_stage_model.{vae_name(k)}": conv(k, v) for k, v in pipe.vae.state_dict().items()}
    state |= {f"cond_stage_model.model.{k}": v for k, v in text_state(bare(pipe.text_encoder.state_dict())).items()}
    save_file({k: v.contiguous() for k, v in state.items()}, path, metadata=metadata)
    return path


def bare(state):
    """Keys as transformers has named them lately; before, all lay below `text_model`."""
    return {name.removeprefix("text_model."): value for name, value in state.items()}


def renamed(name, table):
    for new, old in table.items():
        name = name.replace(new, old)
    return name


def unet_name(name):
    if match := re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", name):
        side, level, kind, number, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        if kind == "downsamplers":
            return f"input_blocks.{3 * (level + 1)}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            return f"output_blocks.{3 * level + 2}.{1 if level == 0 else 2}.{rest}"
        block = f"input_blocks.{3 * level + number + 1}" if side == "down" else f"output_blocks.{3 * level + number}"
        return f"{block}.1.{rest}" if kind == "attentions" else f"{block}.0.{renamed(rest, RESNET)}"
    name = renamed(name, UNET)
    return renamed(name, RESNET) if name.startswith(("middle_block.0", "middle_block.2")) else name


def vae_name(name):
    name = re.sub(r"decoder\.up_blocks\.(\d)", lambda m: f"decoder.up.{3 - int(m[1])}", name)
    name = re.sub(r"encoder\.down_blocks\.(\d)", r"encoder.down.\1", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if "mid_block.attentions.0" in name:
        return renamed(name.replace("mid_block.attentions.0", "mid.attn_1"), MID_ATTENTION)
    plain = {"resnets": "block", "downsamplers.0": "downsample", "upsamplers.0": "upsample"}
    return renamed(name, plain | {"conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out"})


def conv(name, value):
    """The layout has 1 x 1 convolutions where diffusers has linear layers."""
    linear = "mid_block.attentions" in name and value.ndim == 2
    return value[:, :, None, None] if linear else value


def text_state(state):
    out = {}
    for name, value in state.items():
        match = re.match(r"(.*self_attn)\.q_proj\.(weight|bias)", name)
        if match:
            three = torch.cat([state[f"{match[1]}.{part}_proj.{match[2]}"] for part in "qkv"])
            out[f"{renamed(match[1], TEXT)}.in_proj_{match[2]}"] = three
        elif not re.search(r"\.[kv]_proj\.", name) and "position_ids" not in name:
            out[renamed(name, TEXT)] = value
    return out
