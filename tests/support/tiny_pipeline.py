"""A random Stable Diffusion pipeline that runs in milliseconds."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

TOKENS = 16


def build_tokenizer(length: int) -> CLIPTokenizer:
    """One token a letter, alone or at a word's end; begin and end are the last two."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=length)


def build_vae(side: int) -> AutoencoderKL:
    """Random weights; a latent is 2 px wide."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), latent_channels=4, sample_size=side, norm_num_groups=4,
    ).eval()  # fmt: skip


def build_scheduler(prediction_type: str = "v_prediction", **changes) -> DDIMScheduler:
    """DDIM on Stable Diffusion's noise schedule."""
    own = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": prediction_type}
    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return DDIMScheduler(**noise, **own | changes)


def build_tiny_pipeline(prediction_type: str = "v_prediction") -> StableDiffusionPipeline:
    """Random weights, always the same ones: 32 x 32 px images, 16 x 16 x 4 latents."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = build_tokenizer(TOKENS)
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=32, intermediate_size=37, num_hidden_layers=2,
                num_attention_heads=4, max_position_embeddings=TOKENS,
                bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            )
        ).eval()  # fmt: skip
        vae = build_vae(32)
        unet = UNet2DConditionModel(
            sample_size=16, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=32, norm_num_groups=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=4, use_linear_projection=True,
        ).eval()  # fmt: skip
    scheduler = build_scheduler(prediction_type)
    return StableDiffusionPipeline(vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False)


def build_tiny_xl() -> StableDiffusionXLPipeline:
    """The same of Stable Diffusion XL: two text encoders of 32 and 48 numbers, a pooled one of 24."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = build_tokenizer(TOKENS)
        common = {
            "vocab_size": len(tokenizer), "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": TOKENS, "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }  # fmt: skip
        first = CLIPTextModel(CLIPTextConfig(hidden_size=32, **common)).eval()
        second = CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=48, projection_dim=24, **common)).eval()
        unet = UNet2DConditionModel(
            sample_size=16, block_out_channels=(16, 32), layers_per_block=2, cross_attention_dim=80, norm_num_groups=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2),
            attention_head_dim=4, use_linear_projection=True, addition_embed_type="text_time",
            addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 24,
        ).eval()  # fmt: skip
        vae = build_vae(32)
    parts = {"text_encoder": first, "text_encoder_2": second, "tokenizer": tokenizer, "tokenizer_2": tokenizer}
    scheduler = build_scheduler("epsilon")
    return StableDiffusionXLPipeline(vae=vae, unet=unet, scheduler=scheduler, **parts, add_watermarker=False)
