"""One measurement in progress: what is sampled, what is read off it, and what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from . import basin, stats
from .basin.alarm import Alarm
from .basin.curves import log_sigma_width
from .basin.exits import Guided, guided
from .eye import Eye
from .plan import FIRST_SEED, Model, Plan, pairs_of
from .records import Estimate, Exit, Group, ImageResult, Match, Report

Align = Callable[[Tensor, Sequence[str]], Tensor]
Faithful = Callable[[Tensor], Tensor]
GAP_SEEDS = (FIRST_SEED,)
SEEDS = 8  # seeds that captions share, going round: one unguided trajectory each
WORST = 10  # captions named in a report
ENCODED = 16  # images encoded at once


@dataclass
class Table:
    """What one measurement found for every caption and image; plain numbers, so it can be saved.

    The base model's is the null that every later one is compared with.

    Attributes:
        gaps, heldout: gap of every training and every held-out caption.
        sigma_c, heldout_sigma_c: log critical scale, with the caption, of images by their index.
    """

    gaps: dict[int, float] = field(default_factory=dict)
    heldout: dict[int, float] = field(default_factory=dict)
    sigma_c: dict[int, float] = field(default_factory=dict)
    heldout_sigma_c: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Control:
    """What samples of held-out captions say, see `Report`; nothing where there are none."""

    similarity: Estimate | None = None
    alignment: Estimate | None = None
    fidelity: Estimate | None = None
    groups: tuple[Group, ...] = ()


@dataclass(frozen=True)
class Scope:
    """What one measurement covers.

    Attributes:
        sampled: training images whose captions are sampled.
        gaps: training images whose captions' gap is measured.
        seeds: samples of each sampled caption.
        resolution: grid positions an exit may be left open by.
        thorough: also sample held-out captions, whatever it costs.
        precision: what the budget bought, in words.
    """

    sampled: tuple[int, ...]
    gaps: tuple[int, ...]
    seeds: int
    resolution: int = 1
    thorough: bool = True
    precision: str = ""


class Look:
    """Measures a model once.

    Args:
        eye: knows the training images.
        plan: sampler, scale and limits.
        model: what is measured.
        scope: what is covered.
        null: what the base model measured; None when this is the base model.
        align: agreement of images and captions.
        faithful: how far each image looks like the subject.
    """

    def __init__(
        self,
        eye: Eye,
        plan: Plan,
        model: Model,
        scope: Scope,
        null: Table | None,
        align: Align | None,
        faithful: Faithful | None = None,
    ) -> None:
        self.eye, self.plan, self.model, self.scope, self.align = eye, plan, model, scope, align
        self.faithful = faithful
        self.training, self.evals, self.now = eye.training, 0, Table()
        self.null = self.now if null is None else null
        self.captions = [self.training.captions[i] for i in scope.sampled]
        self.probe = self.probe_of(self.captions)
        self.pairs = pairs_of(scope.sampled, self.seeds, scope.seeds, model.latent_shape)

    @property
    def seeds(self) -> range:
        """Seeds that the sampled captions share."""
        pool = max(SEEDS, self.plan.seeds) if self.scope.thorough else max(2, self.scope.seeds)
        return range(FIRST_SEED, FIRST_SEED + pool)

    def probe_of(self, prompts: Sequence[str]) -> basin.Probe:
        """The model with these prompts."""
        grid = self.model.schedule.grid(self.plan.timesteps)
        denoise = self.model.denoiser(prompts)
        return basin.Probe(denoise, self.model.schedule, grid, self.plan.scale, self.plan.chunk, self.plan.solver)

    def report(self, epoch: int, train_step: int, start: float) -> Report:
        """Everything, in one report."""
        anchors = self._anchors()
        begun = guided(self.probe, self.pairs, anchors)
        self.evals += begun.evals
        images = self.model.decode(begun.ends)
        matches = self.eye.matches(images)
        stem = basin.trunk(self.probe, self.pairs)
        self.evals += stem.evals
        exits = self._exits(begun, matches, stem, anchors)
        gaps, alarm = self._gaps()
        heldout = self._heldout()
        uncond = self._uncond(stem)
        clusters = self.pairs.prompt.tolist()
        similarity = [match.similarity for match in matches]
        largest = float(self.probe.schedule.sigma(self.probe.timesteps[0]))
        retention = self._retention()
        report = Report(
            epoch=epoch,
            train_step=train_step,
            risk=stats.rate(self.eye.copied(matches), clusters),
            width=basin.width(exits),
            log_width=log_sigma_width(exits, largest),
            exit=basin.median_exit(exits),
            transition=basin.static_transition(exits, self.probe.timesteps, self.plan.risk),
            gap=stats.cluster_bootstrap(list(gaps[0].values()), list(gaps[0])),
            gap_heldout=stats.cluster_bootstrap(list(gaps[1].values()), list(gaps[1])) if gaps[1] else None,
            gap_since_base=self._since(gaps[0], self.null.gaps),
            gap_excess=alarm.excess if alarm else None,
            gap_auc=alarm.auc if alarm else None,
            similarity_p95=stats.cluster_bootstrap(similarity, clusters, _p95),
            similarity_heldout=heldout.similarity,
            risk_uncond=uncond,
            alignment=self._alignment(images, [self.captions[k] for k in clusters], clusters),
            alignment_heldout=heldout.alignment,
            fidelity=heldout.fidelity,
            curve=tuple(basin.curve(exits, self.probe.timesteps)),
            exits=tuple(exits),
            groups=(*self._groups(exits, self.eye.copied(matches)), *heldout.groups),
            images=self._images(exits, gaps[0], retention),
            probed=self.scope.sampled,
            precision=self.scope.precision,
            note=_helpless(uncond, self.plan.risk),
            unet_evals=self.evals,
            seconds=time.monotonic() - start,
        )
        return report.model_copy(update=self._scales(retention))

    def _anchors(self) -> basin.Anchors | None:
        """Latents of every image that counts as a sampled caption's own, and of their mirror images."""
        if not hasattr(self.model, "encode"):
            return None
        own = [(i, k) for k, text in enumerate(self.captions) for i in self._images_of(text)]
        pixels = self.training.images[[i for i, _ in own]]
        latents = torch.cat([self.model.encode(part) for part in torch.cat([pixels, pixels.flip(-1)]).split(ENCODED)])
        return basin.Anchors(latents.cpu(), torch.tensor([k for _, k in own] * 2))

    def _images_of(self, caption: str) -> list[int]:
        return [i for i, text in enumerate(self.training.captions) if text == caption]

    def _exits(
        self, begun: Guided, matches: Sequence[Match], stem: basin.Trunk, anchors: basin.Anchors | None
    ) -> list[Exit]:
        first = self.eye.is_own_copy(matches, [self.captions[k] for k in self.pairs.prompt.tolist()])

        def judge(latents: Tensor, prompt: Tensor) -> Tensor:
            return self.eye.is_own_copy(self._seen(latents), [self.captions[k] for k in prompt.tolist()])

        exits, cost = basin.find_exits(
            self.probe, self.pairs, judge, first=first, start=begun, stem=stem, anchors=anchors,
            checks=self.plan.checks, resolution=self.scope.resolution,
        )  # fmt: skip
        self.evals += cost
        return exits

    def _seen(self, latents: Tensor) -> list[Match]:
        """Matches of latents; rows that are the same are decoded once."""
        unique, row = torch.unique(latents, dim=0, return_inverse=True)
        found = self.eye.matches(self.model.decode(unique))
        return [found[k] for k in row.tolist()]

    def _gaps(self) -> tuple[tuple[dict[int, float], dict[int, float]], Alarm | None]:
        """Gap of training and held-out captions by index, and what they say against the base."""
        shape = self.model.latent_shape
        found: list[dict[int, float]] = []
        for indices, texts in ((self.scope.gaps, self.training.captions), (None, self.training.heldout)):
            numbers = tuple(range(len(texts))) if indices is None else indices
            values: dict[int, float] = {}
            if numbers:
                probe = self.probe_of([texts[i] for i in numbers])
                gaps, cost = basin.caption_gaps(probe, len(numbers), GAP_SEEDS, shape)
                values, self.evals = dict(zip(numbers, gaps.mean(1).tolist(), strict=True)), self.evals + cost
            found.append(values)
        self.now.gaps, self.now.heldout = found
        return (found[0], found[1]), _alarm(found[0], self.null.gaps, found[1], self.null.heldout)

    def _since(self, now: dict[int, float], base: dict[int, float]) -> Estimate | None:
        rise = {i: value - base[i] for i, value in now.items() if i in base}
        return stats.cluster_bootstrap(list(rise.values()), list(rise)) if rise else None

    def _heldout(self) -> Control:
        """Do captions that the model never saw fall into training images too, and what do they give?"""
        prompts = self.training.heldout
        if not prompts or not self.scope.thorough or self.training.borrowed:  # stand-ins are there for the alarms alone
            return Control()
        probe, pairs = self.probe_of(prompts), pairs_of(len(prompts), self.seeds, 1, self.model.latent_shape)
        begun = guided(probe, pairs)
        images = self.model.decode(begun.ends)
        matches = self.eye.matches(images)
        copied = self.eye.copied(matches)
        width = [0.0] * len(pairs)
        self.evals += begun.evals
        if bool(copied.any()):
            rows = copied.nonzero().squeeze(1)
            exits, cost = basin.find_exits(probe, pairs[rows], lambda x, _: self.eye.copied(self._seen(x)))
            self.evals += cost
            for row, found in zip(rows.tolist(), exits, strict=True):
                width[row] = found.width
        similarity = stats.cluster_bootstrap([m.similarity for m in matches], pairs.prompt, _p95)
        group = Group(
            name="heldout",
            captions=len(prompts),
            risk=stats.rate(copied, pairs.prompt),
            width=stats.cluster_bootstrap(width, pairs.prompt),
        )
        clusters = pairs.prompt.tolist()
        return Control(
            similarity,
            self._alignment(images, [prompts[k] for k in clusters], clusters),
            stats.cluster_bootstrap(self.faithful(images), clusters) if self.faithful else None,
            (group,),
        )

    def _uncond(self, stem: basin.Trunk) -> Estimate:
        """Does the empty prompt alone reproduce training images? Then guidance at scale 0 cannot help."""
        ends = self.probe.path.latents(stem.states[-1])
        return stats.rate(self.eye.is_copy(self.model.decode(ends)), torch.arange(len(ends)))

    def _alignment(self, images: Tensor, captions: Sequence[str], clusters: Sequence[int]) -> Estimate | None:
        return None if self.align is None else stats.cluster_bootstrap(self.align(images, captions), clusters)

    def _groups(self, exits: Sequence[Exit], copied: Tensor) -> list[Group]:
        """Captions of one image, and of several."""
        groups = []
        for name, several in (("unique", False), ("duplicated", True)):
            rows = [r for r, e in enumerate(exits) if (self.training.count(self.captions[e.caption]) > 1) == several]
            if rows:
                clusters = [exits[r].caption for r in rows]
                groups.append(
                    Group(
                        name=name,
                        captions=len(set(clusters)),
                        risk=stats.rate(copied[rows], clusters),
                        width=basin.width([exits[r] for r in rows]),
                    )
                )
        return groups

    def _retention(self) -> dict[str, dict[int, tuple[float, float]]]:
        """Critical scale with the caption and without, of training and held-out images by index."""
        found: dict[str, dict[int, tuple[float, float]]] = {"train": {}, "heldout": {}}
        if not self.plan.retention or not hasattr(self.model, "encode"):
            return found
        training, held = self.training, self.training.heldout_images
        rows = {
            "train": self._evenly(len(training.captions)),
            "heldout": self._evenly(0 if held is None else len(held)),
        }
        texts = [training.captions[i] for i in rows["train"]] + [training.heldout[i] for i in rows["heldout"]]
        images = training.images[rows["train"]]
        if held is not None:
            images = torch.cat([images, held[rows["heldout"]]])
        latents = torch.cat([self.model.encode(part).cpu() for part in images.split(ENCODED)])
        scale = basin.critical_scale(self.probe_of(texts), latents, torch.arange(len(texts)))
        self.evals += scale.evals
        values = iter(zip(scale.with_caption.tolist(), scale.without.tolist(), strict=True))
        found = {name: {i: next(values) for i in numbers} for name, numbers in rows.items()}
        self.now.sigma_c, self.now.heldout_sigma_c = (
            {i: float(np.log(told)) for i, (told, _) in found[name].items()} for name in ("train", "heldout")
        )
        return found

    def _evenly(self, count: int) -> list[int]:
        """Which of `count` images get their critical scale measured."""
        return np.linspace(0, count - 1, min(self.plan.retention, count)).round().astype(int).tolist()

    def _scales(self, found: dict[str, dict[int, tuple[float, float]]]) -> dict[str, Estimate | None]:
        """The report's numbers about critical scales."""
        if not found["train"]:
            return {}
        told, empty = (np.log([pair[k] for pair in found["train"].values()]) for k in (0, 1))
        now, null = self.now, self.null
        alarm = _alarm(now.sigma_c, null.sigma_c, now.heldout_sigma_c, null.heldout_sigma_c)
        each = list(found["train"])
        return {
            "sigma_c": stats.cluster_bootstrap(np.exp(told), each, _geometric),
            "sigma_c_uncond": stats.cluster_bootstrap(np.exp(empty), each, _geometric),
            "caption_gap": stats.cluster_bootstrap(told - empty, each),
            "sigma_c_since_base": self._since(now.sigma_c, null.sigma_c),
            "sigma_c_excess": alarm.excess if alarm else None,
        }

    def _images(
        self, exits: Sequence[Exit], gaps: dict[int, float], retention: dict[str, dict[int, tuple[float, float]]]
    ) -> tuple[ImageResult, ...]:
        """Images that were sampled or held against noise, and those whose caption's gap rose most."""
        rise = {i: value - self.null.gaps[i] for i, value in gaps.items() if i in self.null.gaps}
        width: dict[int, list[float]] = {}
        for found in exits:
            width.setdefault(self.scope.sampled[found.caption], []).append(found.width)
        worst = sorted(rise, key=lambda i: -rise[i])[:WORST]
        every = sorted({*worst, *width, *retention["train"]}, key=lambda i: -rise.get(i, float("-inf")))
        return tuple(
            ImageResult(
                index=i,
                width=float(np.mean(width[i])) if i in width else None,
                gap_since_base=rise.get(i),
                sigma_c=retention["train"].get(i, (None, None))[0],
                sigma_c_uncond=retention["train"].get(i, (None, None))[1],
            )
            for i in every
        )


def _alarm(
    now: dict[int, float], base: dict[int, float], heldout: dict[int, float], heldout_base: dict[int, float]
) -> Alarm | None:
    """The comparison of what was measured in both models; None where a side is missing."""
    kept, twins = [i for i in now if i in base], [i for i in heldout if i in heldout_base]
    if not kept or not twins:
        return None
    return basin.raise_alarm(
        *(torch.tensor([values[i] for i in kept]) for values in (now, base)),
        *(torch.tensor([values[i] for i in twins]) for values in (heldout, heldout_base)),
    )


def _helpless(uncond: Estimate, risk: float) -> str:
    if uncond.value <= risk:
        return ""
    return (
        f"the empty prompt itself reproduces training images (share {uncond}): guidance at scale 0 before a transition "
        "cannot escape them. Train with keep_unconditional=1, without caption dropout, or take the unconditional "
        "branch from the base model (anchor)"
    )


def _geometric(values: np.ndarray) -> float:
    return float(np.exp(np.log(values).mean()))


def _p95(values: np.ndarray) -> float:
    return float(np.quantile(values, 0.95))
