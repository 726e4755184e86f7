"""One measurement in progress: what is sampled, what is read off it, and what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import basin
from ..basin.curves import log_sigma_width
from ..basin.exits import Guided, guided
from ..core import seeds as seed_table
from ..core import stats
from ..core.estimate import Estimate
from ..core.metric import Match
from ..core.report import Basin, Exit, Gaps, Group, Heldout, ImageResult, Report, Samples
from ..diffusion.model import Model
from ..similarity.copy_detector import CopyDetector
from .critical_scales import ENCODED, Scales, measure_scales
from .plan import ProbePlan
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
        samples, basin_, heldout = Samples(), Basin(), Heldout()
        groups: list[Group] = []
        if self.scope.sampled:
            with self._stage("samples"):
                self.sampled = drawn = self._draw()
                samples = self._samples(drawn)
            if self.scope.resolution:
                with self._stage("exits"):
                    basin_ = self._basin(drawn)
                    groups = self._groups(drawn, basin_.exits)
        gaps = self._gaps()
        if self.scope.thorough and self.training.heldout and not self.training.borrowed:
            with self._stage("heldout"):  # stand-ins are there for the alarms alone
                heldout, group = self._heldout()
                groups.append(group)
        with self._stage("scales"):
            scales = self._scales()
        seconds = time.monotonic() - start
        self.took["gap"] = seconds - sum(self.took.values())
        return Report(
            epoch=epoch,
            train_step=train_step,
            unet_evals=sum(self.evals.values()),
            seconds=seconds,
            samples=samples,
            basin=basin_,
            gaps=gaps,
            critical_scales=scales.summary(self.null),
            heldout=heldout,
            groups=tuple(groups),
            images=self._images(basin_.exits, scales),
            probed=self.scope.sampled,
            precision=self.scope.precision,
            note=_helpless(basin_.risk_uncond, self.plan.alpha),
        )

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
        pairs = basin.pairs_of(
            self.scope.sampled, self.seeds, self.scope.seeds, self.model.latent_shape, stride=self.plan.seeds
        )
        begun = guided(probe, pairs, anchors)
        self._count("samples", begun.evals)
        images = self.model.decode(begun.ends)
        return Sampled(captions, probe, pairs, anchors, begun, images, self.copy_detector.matches(images))

    def _samples(self, drawn: Sampled) -> Samples:
        """What the samples themselves say."""
        clusters = drawn.pairs.prompt.tolist()
        similarity = [match.similarity for match in drawn.matches]
        return Samples(
            risk=stats.rate(self.copy_detector.copied(drawn.matches), clusters),
            similarity_p95=stats.cluster_bootstrap(similarity, clusters, stats.p95),
            alignment=self._alignment(drawn.images, [drawn.captions[k] for k in clusters], clusters),
        )

    def _basin(self, drawn: Sampled) -> Basin:
        """The exits of the samples, and what they say."""
        stem = basin.trunk(drawn.probe, drawn.pairs)
        self._count("exits", stem.evals)
        first = self.copy_detector.is_own_copy(drawn.matches, [drawn.captions[k] for k in drawn.pairs.prompt.tolist()])

        def judge(latents: Tensor, prompt: Tensor) -> Tensor:
            return self.copy_detector.is_own_copy(self._seen(latents), [drawn.captions[k] for k in prompt.tolist()])

        exits, cost = basin.find_exits(
            drawn.probe, drawn.pairs, judge, first=first, start=drawn.begun, stem=stem, anchors=drawn.anchors,
            checks=self.plan.order_checks, resolution=self.scope.resolution,
        )  # fmt: skip
        self._count("exits", cost)
        uncond, timesteps = self._uncond(drawn.probe, stem), drawn.probe.timesteps
        return Basin(
            width=basin.width(exits),
            log_width=log_sigma_width(exits, float(drawn.probe.schedule.sigma(timesteps[0]))),
            exit=basin.median_exit(exits),
            transition=basin.static_transition(exits, timesteps, self.plan.alpha),
            risk_uncond=uncond,
            curve=tuple(basin.curve(exits, timesteps)),
            exits=tuple(exits),
        )

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

    def _gaps(self) -> Gaps:
        """Gap of training and held-out captions, and what they say against the base."""
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
        train, heldout = self.now.gaps, self.now.heldout = found
        alarm = alarm_of(train, self.null.gaps, heldout, self.null.heldout)
        return Gaps(
            train=stats.cluster_bootstrap(list(train.values()), list(train)),
            heldout=stats.cluster_bootstrap(list(heldout.values()), list(heldout)) if heldout else None,
            since_base=since(train, self.null.gaps),
            excess=alarm.excess if alarm else None,
            auc=alarm.auc if alarm else None,
        )

    def _heldout(self) -> tuple[Heldout, Group]:
        """Do captions that the model never saw fall into training images too, and what do they give?"""
        prompts = self.training.heldout
        probe, pairs = self.probe_of(prompts), basin.pairs_of(len(prompts), self.seeds, 1, self.model.latent_shape)
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
        part = Heldout(
            similarity_p95=stats.cluster_bootstrap([m.similarity for m in matches], clusters, stats.p95),
            alignment=self._alignment(images, [prompts[k] for k in clusters], clusters),
            fidelity=stats.cluster_bootstrap(self.faithful(images), clusters) if self.faithful else None,
        )
        return part, group

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
        if not self.plan.critical_scales or not self.scope.scales or not hasattr(self.model, "encode"):
            return Scales()
        found = measure_scales(self.training, self.model, self.probe_of, self.plan.critical_scales)
        self._count("scales", found.evals)
        self.now.sigma_c, self.now.heldout_sigma_c = found.logs("train"), found.logs("heldout")
        return found

    def _images(self, exits: Sequence[Exit], scales: Scales) -> tuple[ImageResult, ...]:
        """Images that were sampled or held against noise, and those whose caption's gap rose most."""
        rise = {i: value - self.null.gaps[i] for i, value in self.now.gaps.items() if i in self.null.gaps}
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


def _helpless(uncond: Estimate | None, risk: float) -> str:
    if uncond is None or uncond.value <= risk:
        return ""
    return (
        f"the empty prompt itself reproduces training images (share {uncond}): guidance at scale 0 before a transition "
        "cannot escape them. Train with keep_unconditional=1, without caption dropout, or take the unconditional "
        "branch from the base model (anchor)"
    )
