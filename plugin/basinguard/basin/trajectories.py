"""A model as the measurements see it, its unguided trajectories, and the guided branches off them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..diffusion.batching import Batched
from ..diffusion.evaluation_count import EvaluationCount, counted
from ..diffusion.noise_schedule import NoiseSchedule
from ..diffusion.sampler_path import SamplerPath
from ..diffusion.sampling import Denoiser, draw_noise, path_of, predict, sample_trajectory
from ..guidance.core import Constant

StopTest = Callable[[Tensor, Tensor, Tensor], Tensor]  # rows [A], evaluation [A], predicted clean latents -> stop? [A]


@dataclass(frozen=True)
class Pairs:
    """(caption, seed) pairs: every caption with every one of its seeds.

    Attributes:
        prompt: index of each pair's prompt, [N].
        seed: each pair's seed, [N].
        noise: each pair's initial latents, [N, ...].
    """

    prompt: Tensor
    seed: Tensor
    noise: Tensor

    def __post_init__(self) -> None:
        if not len(self.prompt):
            raise ValueError("0 (caption, seed) pairs given; expected at least 1 caption with 1 seed")

    def __len__(self) -> int:
        return len(self.prompt)

    def __getitem__(self, rows: Tensor) -> Pairs:
        return Pairs(self.prompt[rows], self.seed[rows], self.noise[rows])


def pairs_of(
    captions: int | Sequence[int],
    seeds: Sequence[int],
    per_caption: int,
    shape: Sequence[int],
    stride: int | None = None,
) -> Pairs:
    """Every caption with `per_caption` of the seeds, going round; equal seeds share their noise.

    Args:
        captions: how many, or which of the training set: a caption keeps its seeds whatever is measured beside it.
        seeds: to choose from.
        per_caption: seeds of each caption.
        shape: of one sample's latents.
        stride: seeds that a caption has of its own, where fewer are sampled; `per_caption` by default.
    """
    own_seeds = stride or per_caption
    numbers = range(captions) if isinstance(captions, int) else captions
    prompt = torch.arange(len(numbers)).repeat_interleave(per_caption)
    seed = [seeds[(number * own_seeds + k) % len(seeds)] for number in numbers for k in range(per_caption)]
    if not seed:
        raise ValueError(f"{len(numbers)} captions with {per_caption} seeds each: there is nothing to sample")
    return Pairs(prompt, torch.tensor(seed), draw_noise(seed, shape))


@dataclass(frozen=True)
class GuidedModel:
    """A model as the measurements see it: denoiser, schedule, sampler, guidance scale, and how many rows fit at once.

    Attributes:
        denoise: the model.
        schedule: its noise schedule.
        timesteps: the sampler's grid, descending, [T].
        scale: guidance scale of plain CFG.
        chunk: most rows evaluated at once; changes memory, never a result.
        solver: the sampler, one of `solvers.SOLVERS`.
        count: rows that went through the network, padding left out; copies made by `replace` share it.
    """

    denoise: Denoiser
    schedule: NoiseSchedule
    timesteps: Tensor
    scale: float
    chunk: int = 64
    solver: str = "ddim"
    count: EvaluationCount = field(default_factory=EvaluationCount, compare=False)

    @cached_property
    def path(self) -> SamplerPath:
        """The sampler on the grid."""
        return path_of(self.schedule, self.timesteps, self.solver)

    @cached_property
    def evaluate(self) -> Denoiser:
        """The denoiser for any number of rows; halves its chunk when memory runs out."""
        return counted(Batched(self.denoise, self.chunk), self.count)


@dataclass(frozen=True)
class Trunk:
    """Unguided trajectories, kept at every grid position.

    Attributes:
        states: before every grid timestep and, last, at the end, [T + 1, S, ...]; see `SamplerPath` for a state.
        eps: the unguided prediction at every grid timestep, [T, S, ...].
        row: which of the S trajectories each pair rides, [N].
    """

    states: Tensor
    eps: Tensor
    row: Tensor

    def at(self, rows: Tensor, index: Tensor) -> Tensor:
        """State of each pair in `rows` before its own grid position, [len(rows), ...]."""
        return self.states[index, self.row[rows]]

    @property
    def pair_states(self) -> Tensor:
        """Every state of each pair, [T + 1, N, ...]."""
        return self.states[:, self.row]


def run_trunk(model: GuidedModel, pairs: Pairs, before: float = 0.0) -> Trunk:
    """The trajectories of all pairs at constant scale `before`, from the first timestep to the end.

    At scale 0 the prompt plays no part, so pairs of one seed share one trajectory.

    Raises:
        FloatingPointError: the model returned a value that is not finite.
    """
    own_row = torch.arange(len(pairs))
    rows, row = _unique(pairs.seed) if before == 0 else (own_row, own_row)
    ride = pairs[rows]
    arguments = (model.schedule, model.timesteps, Constant(before), model.solver)
    states, eps = [model.path.begin(ride.noise)], list[Tensor]()
    on_grid = set(model.path.first.tolist())
    for visit in sample_trajectory(model.evaluate, ride.noise, ride.prompt, *arguments):
        if visit.index in on_grid:
            prediction = visit.eps_cond if visit.eps_uncond is None else visit.eps_uncond
            assert prediction is not None  # an evaluation without any prediction does not exist
            eps.append(prediction)
        if visit.index + 1 in on_grid:
            states.append(visit.state)
    return Trunk(torch.stack(states), torch.stack(eps), row)


def run_prefix(
    model: GuidedModel, pairs: Pairs, before: float, states: Sequence[Tensor], position: int
) -> list[Tensor]:
    """The trajectories of all pairs at constant scale `before`, no further than a grid position.

    Args:
        model: what is sampled.
        pairs: with their noise.
        before: the scale.
        states: at grid positions 0, 1, ..., as far as they are known; empty at first.
        position: that is asked for.

    Returns:
        States [N, ...] at every position up to this one, those that were given included.
    """
    path, reached = model.path, list(states) or [model.path.begin(pairs.noise)]
    while len(reached) <= position:
        state = reached[-1]
        for node in range(int(path.first[len(reached) - 1]), int(path.first[len(reached)])):
            timesteps = path.nodes[node].expand(len(pairs))
            guided, _ = predict(model.evaluate, path.latents(state), timesteps, pairs.prompt, Constant(before), None)
            state = path.advance(state, guided.eps, torch.full_like(pairs.prompt, node))
        reached.append(state)
    return reached


def _unique(seed: Tensor) -> tuple[Tensor, Tensor]:
    """First row of every distinct seed, and for every row which of them it equals."""
    _, inverse = seed.unique(return_inverse=True)
    first = torch.stack([(inverse == k).nonzero()[0, 0] for k in range(int(inverse.max()) + 1)])
    return first, inverse


def run_branch(model: GuidedModel, x: Tensor, prompt: Tensor, index: Tensor, stop: StopTest | None = None) -> Tensor:
    """Plain CFG from grid position `index` of each row to the end: clean latents, [N, ...].

    Args:
        model: what is sampled.
        x: state of each row at its grid position, from a `Trunk` or `SamplerPath.begin`, [N, ...].
        prompt: index of each row's prompt, [N].
        index: grid position at which each row begins, [N]; T means that it is at its end already.
        stop: looks at what the conditional prediction says of the clean latents, and stops rows that need not go on;
            their returned latents are those reached.

    Raises:
        FloatingPointError: the model returned a value that is not finite.
    """
    path, state, node = model.path, x.clone(), model.path.first[index]
    running, rule = node < len(path.nodes), Constant(model.scale)
    while bool(running.any()):
        rows = running.nonzero().squeeze(1)
        here, now = state[rows], node[rows]
        guided, _ = predict(model.evaluate, path.latents(here), path.nodes[now], prompt[rows], rule, None)
        state[rows] = path.advance(here, guided.eps, now)
        node[rows] += 1
        running[rows] = node[rows] < len(path.nodes)
        if stop is not None:
            prediction = guided.eps if guided.eps_cond is None else guided.eps_cond
            running[rows] &= ~stop(rows, now, path.denoised(here, prediction, now))
    if not bool(torch.isfinite(state).all()):
        raise FloatingPointError("the model's prediction is not finite; nothing can be measured on this model")
    return path.latents(state)
