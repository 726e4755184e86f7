"""The guidance arithmetic of ComfyUI and A1111, re-told in a few lines from their sources: k-diffusion's Euler sampler
on x / signal, guidance on denoised images, ComfyUI's start and end step, A1111's prompt schedule."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from basinguard.diffusion.noise_schedule import NoiseSchedule
from basinguard.diffusion.sampling import EMPTY, Denoiser

Guided = Callable[[int, Tensor, Tensor], Tensor]  # step, x / signal, timestep -> denoised


def denoised(model: Denoiser, schedule: NoiseSchedule, x: Tensor, timestep: Tensor, prompt: int) -> Tensor:
    """x_0 from a VE state: what ComfyUI's `calculate_denoised` and k-diffusion's wrappers hand to the guidance."""
    when = timestep.expand(len(x))
    sigma = schedule.sigma(timestep).to(x.dtype)
    eps = model(x * schedule.signal(timestep).to(x.dtype), when, torch.full((len(x),), prompt))
    return x - sigma * eps


def euler(guided: Guided, x: Tensor, schedule: NoiseSchedule, timesteps: Tensor, first: int, last: int) -> list[Tensor]:
    """States after steps first..last of k-diffusion's `sample_euler` without churn."""
    grid = torch.cat([timesteps, torch.tensor([-1.0])])
    sigmas = schedule.sigma(grid).to(x.dtype)
    states = []
    for i in range(first, last):
        slope = (x - guided(i, x, grid[i])) / sigmas[i]
        x = x + slope * (sigmas[i + 1] - sigmas[i])
        states.append(x)
    return states


def comfyui(
    workflow: dict, model: Denoiser, schedule: NoiseSchedule, timesteps: Tensor, noise: Tensor, prompt: int
) -> Tensor:
    """States [steps, B, ...] of a workflow's samplers, in the order of their links."""
    texts = {"prompt": prompt, "empty": EMPTY}
    assert texts.keys() <= workflow.keys()
    chain, at = [], workflow["decode"]["inputs"]["samples"][0]
    while workflow[at]["class_type"] == "KSamplerAdvanced":
        chain.append(workflow[at]["inputs"])
        at = chain[-1]["latent_image"][0]
    x, states = noise, []
    for node in reversed(chain):
        assert 0 <= node["cfg"] <= 100, "the widget's range"
        positive, negative = texts[node["positive"][0]], texts[node["negative"][0]]

        def guided(step: int, x: Tensor, t: Tensor, p: int = positive, n: int = negative, c: float = node["cfg"]):
            cond, uncond = denoised(model, schedule, x, t, p), denoised(model, schedule, x, t, n)
            return uncond + (cond - uncond) * c

        if node["add_noise"] == "enable":
            x = x * (1 + schedule.sigma(timesteps[0]).to(x.dtype) ** 2).sqrt()
        states += euler(guided, x, schedule, timesteps, node["start_at_step"], node["end_at_step"])
        x = states[-1]
    return torch.stack(states)


def a1111(
    text: str, cfg: float, model: Denoiser, schedule: NoiseSchedule, timesteps: Tensor, noise: Tensor, prompt: int
) -> Tensor:
    """Runs `[:prompt:N]` with an empty negative prompt: the empty part holds while step <= N, steps from 0."""
    edit = re.fullmatch(r"\[:[^:\[\]]+:(\d+)\]", text)
    held = int(edit[1]) if edit else -1

    def guided(step: int, x: Tensor, t: Tensor) -> Tensor:
        cond = denoised(model, schedule, x, t, EMPTY if step <= held else prompt)
        uncond = denoised(model, schedule, x, t, EMPTY)
        return uncond + (cond - uncond) * cfg

    start = noise * (1 + schedule.sigma(timesteps[0]).to(noise.dtype) ** 2).sqrt()
    return torch.stack(euler(guided, start, schedule, timesteps, 0, len(timesteps)))
