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


def held_to(share: str, evaluations: int) -> int:
    """The last evaluation, counted from 0, at which the first part of an edit holds; -1 where A1111 drops the edit."""
    last = min(evaluations, int(float(share) * evaluations))
    return last if last >= 1 else -1


def a1111(
    text: str, cfg: float, model: Denoiser, schedule: NoiseSchedule, timesteps: Tensor, noise: Tensor, prompt: int
) -> Tensor:
    """Runs prompts joined by AND, each `[before:after:share] :weight` or plain, with an empty negative prompt."""
    parts = [_part(part) for part in re.split(r"\bAND\b", text)]

    def guided(step: int, x: Tensor, t: Tensor) -> Tensor:
        uncond = denoised(model, schedule, x, t, EMPTY)
        total = uncond
        for (before, after, share), weight in parts:
            words = before if step <= held_to(share, len(timesteps)) else after
            cond = denoised(model, schedule, x, t, prompt if words else EMPTY)
            total = total + weight * cfg * (cond - uncond)
        return total

    start = noise * (1 + schedule.sigma(timesteps[0]).to(noise.dtype) ** 2).sqrt()
    return torch.stack(euler(guided, start, schedule, timesteps, 0, len(timesteps)))


def _part(text: str) -> tuple[tuple[str, str, str], float]:
    """An edit as (before, after, share), and its weight; a text without one holds all the time."""
    body, weight = re.fullmatch(r"\s*(.*?)(?:\s*:\s*([-+]?[\d.]+))?\s*", text).groups()
    edit = re.fullmatch(r"\[([^:\[\]]*):([^:\[\]]*):([\d.]+)\]", body)
    return (edit.groups() if edit else ("", body, "0")), float(weight or 1)
