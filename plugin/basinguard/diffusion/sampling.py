"""Denoising as a generator of `Step` records: a probe, an early stop or a plot is an ordinary consumer of it.

One normal form for every model: `denoise(x, timestep, prompt) -> eps`, each row at its own timestep with its own
prompt (an index into whatever table the denoiser was built on; `EMPTY` is the unconditional branch). Adapters convert
foreign models at the border (`to_epsilon`), so nothing here learns what v-prediction or a text encoder is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..guidance.core import Rule, combine
from ..guidance.core import gap as gap_of
from .noise_schedule import NoiseSchedule
from .sampler_path import SamplerPath, make_sampler_path

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

    def __call__(self, x: Tensor, timestep: Tensor, prompt: Tensor, /) -> Tensor:  # noqa: D102
        ...


def draw_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Initial noise [len(seeds), *shape], one generator for each seed: batch size never changes a sample."""
    return torch.stack([torch.randn(*shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds])


@dataclass(frozen=True)
class Prediction:
    """Guided epsilon of a batch, with what it was made of; see `Step` for the fields."""

    eps: Tensor
    eps_uncond: Tensor | None
    eps_cond: Tensor | None
    gap: Tensor | None
    scale: Tensor


def predict(
    denoise: Denoiser,
    x: Tensor,
    timestep: Tensor,
    prompt: Tensor,
    rule: Rule,
    state: object,
    scale: Tensor | None = None,
) -> tuple[Prediction, object]:
    """The guided prediction of every row, evaluating only the branches that row's scale needs.

    Where the scale is 0 the conditional branch, where it is 1 the unconditional one is not evaluated: a prefix without
    guidance costs one evaluation, not two. A rule that reads the gap always needs both. `scale` [B], where given, is
    used instead of asking the rule.
    """
    every = torch.ones_like(prompt, dtype=torch.bool)
    if rule.reads_gap:
        u, c = _branches(denoise, x, timestep, prompt, every, every)
        if scale is None:
            scale, state = rule.scale(timestep, gap_of(u, c), state)
        return _prediction(u, c, scale, every, every), state
    if scale is None:
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
    )


def path_of(schedule: NoiseSchedule, timesteps: Tensor, solver: str = "ddim") -> SamplerPath:
    """A sampler on a grid of this schedule; see `path.make_sampler_path`."""
    ends = torch.cat([timesteps.double(), torch.tensor([-1.0], dtype=torch.float64)])
    return make_sampler_path(solver, timesteps, schedule.signal(ends).tolist(), schedule.noise(ends).tolist())


def sample_trajectory(
    denoise: Denoiser,
    x: Tensor,
    prompt: Tensor,
    schedule: NoiseSchedule,
    timesteps: Tensor,
    rule: Rule,
    solver: str = "ddim",
) -> Iterator[Step]:
    """Denoises `x` along `timesteps`, yielding every evaluation; the last one's `x_next` is the sample.

    Args:
        denoise: the model, see `Denoiser`.
        x: unit noise, [B, ...]; see `draw_noise`.
        prompt: index of each row's prompt, [B].
        schedule: the model's noise schedule.
        timesteps: training timesteps, descending, [N].
        rule: decides the guidance scale; a timestep that is evaluated twice in a row keeps its scale, so a detector
            sees every noise level once.
        solver: one of `solvers.SOLVERS`.

    Raises:
        FloatingPointError: the model returned a value that is not finite; names the timestep.
    """
    path = path_of(schedule, timesteps, solver)
    state, memory = path.begin(x), rule.init(len(x))
    scale: Tensor | None = None
    for index, node in enumerate(path.nodes):
        now = node.expand(len(x))
        again = index > 0 and bool(node == path.nodes[index - 1])
        guided, memory = predict(denoise, path.latents(state), now, prompt, rule, memory, scale if again else None)
        scale, where = guided.scale, torch.full((len(x),), index)
        after = path.advance(state, guided.eps, where)
        if not bool(torch.isfinite(after).all()):
            raise FloatingPointError(f"the model's prediction at timestep {int(node)} is not finite")
        yield Step(
            index=index,
            timestep=now,
            sigma=schedule.sigma(now),
            x=path.latents(state),
            eps_uncond=guided.eps_uncond,
            eps_cond=guided.eps_cond,
            gap=guided.gap,
            scale=guided.scale,
            denoised=path.denoised(state, guided.eps, where),
            x_next=path.latents(after),
            state=after,
        )
        state = after


def final(steps: Iterator[Step]) -> Tensor:
    """Runs a trajectory to its end and returns the sample, [B, ...]."""
    last = deque(steps, maxlen=1)
    if not last:
        raise ValueError("a trajectory needs at least one timestep")
    return last[0].x_next


@dataclass(frozen=True)
class Step:
    """One step of a trajectory, as `sampling.sample_trajectory` yields it.

    Attributes:
        index: position on the sampler's grid.
        timestep: training timestep of each sample, [B]; samples of one batch may stand at different ones.
        sigma: noise level of each sample, [B].
        x: latents at `timestep`, [B, ...].
        eps_uncond, eps_cond: predictions that were evaluated, [B, ...]; None for a branch that was not needed.
        gap: root-mean-square of eps_cond - eps_uncond, [B]; None unless both branches were evaluated.
        scale: guidance scale used, [B].
        denoised: predicted clean latents, [B, ...].
        x_next: latents at the next timestep, [B, ...].
        state: x_next with what a multistep sampler remembers, see `SamplerPath`.
    """

    index: int
    timestep: torch.Tensor
    sigma: torch.Tensor
    x: torch.Tensor
    eps_uncond: torch.Tensor | None
    eps_cond: torch.Tensor | None
    gap: torch.Tensor | None
    scale: torch.Tensor
    denoised: torch.Tensor
    x_next: torch.Tensor
    state: torch.Tensor
