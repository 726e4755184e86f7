"""TinyWorld with adapters on it: what each adapted layer answers, and weights that are not zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from basinguard.tinyworld import model_directory

RANK, ALPHA = 4, 2.0
Written = tuple[str, Any, Callable[[Path], Path]]  # layout, pipeline with the adapter on it, saves it to a folder


def base() -> Any:
    pipe = StableDiffusionPipeline.from_pretrained(model_directory(), safety_checker=None, local_files_only=True)
    for part in (pipe.unet, pipe.text_encoder):
        part.requires_grad_(False)
    return pipe


def answers(pipe: Any) -> dict[str, Tensor]:
    """The weight of each layer that can be adapted, by what it answers to unit inputs, and one output of the UNet."""
    weights = {}
    for part in ("unet", "text_encoder"):
        for name, layer in getattr(pipe, part).named_modules():
            if "lora" in name or "base_layer" in name:
                continue
            inner = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
            if isinstance(inner, nn.Linear | nn.Conv2d) and (weight := answered(layer, inner)) is not None:
                weights[f"{part}.{name}"] = weight
    return weights | {"output": output(pipe)}


@torch.no_grad()
def answered(layer: Any, inner: Any) -> Tensor | None:
    if isinstance(inner, nn.Linear):
        inputs = torch.eye(inner.in_features)
        return (layer(inputs) - layer(torch.zeros(1, inner.in_features))).T.contiguous()
    side, pad = inner.kernel_size[0], inner.padding[0]
    if inner.stride != (1, 1) or side not in (1, 3) or 2 * pad + 1 != side:
        return None
    inputs = torch.zeros(inner.in_channels, inner.in_channels, side, side)
    inputs[range(inner.in_channels), range(inner.in_channels), pad, pad] = 1
    answer = layer(inputs) - layer(torch.zeros_like(inputs[:1]))
    return answer.transpose(0, 1).flip(2, 3).contiguous()


@torch.no_grad()
def output(pipe: Any) -> Tensor:
    """What the UNet predicts for fixed latents, timestep and text."""
    generator = torch.Generator().manual_seed(0)
    config = pipe.unet.config
    latents = torch.randn(2, config.in_channels, config.sample_size, config.sample_size, generator=generator)
    tokens = pipe.tokenizer(["a red ball", "a box"], padding="max_length", truncation=True, return_tensors="pt")
    return pipe.unet(latents, 500, pipe.text_encoder(tokens.input_ids)[0]).sample


def randomize(parameters: Mapping[str, nn.Parameter]) -> None:
    """Weights of an adapter as training might have left them: none of them zero."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in sorted(parameters.items()):
        noise = torch.randn(parameter.shape, generator=generator)
        if "magnitude" in name or "dora_scale" in name:
            parameter.data.mul_(1 + 0.2 * noise.tanh())
        else:
            parameter.data.copy_(0.1 * noise)
