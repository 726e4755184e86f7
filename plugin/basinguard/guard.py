"""What to measure, on what, and what it means: the guard without any framework.

A `Guard` is given the training images and captions once; `measure` looks at a model and returns a `Report`. Every
epoch uses the same captions, seeds and noise (common random numbers), so a difference between two reports is a
difference between two models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from . import basin, stats
from .records import Estimate, Exit, Match, Report
from .sampling import Denoiser, NoiseSchedule, draw_noise
from .similarity.embed import Embedder
from .similarity.match import nearest

FIRST_SEED = 1_000  # probe seeds are 1000, 1001, ...; calibration and verification use other thousands


class Model(Protocol):
    """A text-to-image model as the guard sees it; `adapters.diffusers.LatentModel` is one."""

    schedule: NoiseSchedule

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one sample's latents."""
        ...

    def denoiser(self, prompts: Sequence[str]) -> Denoiser:
        """A denoiser whose prompt k is `prompts[k]`."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1]."""
        ...


@dataclass(frozen=True)
class TrainingSet:
    """The images that must not come back, and what they are called.

    Attributes:
        images: [N, 3, H, W] in [0, 1], as the model sees them.
        captions: one for each image.
        heldout: prompts the model was not trained on: the control group.
    """

    images: Tensor
    captions: tuple[str, ...]
    heldout: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.images) != len(self.captions) or not self.captions:
            raise ValueError(f"{len(self.images)} images and {len(self.captions)} captions: need one caption an image")
        leaked = sorted(set(self.heldout) & set(self.captions))
        if leaked:
            raise ValueError(f"held-out prompts must not be training captions; {leaked[0]!r} is one")


@dataclass(frozen=True)
class Plan:
    """How much to measure at each epoch.

    Attributes:
        captions: how many training captions to sample, spread evenly over the set.
        seeds: samples for each of them.
        timesteps: sampling steps.
        scale: guidance scale of ordinary CFG.
        budget: risk that the estimated transition may leave, in (0, 1).
        chunk: most rows at once.
    """

    captions: int = 16
    seeds: int = 2
    timesteps: int = 20
    scale: float = 7.5
    budget: float = 0.1
    chunk: int = 64

    def __post_init__(self) -> None:
        for name in ("captions", "seeds", "timesteps", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"Plan({name}={getattr(self, name)}): expected at least 1")
        if not 0 < self.budget < 1:
            raise ValueError(f"Plan(budget={self.budget}): expected a share in (0, 1)")


