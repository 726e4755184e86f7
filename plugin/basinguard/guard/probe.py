"""One measurement in progress: what is sampled, what is read off it, and what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import basin
from ..basin.curves import log_sigma_width
from ..basin.exits import Guided, guided
from ..basin.gap import Alarm
from ..core import seeds as seed_table
from ..core import stats
from ..core.estimate import Estimate
from ..core.metric import Match
from ..core.report import Exit, Group, ImageResult, Report
from ..diffusion.model import Model
from ..similarity.copy_detector import CopyDetector
from .critical_scales import ENCODED, Scales, measure_scales
from .plan import ProbePlan, pairs_of
from .scope import Scope, Table, alarm_of, since
from .training_set import TrainingSet

Align = Callable[[Tensor, Sequence[str]], Tensor]
Faithful = Callable[[Tensor], Tensor]
GAP_SEEDS = (seed_table.PROBE,)
SEEDS = 8  # seeds that captions share, going round: one unguided trajectory each
WORST = 10  # captions named in a report


@dataclass(frozen=True)
class Sampled:
    """What ordinary CFG gave for the sampled captions.

    Attributes:
        captions: their texts; what `pairs.prompt` counts in.
        probe, pairs: the model with these captions, and the trajectories.
        anchors: latents of the training images, where the model can encode.
        begun: the trajectories.
        images: their ends, [N, 3, H, W].
        matches: the nearest training image of each.
    """

    captions: list[str]
    probe: basin.Probe
    pairs: basin.Pairs
    anchors: basin.Anchors | None
    begun: Guided
    images: Tensor
    matches: list[Match]


class Look:
    """Measures a model once.

    Args:
        copy_detector: says what reproduces a training image.
        training: images and captions.
        plan: sampler, scale and limits.
        model: what is measured.
        scope: what is covered.
        null: what the base model measured; None when this is the base model.
        align: agreement of images and captions.
        faithful: how far each image looks like the subject.

    Attributes:
        now: what was found for every caption and image.
        sampled: the samples; None where the scope has none.
        took, evals: seconds and sample-evaluations of each stage.
    """

    def __init__(
        self,
        copy_detector: CopyDetector,
        training: TrainingSet,
        plan: ProbePlan,
        model: Model,
        scope: Scope,
        null: Table | None,
        align: Align | None,
        faithful: Faithful | None = None,
    ) -> None:
        self.copy_detector, self.plan, self.model, self.scope, self.align = copy_detector, plan, model, scope, align
        self.faithful = faithful
        self.training, self.now = training, Table()
        self.null = self.now if null is None else null
        self.sampled: Sampled | None = None
        self.took: dict[str, float] = {}
        self.evals: dict[str, int] = {}

    @property
    def seeds(self) -> range:
        """Seeds that captions share; the same at every probe, so that a caption keeps its noise."""
        return range(seed_table.PROBE, seed_table.PROBE + max(SEEDS, self.plan.seeds))

    def probe_of(self, prompts: Sequence[str]) -> basin.Probe:
        """The model with these prompts."""
        grid = self.model.schedule.grid(self.plan.timesteps)
        denoise = self.model.denoiser(prompts)
        return basin.Probe(denoise, self.model.schedule, grid, self.plan.scale, self.plan.chunk, self.plan.solver)

    def report(self, epoch: int, train_step: int, start: float) -> Report:
        """Everything in scope, in one report; what is not stays None."""
        found: dict[str, Any] = {name: None for name, field in Report.model_fields.items() if field.is_required()}
        exits: list[Exit] = []
        if self.scope.sampled:
            with self._stage("samples"):
                self.sampled = drawn = self._draw()
                found |= self._risk(drawn)
            if self.scope.resolution:
                with self._stage("exits"):
                    exits = self._exits(drawn, found)
        gaps, alarm = self._gaps()
        if self.scope.thorough:
            with self._stage("heldout"):
                found |= self._heldout(found.get("groups", ()))
        with self._stage("scales"):
            scales = self._scales()
        found |= {
            "epoch": epoch,
            "train_step": train_step,
            "gap": stats.cluster_bootstrap(list(gaps[0].values()), list(gaps[0])),
            "gap_heldout": stats.cluster_bootstrap(list(gaps[1].values()), list(gaps[1])) if gaps[1] else None,
            "gap_since_base": since(gaps[0], self.null.gaps),
            "gap_excess": alarm.excess if alarm else None,
            "gap_auc": alarm.auc if alarm else None,
            "images": self._images(exits, gaps[0], scales),
            "probed": self.scope.sampled,
            "precision": self.scope.precision,
            "unet_evals": sum(self.evals.values()),
            **scales.told(self.null),
        }
        seconds = time.monotonic() - start
        self.took["gap"] = seconds - sum(self.took.values())
        return Report.model_validate(found | {"seconds": seconds})

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.took[name] = time.monotonic() - begin

    def _count(self, stage: str, evals: int) -> None:
        self.evals[stage] = self.evals.get(stage, 0) + evals

    def _draw(self) -> Sampled:
        """Ordinary CFG for the captions in scope."""
        captions = [self.training.captions[i] for i in self.scope.sampled]
        probe, anchors = self.probe_of(captions), self._anchors(captions)
        pairs = pairs_of(
            self.scope.sampled, self.seeds, self.scope.seeds, self.model.latent_shape, stride=self.plan.seeds
        )
        begun = guided(probe, pairs, anchors)
        self._count("samples", begun.evals)
        images = self.model.decode(begun.ends)
        return Sampled(captions, probe, pairs, anchors, begun, images, self.copy_detector.matches(images))

    def _risk(self, drawn: Sampled) -> dict[str, Any]:
        """What the samples themselves say."""
        clusters = drawn.pairs.prompt.tolist()
        similarity = [match.similarity for match in drawn.matches]
        return {
            "risk": stats.rate(self.copy_detector.copied(drawn.matches), clusters),
            "similarity_p95": stats.cluster_bootstrap(similarity, clusters, stats.p95),
            "alignment": self._alignment(drawn.images, [drawn.captions[k] for k in clusters], clusters),
        }

    def _exits(self, drawn: Sampled, found: dict[str, Any]) -> list[Exit]:
        """Looks for the exits of the samples, and adds what they say to `found`."""
        stem = basin.trunk(drawn.probe, drawn.pairs)
        self._count("exits", stem.evals)
        first = self.copy_detector.is_own_copy(drawn.matches, [drawn.captions[k] for k in drawn.pairs.prompt.tolist()])

        def judge(latents: Tensor, prompt: Tensor) -> Tensor:
            return self.copy_detector.is_own_copy(self._seen(latents), [drawn.captions[k] for k in prompt.tolist()])

        exits, cost = basin.find_exits(
            drawn.probe, drawn.pairs, judge, first=first, start=drawn.begun, stem=stem, anchors=drawn.anchors,
            checks=self.plan.checks, resolution=self.scope.resolution,
        )  # fmt: skip
        self._count("exits", cost)
        uncond, timesteps = self._uncond(drawn.probe, stem), drawn.probe.timesteps
        found |= {
            "width": basin.width(exits),
            "log_width": log_sigma_width(exits, float(drawn.probe.schedule.sigma(timesteps[0]))),
            "exit": basin.median_exit(exits),
            "transition": basin.static_transition(exits, timesteps, self.plan.alpha),
            "risk_uncond": uncond,
            "note": _helpless(uncond, self.plan.alpha),
            "curve": tuple(basin.curve(exits, timesteps)),
            "exits": tuple(exits),
            "groups": tuple(self._groups(drawn, exits)),
        }
        return exits

    def _anchors(self, captions: Sequence[str]) -> basin.Anchors | None:
        """Latents of every image that counts as a sampled caption's own, and of their mirror images."""
        if not hasattr(self.model, "encode"):
            return None
        own = [(i, k) for k, text in enumerate(captions) for i in self._images_of(text)]
        pixels = self.training.images[[i for i, _ in own]]
        latents = torch.cat([self.model.encode(part) for part in torch.cat([pixels, pixels.flip(-1)]).split(ENCODED)])
        return basin.Anchors(latents.cpu(), torch.tensor([k for _, k in own] * 2))

    def _images_of(self, caption: str) -> list[int]:
        return [i for i, text in enumerate(self.training.captions) if text == caption]

    def _seen(self, latents: Tensor) -> list[Match]:
        """Matches of latents; rows that are the same are decoded once."""
        unique, row = torch.unique(latents, dim=0, return_inverse=True)
        found = self.copy_detector.matches(self.model.decode(unique))
        return [found[k] for k in row.tolist()]

    def _gaps(self) -> tuple[tuple[dict[int, float], dict[int, float]], Alarm | None]:
        """Gap of training and held-out captions by index, and what they say against the base."""
        shape = self.model.latent_shape
        found: list[dict[int, float]] = []
        held = tuple(range(len(self.training.heldout))) if self.scope.heldout else ()
        for numbers, texts in ((self.scope.gaps, self.training.captions), (held, self.training.heldout)):
            values: dict[int, float] = {}
            if numbers:
                probe = self.probe_of([texts[i] for i in numbers])
                gaps, cost = basin.caption_gaps(probe, len(numbers), GAP_SEEDS, shape)
                values = dict(zip(numbers, gaps.mean(1).tolist(), strict=True))
                self._count("gap", cost)
            found.append(values)
        self.now.gaps, self.now.heldout = found
        return (found[0], found[1]), alarm_of(found[0], self.null.gaps, found[1], self.null.heldout)

    def _heldout(self, groups: tuple[Group, ...]) -> dict[str, Any]:
        """Do captions that the model never saw fall into training images too, and what do they give?"""
        prompts = self.training.heldout
        if not prompts or self.training.borrowed:  # stand-ins are there for the alarms alone
            return {}
        probe, pairs = self.probe_of(prompts), pairs_of(len(prompts), self.seeds, 1, self.model.latent_shape)
        begun = guided(probe, pairs)
        images = self.model.decode(begun.ends)
        matches = self.copy_detector.matches(images)
        copied = self.copy_detector.copied(matches)
        width = [0.0] * len(pairs)
        self._count("heldout", begun.evals)
        if bool(copied.any()):
            rows = copied.nonzero().squeeze(1)
            exits, cost = basin.find_exits(probe, pairs[rows], lambda x, _: self.copy_detector.copied(self._seen(x)))
            self._count("heldout", cost)
            for row, found in zip(rows.tolist(), exits, strict=True):
                width[row] = found.width
        group = Group(
            name="heldout",
            captions=len(prompts),
            risk=stats.rate(copied, pairs.prompt),
            width=stats.cluster_bootstrap(width, pairs.prompt),
        )
        clusters = pairs.prompt.tolist()
        return {
            "similarity_heldout": stats.cluster_bootstrap([m.similarity for m in matches], clusters, stats.p95),
            "alignment_heldout": self._alignment(images, [prompts[k] for k in clusters], clusters),
            "fidelity": stats.cluster_bootstrap(self.faithful(images), clusters) if self.faithful else None,
            "groups": (*groups, group),
        }

    def _uncond(self, probe: basin.Probe, stem: basin.Trunk) -> Estimate:
        """Does the empty prompt alone reproduce training images? Then guidance at scale 0 cannot help."""
        ends = probe.path.latents(stem.states[-1])
        return stats.rate(self.copy_detector.is_copy(self.model.decode(ends)), torch.arange(len(ends)))

    def _alignment(self, images: Tensor, captions: Sequence[str], clusters: Sequence[int]) -> Estimate | None:
        return None if self.align is None else stats.cluster_bootstrap(self.align(images, captions), clusters)

    def _groups(self, drawn: Sampled, exits: Sequence[Exit]) -> list[Group]:
        """Captions of one image, and of several."""
        groups, copied = [], self.copy_detector.copied(drawn.matches)
        for name, several in (("unique", False), ("duplicated", True)):
            rows = [r for r, e in enumerate(exits) if (self.training.count(drawn.captions[e.caption]) > 1) == several]
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

    def _scales(self) -> Scales:
        """Critical scales of images spread over the set, where the plan asks for them."""
        if not self.plan.retention or not self.scope.scales or not hasattr(self.model, "encode"):
            return Scales()
        found = measure_scales(self.training, self.model, self.probe_of, self.plan.retention)
        self._count("scales", found.evals)
        self.now.sigma_c, self.now.heldout_sigma_c = found.logs("train"), found.logs("heldout")
        return found

    def _images(self, exits: Sequence[Exit], gaps: dict[int, float], scales: Scales) -> tuple[ImageResult, ...]:
        """Images that were sampled or held against noise, and those whose caption's gap rose most."""
        rise = {i: value - self.null.gaps[i] for i, value in gaps.items() if i in self.null.gaps}
        width: dict[int, list[float]] = {}
        for found in exits:
            width.setdefault(self.scope.sampled[found.caption], []).append(found.width)
        worst = sorted(rise, key=lambda i: -rise[i])[:WORST]
        every = sorted({*worst, *width, *scales.train}, key=lambda i: -rise.get(i, float("-inf")))
        return tuple(
            ImageResult(
                index=i,
                width=float(np.mean(width[i])) if i in width else None,
                gap_since_base=rise.get(i),
                sigma_c=scales.train.get(i, (None, None))[0],
                sigma_c_uncond=scales.train.get(i, (None, None))[1],
            )
            for i in every
        )


def _helpless(uncond: Estimate, risk: float) -> str:
    if uncond.value <= risk:
        return ""
    return (
        f"the empty prompt itself reproduces training images (share {uncond}): guidance at scale 0 before a transition "
        "cannot escape them. Train with keep_unconditional=1, without caption dropout, or take the unconditional "
        "branch from the base model (anchor)"
    )
