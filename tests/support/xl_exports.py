"""Builders for the export tests of Stable Diffusion XL: tiny random pipelines, and one in its single file's shape."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoraConfig
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from basinguard.core.record import Record
from support.exports import build_record
from support.tiny_pipeline import build_scheduler, build_tiny_xl, build_tokenizer

LAYERS = ["attn2.to_q", "attn2.to_k", "attn1.to_v", "attn2.to_out.0", "proj_in", "ff.net.0.proj"]
LAYERS += ["conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "conv_in", "add_embedding.linear_2"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1"]
CALL = {"prompt": "a", "guidance_scale": 4.0, "num_inference_steps": 3, "output_type": "latent"}
SEED = 3


def draw(pipe: StableDiffusionXLPipeline) -> torch.Tensor:
    """Latents by the pipeline as it is."""
    pipe.set_progress_bar_config(disable=True)
    return pipe(**CALL, generator=torch.Generator().manual_seed(SEED)).images


def loud(pipe: StableDiffusionXLPipeline) -> StableDiffusionXLPipeline:
    """With a UNet that looks at the text, which random weights hardly do."""
    for name, weight in pipe.unet.named_parameters():
        if "attn2.to_v" in name:
            weight.data.mul_(20)
    return pipe


def build_xl() -> StableDiffusionXLPipeline:
    return loud(build_tiny_xl())


def xl_record(pipe: StableDiffusionXLPipeline, **options: float) -> Record:
    """A calibration of a pipeline of XL, at its own size."""
    record = build_record(pipe, **options)
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    own = {"prediction_type": "epsilon", "resolution": side}
    return record.model_copy(
        update={
            "sampler": record.sampler.model_copy(update=own),
            "base": "stabilityai/stable-diffusion-xl-base-1.0",
            "history": (),
        }
    )


def xl_with_lora(layers: Sequence[str] = LAYERS) -> StableDiffusionXLPipeline:
    """A random LoRA on many kinds of layers of all three parts; alpha and rank differ by part and layer."""
    pipe = build_xl()
    configs = {
        "unet": LoraConfig(
            r=2, lora_alpha=8.0, target_modules=[*layers], rank_pattern={"to_k": 3}, alpha_pattern={"to_v": 3.0}
        ),
        "text_encoder": LoraConfig(r=3, lora_alpha=1.5, target_modules=TEXT),
        "text_encoder_2": LoraConfig(r=4, lora_alpha=6.0, target_modules=TEXT),
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(7)
        for name, config in configs.items():
            part = getattr(pipe, name)
            part.add_adapter(config)
            for parameter, weight in part.named_parameters():
                if "lora_B" in parameter:
                    torch.nn.init.normal_(weight, std=0.1)
    return pipe


def build_small_xl() -> StableDiffusionXLPipeline:
    """XL's levels, widths of text and number of layers on each level; everything the single file depends on."""
    tokenizer = build_tokenizer(16)
    common = {
        "vocab_size": len(tokenizer), "intermediate_size": 32, "max_position_embeddings": 16,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = CLIPTextModel(
            CLIPTextConfig(hidden_size=768, num_attention_heads=12, num_hidden_layers=2, **common)
        ).eval()
        second = CLIPTextModelWithProjection(
            CLIPTextConfig(
                hidden_size=1280, num_attention_heads=20, num_hidden_layers=2, projection_dim=24, **common
            )
        ).eval()  # fmt: skip
        unet = UNet2DConditionModel(
            sample_size=16, block_out_channels=(32, 32, 64), layers_per_block=2, cross_attention_dim=2048,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 1, 2), attention_head_dim=(1, 1, 2), use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 24,
        ).eval()  # fmt: skip
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(32,) * 4, layers_per_block=2, latent_channels=4, sample_size=32,
        ).eval()  # fmt: skip
    parts = {"text_encoder": first, "text_encoder_2": second, "tokenizer": tokenizer, "tokenizer_2": tokenizer}
    return StableDiffusionXLPipeline(
        vae=vae, unet=unet, scheduler=build_scheduler("epsilon"), **parts, add_watermarker=False
    )
