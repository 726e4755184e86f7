"""Tiny randomly initialised pipelines, built in code; latents 8x8, images 16x16."""

from __future__ import annotations

import math
from contextlib import contextmanager

import diffusers
import torch
from diffusers import (
    ControlNetModel,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from basinguard.core.estimate import Estimate
from basinguard.core.metric import Metric
from basinguard.core.record import Guidance, Record, Sampler
from support.tiny_pipeline import build_scheduler, build_vae

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


def pipeline(prediction_type: str = "v_prediction") -> StableDiffusionPipeline:
    torch.manual_seed(0)
    pipe = StableDiffusionPipeline(
        vae=build_vae(16),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        unet=unet(),
        scheduler=build_scheduler(prediction_type),
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


def controlnet(**options) -> ControlNetModel:
    net = ControlNetModel.from_unet(unet(**options), conditioning_embedding_out_channels=(8, 8))
    for block in [*net.controlnet_down_blocks, net.controlnet_mid_block]:  # they start at zero and would say nothing
        torch.nn.init.normal_(block.weight, std=0.1)
    return net.eval()


def sdxl_unet(channels: int = 4) -> UNet2DConditionModel:
    options = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    return unet(channels, projection_class_embeddings_input_dim=6 * 4 + 16, **options)


def _sd3() -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pooled_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=8,
    ).eval()


def build(name: str):
    """A tiny random pipeline of the diffusers class `name`, and the arguments to call it with (latents 8x8)."""
    torch.manual_seed(0)
    xl, three, control = "XL" in name, name == "StableDiffusion3Pipeline", "ControlNet" in name
    net = _sd3() if three else sdxl_unet() if xl else unet()
    parts = {"vae": build_vae(16), "scheduler": FlowMatchEulerDiscreteScheduler() if three else build_scheduler()}
    parts |= dict.fromkeys(["text_encoder", "tokenizer"]) | {"transformer" if three else "unet": net}
    if xl or three:
        parts |= dict.fromkeys(["text_encoder_2", "tokenizer_2"])
    if three:
        parts |= dict.fromkeys(["text_encoder_3", "tokenizer_3"])
    if xl:
        parts |= {"add_watermarker": False} if "ControlNetInpaint" not in name else {}
    elif not three:
        parts |= {"text_encoder": text_encoder(), "tokenizer": tokenizer(), "safety_checker": None}
        parts |= {"feature_extractor": None, "requires_safety_checker": False}
    if control:
        extra = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4} if xl else {}
        parts["controlnet"] = controlnet(**extra | ({"projection_class_embeddings_input_dim": 40} if xl else {}))
    pipe = getattr(diffusers, name)(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe, _arguments(name, xl or three, control)


def _arguments(name: str, pooled: bool, control: bool) -> dict:
    random = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=random)  # noqa: E731
    image = torch.rand(2, 3, 16, 16, generator=random)
    arguments = {"prompt_embeds": draw(2, 5, 16), "negative_prompt_embeds": draw(2, 5, 16)}
    if pooled:
        arguments |= {"pooled_prompt_embeds": draw(2, 16), "negative_pooled_prompt_embeds": draw(2, 16)}
    if "Img2Img" in name or "Inpaint" in name:
        arguments |= {"image": image, "strength": 0.9}
    if "Inpaint" in name:
        arguments["mask_image"] = (torch.rand(2, 1, 16, 16, generator=random) > 0.5).float()
    if control:
        arguments["control_image" if "image" in arguments else "image"] = image
    if "Img2Img" not in name:
        arguments |= {"height": 16, "width": 16}
    return arguments | {"output_type": "latent", "guidance_scale": 7.5}


def wobble(pipe) -> None:
    """Makes the text matter more and less along the trajectory, so that the gap has minima to find."""

    def scaled(module, args, kwargs):
        timestep = args[1] if len(args) > 1 else kwargs["timestep"]
        factor = 1 + 0.9 * math.cos(float(torch.as_tensor(timestep).flatten()[0]) / 80)
        return args, kwargs | {"encoder_hidden_states": kwargs["encoder_hidden_states"] * factor}

    (getattr(pipe, "unet", None) or pipe.transformer).register_forward_pre_hook(scaled, with_kwargs=True)


@contextmanager
def reference(pipe, rule):
    """The slow, obvious way: evaluate both branches, guide them, and hand the pipeline the result twice, (g, g)."""
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    forward, memory = denoiser.forward, {"scales": []}

    def guided(*args, **kwargs):
        u, c = forward(*args, **kwargs)[0].chunk(2)
        timestep = float(torch.as_tensor(args[1] if len(args) > 1 else kwargs["timestep"]).flatten()[0])
        if memory.get("timestep") != timestep:
            gap = (c - u).flatten(1).square().mean(1).sqrt() * _epsilon_per_raw(pipe.scheduler, timestep)
            state = memory["state"] if "state" in memory else rule.init(len(u))
            memory["scale"], memory["state"] = rule.scale(torch.full((len(u),), timestep), gap, state)
            memory["timestep"] = timestep
        memory["scales"].append(memory["scale"].tolist())
        g = u + memory["scale"].reshape(-1, 1, 1, 1) * (c - u)
        return (torch.cat([g, g]),)

    denoiser.forward = guided
    try:
        yield memory["scales"]
    finally:
        del denoiser.forward


def _epsilon_per_raw(scheduler, timestep: float) -> float:
    if not hasattr(scheduler, "alphas_cumprod"):
        return 1 - timestep / 1000
    return float(scheduler.alphas_cumprod[min(round(timestep), 999)]) ** 0.5
