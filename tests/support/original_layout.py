"""A small Stable Diffusion 2 in the original single-file layout, written from a diffusers pipeline."""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from basinguard.exports.original_layout import original_state
from support.tiny_pipeline import build_tiny_pipeline

KEPT = ("vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id")


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
    state = {name: value.contiguous() for name, value in original_state(pipe, second=True).items()}
    save_file(state, path, metadata=metadata)
    return path