class Guard:
    """Measures a model against one training set, epoch after epoch.

    Args:
        training: images, captions and held-out prompts.
        embedder: the eye that says "same image", with its threshold.
        plan: how much to measure.
        align: agreement of images [B, 3, H, W] and captions, [B], higher is better; None where no such model exists.
    """

    def __init__(
        self,
        training: TrainingSet,
        embedder: Embedder,
        plan: Plan | None = None,
        align: Callable[[Tensor, Sequence[str]], Tensor] | None = None,
    ) -> None:
        self.training, self.embedder, self.plan, self.align = training, embedder, plan or Plan(), align
        if self.plan.captions > len(training.captions):
            raise ValueError(
                f"the probe asks for {self.plan.captions} captions, but the training set has {len(training.captions)}; "
                f"set captions={len(training.captions)} or less"
            )
        self.gallery = embedder(training.images)
        self.history: list[Report] = []

    def matches(self, images: Tensor) -> list[Match]:
        """The nearest training image of each sample."""
        return nearest(images, self.gallery, self.embedder)

    def is_copy(self, images: Tensor) -> Tensor:
        """Whether each sample reproduces some training image, [B] bool."""
        threshold = self.embedder.metric.threshold
        return torch.tensor([match.similarity >= threshold for match in self.matches(images)], dtype=torch.bool)

    def is_own_copy(self, matches: Sequence[Match], captions: Sequence[str]) -> Tensor:
        """Whether each sample reproduces the training image of its own caption (or a duplicate of it), [B] bool."""
        threshold, known = self.embedder.metric.threshold, self.training.captions
        found = zip(matches, captions, strict=True)
        return torch.tensor([m.similarity >= threshold and known[m.index] == text for m, text in found])

    def probe(self, model: Model, prompts: Sequence[str], timesteps: int | None = None) -> basin.Probe:
        """The model as `basin` sees it, with these prompts."""
        grid = model.schedule.grid(timesteps or self.plan.timesteps)
        return basin.Probe(model.denoiser(prompts), model.schedule, grid, self.plan.scale, self.plan.chunk)

    def probed_captions(self) -> list[str]:
        """The training captions that are sampled every epoch, spread evenly over the set."""
        every = np.linspace(0, len(self.training.captions) - 1, self.plan.captions).round().astype(int)
        return [self.training.captions[i] for i in every]

    @torch.no_grad()
    def measure(self, model: Model, *, epoch: int, train_step: int) -> Report:
        """Looks at the model once and appends the report to `history`. Epoch -1 is the untouched base."""
        start = time.monotonic()
        look = _Look(self, model)
        report = look.report(epoch, train_step, start)
        self.history.append(report)
        return report

    @torch.no_grad()
    def show(
        self, model: Model, transition: float | None, count: int = 4
    ) -> tuple[dict[str, Tensor], list[str], dict[str, list[bool]]]:
        """Training image, plain CFG and guarded sample of a few captions, with the copies marked.

        The guarded column has no guidance above `transition`; it is left out when that is None.
        """
        rows = list(range(min(count, len(self.training.captions))))
        captions = [self.training.captions[i] for i in rows]
        probe, pairs = self.probe(model, captions), pairs_of(len(rows), [FIRST_SEED], 1, model.latent_shape)
        start = torch.zeros_like(pairs.prompt)
        columns = {"training image": self.training.images[rows]}
        columns["plain CFG"] = model.decode(basin.branch(probe, pairs.noise, pairs.prompt, start)[0])
        if transition is not None:
            index = start + int((probe.timesteps > transition).sum())
            states, _ = basin.prefix(probe, pairs, before=0.0)
            columns["guarded"] = model.decode(basin.branch(probe, states[index, rows], pairs.prompt, index)[0])
        marks = {name: self.is_copy(images).tolist() for name, images in columns.items() if name != "training image"}
        return columns, captions, marks

    def state_dict(self) -> dict[str, Any]:
        """The history, as plain JSON text."""
        return {"history": [report.to_json() for report in self.history]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the history of an interrupted run.

        Raises:
            ValueError: the state has no history, or one that does not parse.
        """
        if "history" not in state:
            raise ValueError(f"guard state has no 'history'; its keys are {sorted(state)}")
        self.history = [Report.from_json(text) for text in state["history"]]


def pairs_of(captions: int, seeds: Sequence[int], per_caption: int, shape: Sequence[int]) -> basin.Pairs:
    """Every caption with `per_caption` of the seeds, going round; equal seeds share their noise."""
    prompt = torch.arange(captions).repeat_interleave(per_caption)
    seed = torch.tensor([seeds[i % len(seeds)] for i in range(captions * per_caption)])
    return basin.Pairs(prompt, seed, draw_noise(seed.tolist(), shape))


class _Look:
    """One measurement in progress: its samples, matches and cost."""

    def __init__(self, guard: Guard, model: Model) -> None:
        self.guard, self.model, self.evals = guard, model, 0
        self.captions = guard.probed_captions()
        self.probe = guard.probe(model, self.captions)
        seeds = range(FIRST_SEED, FIRST_SEED + max(8, guard.plan.seeds))
        self.pairs = pairs_of(len(self.captions), seeds, guard.plan.seeds, model.latent_shape)

    def report(self, epoch: int, train_step: int, start: float) -> Report:
        images = self.model.decode(self._guided(self.probe, self.pairs))
        matches = self.guard.matches(images)
        similarity = [match.similarity for match in matches]
        copied = torch.tensor([s >= self.guard.embedder.metric.threshold for s in similarity])
        exits = self._exits(self.guard.is_own_copy(matches, [self.captions[k] for k in self.pairs.prompt.tolist()]))
        clusters = self.pairs.prompt.tolist()
        heldout = self._heldout()
        return Report(
            epoch=epoch,
            train_step=train_step,
            risk=stats.rate(copied, clusters),
            width=basin.width(exits),
            exit=basin.median_exit(exits),
            transition=basin.static_transition(exits, self.probe.timesteps, self.guard.plan.budget),
            gap=self._gap(self.guard.training.captions),
            gap_heldout=self._gap(self.guard.training.heldout) if self.guard.training.heldout else None,
            similarity_p95=stats.cluster_bootstrap(similarity, clusters, _p95),
            similarity_heldout=heldout,
            risk_uncond=self._uncond(),
            alignment=self._alignment(images, clusters),
            curve=tuple(basin.curve(exits, self.probe.timesteps)),
            exits=tuple(exits),
            unet_evals=self.evals,
            seconds=time.monotonic() - start,
        )

    def _guided(self, probe: basin.Probe, pairs: basin.Pairs) -> Tensor:
        """Ordinary CFG from the very start."""
        ends, cost = basin.branch(probe, pairs.noise, pairs.prompt, torch.zeros_like(pairs.prompt))
        self.evals += cost
        return ends

    def _exits(self, first: Tensor) -> list[Exit]:
        """Exit of every pair; `first` is the outcome of ordinary CFG, which is known already."""

        def judge(latents: Tensor, prompt: Tensor) -> Tensor:
            matches = self.guard.matches(self.model.decode(latents))
            return self.guard.is_own_copy(matches, [self.captions[k] for k in prompt.tolist()])

        exits, cost = basin.find_exits(self.probe, self.pairs, judge, first=first)
        self.evals += cost
        return exits

    def _gap(self, captions: Sequence[str]) -> Estimate:
        pairs = pairs_of(len(captions), range(FIRST_SEED, FIRST_SEED + 2), 2, self.model.latent_shape)
        gaps, cost = basin.top_gap(self.guard.probe(self.model, captions), pairs)
        self.evals += cost
        return stats.cluster_bootstrap(gaps, pairs.prompt)

    def _heldout(self) -> Estimate | None:
        prompts = self.guard.training.heldout
        if not prompts:
            return None
        pairs = pairs_of(len(prompts), self.pairs.seed.unique().tolist(), 1, self.model.latent_shape)
        images = self.model.decode(self._guided(self.guard.probe(self.model, prompts), pairs))
        similarity = [match.similarity for match in self.guard.matches(images)]
        return stats.cluster_bootstrap(similarity, pairs.prompt, _p95)

    def _uncond(self) -> Estimate:
        """Does the empty prompt alone reproduce training images? Then guidance at scale 0 cannot help."""
        seed = self.pairs.seed.unique()
        pairs = basin.Pairs(torch.zeros_like(seed), seed, draw_noise(seed.tolist(), self.model.latent_shape))
        states, cost = basin.prefix(self.probe, pairs, before=0.0)
        self.evals += cost
        return stats.rate(self.guard.is_copy(self.model.decode(states[-1])), seed)

    def _alignment(self, images: Tensor, clusters: Sequence[int]) -> Estimate | None:
        if self.guard.align is None:
            return None
        scores = self.guard.align(images, [self.captions[k] for k in clusters])
        return stats.cluster_bootstrap(scores, clusters)


def _p95(values: np.ndarray) -> float:
    return float(np.quantile(values, 0.95))
