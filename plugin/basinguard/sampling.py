"""Denoising as a generator of `Step` records: a probe, an early stop or a plot is an ordinary consumer of it.

One normal form for every model: `denoise(x, timestep, prompt) -> eps`, each row at its own timestep with its own
prompt (an index into whatever table the denoiser was built on; `EMPTY` is the unconditional branch). Adapters convert
foreign models at the border, so nothing here learns what v-prediction or a text encoder is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .guidance import Rule, combine
from .guidance import gap as gap_of
from .records import Step

EMPTY = -1  # the row of the prompt table that stands for "no prompt"


class Denoiser(Protocol):
    """Predicts the noise in `x`.

    Args:
        x: latents, [B, ...].
        timestep: training timestep of each row, [B], float or integer.
        prompt: index of each row's prompt, [B]; `EMPTY` for the unconditional branch.

    Returns:
        The epsilon prediction, [B, ...].
    """

    def __call__(self, x: Tensor, timestep: Tensor, prompt: Tensor) -> Tensor:  # noqa: D102
        ...


@dataclass(frozen=True)
class NoiseSchedule:
    """A variance-preserving schedule: x_t = signal(t) * x_0 + noise(t) * eps, t = 0..T-1.

    Attributes:
        alphas_cumprod: signal(t)^2 for each training timestep, [T], float64.
    """

    alphas_cumprod: Tensor

    def signal(self, timestep: Tensor) -> Tensor:
        """Factor of the clean latents; 1 below timestep 0 (the end of sampling)."""
        return self._squared(timestep).sqrt()

    def noise(self, timestep: Tensor) -> Tensor:
        """Factor of the noise; 0 below timestep 0."""
        return (1 - self._squared(timestep)).sqrt()

    def sigma(self, timestep: Tensor | float) -> Tensor:
        """Noise level noise / signal; what transfers between schedulers."""
        t = torch.as_tensor(timestep, dtype=torch.float64)
        return self.noise(t) / self.signal(t)

    def timestep(self, sigma: float) -> float:
        """The training timestep whose noise level is nearest to `sigma`."""
        levels = self.sigma(torch.arange(len(self.alphas_cumprod)))
        return float((levels - sigma).abs().argmin())

    def grid(self, count: int) -> Tensor:
        """`count` timesteps from T-1 downwards, evenly spaced ("trailing" in diffusers' terms), [count], int64.

        Raises:
            ValueError: fewer than 1 or more than T steps asked for.
        """
        total = len(self.alphas_cumprod)
        if not 1 <= count <= total:
            raise ValueError(f"grid({count}): expected 1 to {total} sampling steps")
        return (torch.arange(total, 0, -total / count)[:count].round() - 1).long()

    def _squared(self, timestep: Tensor) -> Tensor:
        t = torch.as_tensor(timestep)
        known = self.alphas_cumprod.to(t.device)[t.clamp(min=0).round().long()]
        return torch.where(t < 0, torch.ones_like(known), known)


def draw_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Initial noise [len(seeds), *shape], one generator for each seed: batch size never changes a sample."""
    return torch.stack([torch.randn(*shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds])


def ddim(x: Tensor, eps: Tensor, now: Tensor, then: Tensor, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
    """One deterministic DDIM step of every row from timestep `now` [B] to `then` [B]; below 0 means clean.

    Returns:
        The predicted clean latents and the latents at `then`, both [B, ...].

    Source: Song et al., arXiv 2010.02502, eq. 12 with sigma = 0.
    """
    denoised = (x - _rows(schedule.noise(now), x) * eps) / _rows(schedule.signal(now), x)
    return denoised, _rows(schedule.signal(then), x) * denoised + _rows(schedule.noise(then), x) * eps


def _rows(factor: Tensor, like: Tensor) -> Tensor:
    return factor.to(like.dtype).to(like.device).reshape(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class Prediction:
    """Guided epsilon of a batch, with what it was made of; see `Step` for the fields."""

    eps: Tensor
    eps_uncond: Tensor | None
    eps_cond: Tensor | None
    gap: Tensor | None
    scale: Tensor
    unet_evals: int


def predict(
    denoise: Denoiser, x: Tensor, timestep: Tensor, prompt: Tensor, rule: Rule, state: object
) -> tuple[Prediction, object]:
    """The guided prediction of every row, evaluating only the branches that row's scale needs.

    Where the scale is 0 the conditional branch, where it is 1 the unconditional one is not evaluated: a prefix without
    guidance costs one evaluation, not two. A rule that reads the gap always needs both.
    """
    every = torch.ones_like(prompt, dtype=torch.bool)
    if rule.reads_gap:
        u, c = _branches(denoise, x, timestep, prompt, every, every)
        scale, state = rule.scale(timestep, gap_of(u, c), state)
        return _prediction(u, c, scale, every, every), state
    scale, state = rule.scale(timestep, None, state)
    needs_u, needs_c = scale != 1, scale != 0
    u, c = _branches(denoise, x, timestep, prompt, needs_u, needs_c)
    return _prediction(u, c, scale, needs_u, needs_c), state


def _branches(
    denoise: Denoiser, x: Tensor, timestep: Tensor, prompt: Tensor, needs_u: Tensor, needs_c: Tensor
) -> tuple[Tensor, Tensor]:
    """Both predictions in one call of the model; a row whose branch is not needed carries the other one's value."""
    rows = torch.cat([needs_u.nonzero(), needs_c.nonzero()]).squeeze(1)
    prompts = torch.cat([torch.full_like(prompt, EMPTY)[needs_u], prompt[needs_c]])
    eps_u, eps_c = denoise(x[rows], timestep[rows], prompts).split([int(needs_u.sum()), int(needs_c.sum())])
    u, c = torch.empty_like(x), torch.empty_like(x)
    u[needs_u], c[needs_c] = eps_u, eps_c
    u[~needs_u], c[~needs_c] = c[~needs_u], u[~needs_c]
    return u, c


def _prediction(u: Tensor, c: Tensor, scale: Tensor, needs_u: Tensor, needs_c: Tensor) -> Prediction:
    both = bool((needs_u & needs_c).all())
    return Prediction(
        eps=combine(u, c, scale),
        eps_uncond=u if bool(needs_u.all()) else None,
        eps_cond=c if bool(needs_c.all()) else None,
        gap=gap_of(u, c) if both else None,
        scale=scale,
        unet_evals=int(needs_u.sum() + needs_c.sum()),
    )


def sample(
    denoise: Denoiser, x: Tensor, prompt: Tensor, schedule: NoiseSchedule, timesteps: Tensor, rule: Rule
) -> Iterator[Step]:
    """Denoises `x` along `timesteps`, yielding every step; the last one's `x_next` is the sample.

    Args:
        denoise: the model, see `Denoiser`.
        x: latents at `timesteps[0]`, [B, ...]; see `draw_noise`.
        prompt: index of each row's prompt, [B].
        schedule: the model's noise schedule.
        timesteps: training timesteps, descending; [N] for all rows, or [N, B] with each row at its own.
        rule: decides the guidance scale.

    Raises:
        FloatingPointError: the model returned a value that is not finite; names the timestep.
    """
    grid = timesteps if timesteps.ndim == 2 else timesteps[:, None].expand(-1, len(x))
    state: object = rule.init(len(x))
    for index, now in enumerate(grid):
        then = grid[index + 1] if index + 1 < len(grid) else torch.full_like(now, -1)
        guided, state = predict(denoise, x, now, prompt, rule, state)
        denoised, x_next = ddim(x, guided.eps, now, then, schedule)
        if not bool(torch.isfinite(x_next).all()):
            raise FloatingPointError(f"the model's prediction at timestep {int(now[0])} is not finite")
        yield Step(
            index=index,
            timestep=now,
            sigma=schedule.sigma(now),
            x=x,
            eps_uncond=guided.eps_uncond,
            eps_cond=guided.eps_cond,
            gap=guided.gap,
            scale=guided.scale,
            denoised=denoised,
            x_next=x_next,
            unet_evals=guided.unet_evals,
        )
        x = x_next


def final(steps: Iterator[Step]) -> Tensor:
    """Runs a trajectory to its end and returns the sample, [B, ...]."""
    last = deque(steps, maxlen=1)
    if not last:
        raise ValueError("a trajectory needs at least one timestep")
    return last[0].x_next
