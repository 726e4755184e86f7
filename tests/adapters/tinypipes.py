"""Tiny randomly initialised pipelines, built in code; latents 8x8, images 16x16."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from basinguard.records import Estimate, Guidance, Metric, Record, Sampler

WORDS = ["red", "blue", "circle", "square", "photo", "a"]


def tokenizer() -> CLIPTokenizer:
    words = ["<|startoftext|>", "<|endoftext|>", *(f"{word}</w>" for word in WORDS)]
    letters = sorted(set("".join(WORDS)))
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), *words]
    numbers = {word: i for i, word in enumerate(dict.fromkeys(vocabulary))}
    return CLIPTokenizer(numbers, [], model_max_length=32)


def text_encoder(size: int = 16) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=64,
        hidden_size=size,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=1,
    )
    return CLIPTextModel(config).eval()


def unet(channels: int = 4, **options) -> UNet2DConditionModel:
    shape = {
        "sample_size": 8,
        "in_channels": channels,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (32, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 8,
        "norm_num_groups": 8,
    }
    model = UNet2DConditionModel(**shape | options).eval()
    for module in model.modules():  # random initialisation hardly looks at the text; make the two branches differ
        if type(module).__name__ == "Attention" and module.is_cross_attention:
            module.to_v.weight.data.mul_(20)
    return model


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    ).eval()


def scheduler(prediction_type: str = "v_prediction") -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def pipeline(prediction_type: str = "v_prediction") -> StableDiffusionPipeline:
    torch.manual_seed(0)
    pipe = StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        unet=unet(),
        scheduler=scheduler(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_record(transition: float = 600.0, before: float = -2.0, after: float | None = None, **sampler) -> Record:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    signal = float((1 - betas).cumprod(0)[int(transition)])
    risk = Estimate(value=0.0, low=0.0, high=0.1, level=0.95, n=30, method="test")
    how = {"scheduler": "DDIM", "timesteps": 10, "prediction_type": "v_prediction", "resolution": 16, "scale": 7.5}
    return Record(
        guidance=Guidance(transition=transition, sigma=((1 - signal) / signal) ** 0.5, before=before, after=after),
        risk=risk,
        plain=risk,
        alpha=0.1,
        delta=0.05,
        promise="",
        population="test",
        metric=Metric(embedder="test", threshold=0.5, source="test"),
        sampler=Sampler(**how | sampler),
        seeds=(0,),
        base="tiny",
        weights_sha256="0" * 64,
        dataset_sha256="0" * 64,
        versions={},
    )
