"""One measurement in progress: what is sampled, what is read off it, and what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..basin.curves import mean_log_width, mean_width, median_exit, risk_curve, static_transition
from ..basin.exit_search import ExitSearch
from ..basin.gap import pair_gaps
from ..basin.trajectories import pairs_of
from ..core import seeds as seed_table
from ..core import stats
from ..core.report import Report
from ..core.report_parts import Basin, CaptionGroup, Exit, Gaps, Heldout, ImageResult, Samples
from ..diffusion.evaluation_count import EvaluationCount
from ..diffusion.model import Model
from ..diffusion.noise_schedule import rule_timesteps
from .coverage import NOISES, Coverage
from .critical_scale_stage import CriticalScalesStage, measure_critical_scales
from .measured_model import Drawn, Instruments, MeasuredModel, uncond_warning
from .measures import Measures, compare_rises, mean_rise
from .taught_ledger import taught_prompts, taught_samples

WORST = 10  # captions named in a report
Early = Callable[[Report], object]


class Probe:
    """Measures a model once.

    Args:
        instruments: what to measure with.
        model: what is measured.
        coverage: what is measured.
        base: what the base model measured; None when this is the base model.

    Attributes:
        now: what was found for every caption and image.
        seconds: of each stage.
        count: rows that went through the network in each stage.
        taught: what samples of the one training caption showed of what was taught, where there is but one.
    """

    def __init__(self, instruments: Instruments, model: Model, coverage: Coverage, base: Measures | None) -> None:
        self.instruments, self.copy_detector = instruments, instruments.copy_detector
        self.training, self.plan, self.coverage = instruments.training, instruments.plan, coverage
        self.count, self.now = EvaluationCount(), Measures()
        self.base = self.now if base is None else base
        self.seconds: dict[str, float] = {}
        self.taught: Heldout | None = None
        self.model, self.measured = model, MeasuredModel(instruments, model, self.count)

    @property
    def seeds(self) -> range:
        """As many as there are: no two pairs share one, and a caption keeps its own at every probe.

        A model that has fallen for its seeds alone, whatever a caption says, would else be counted many times over.
        """
        return seed_table.RANGES["probe"]

    def report(self, epoch: int, train_step: int, start: float, early: Early | None = None) -> Report:
        """Everything covered, in one report; parts that are not stay empty.

        Args:
            epoch, train_step: which weights these are.
            start: when the probe began, on the monotonic clock.
            early: is given what is known before exits are searched for, which is most of the work.
        """
        drawn, samples = self._sampled(epoch)
        with self.count.stage("gap"):
            gaps = self._gaps()
        heldout, groups = self._heldout(epoch)
        with self._stage("critical_scales"):
            critical_scales = self._critical_scales()
        report = Report(
            epoch=epoch, train_step=train_step, unet_evals=self.count.total, seconds=time.monotonic() - start,
            samples=samples, gaps=gaps, critical_scales=critical_scales.summary(self.base), heldout=heldout,
            groups=groups, probed=self.coverage.sampled, precision=self.coverage.precision,
        )  # fmt: skip
        exits: dict[str, Any] = {}
        widths: dict[int, list[float]] = {}
        if drawn is not None and self.coverage.resolution:
            if early is not None:
                early(report)
            exits, widths = self._searched(drawn, groups)
        seconds = time.monotonic() - start
        self.seconds["gap"] = seconds - sum(self.seconds.values())
        exits |= {"images": self._images(widths, critical_scales), "unet_evals": self.count.total, "seconds": seconds}
        return report.model_copy(update=exits)

    def _searched(
        self, drawn: Drawn, groups: tuple[CaptionGroup, ...]
    ) -> tuple[dict[str, Any], dict[int, list[float]]]:
        """What the exits of the samples add to a report, and the basin widths of each image."""
        with self._stage("exits"):
            basin = self._basin(drawn)
            widths = self._widths_of_images(drawn, basin.exits)
            note = uncond_warning(basin.risk_uncond, self.plan.alpha)
            return {"basin": basin, "groups": (*self._groups(drawn, basin.exits), *groups), "note": note}, widths

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        with self.count.stage(name):
            yield
        self.seconds[name] = time.monotonic() - begin

    def _sampled(self, epoch: int) -> tuple[Drawn | None, Samples]:
        """The samples of the captions covered, if any, and what they say."""
        if not self.coverage.sampled:
            return None, Samples()
        with self._stage("samples"):
            drawn = self._draw_training()
            if len(taught_prompts(self.training)) == 1:  # the caption that was trained: these are its samples
                self.taught = self._taught(drawn, epoch)
            return drawn, self._samples(drawn)

    def _draw_training(self) -> Drawn:
        captions = [self.training.captions[i] for i in self.coverage.sampled]
        anchors = self.measured.anchors(captions) if self.coverage.resolution else None
        model = self.measured.guided(captions, self.coverage.timesteps)
        shape, own = self.model.latent_shape, self.plan.seeds
        pairs = pairs_of(self.coverage.sampled, self.seeds, self.coverage.seeds, shape, stride=own)
        return self.measured.draw(captions, model, pairs, anchors)

    def _samples(self, drawn: Drawn) -> Samples:
        return Samples(
            risk=stats.rate(self.copy_detector.copied(drawn.matches), drawn.clusters),
            similarity_p95=drawn.similarity_p95,
            alignment=self.measured.alignment(drawn),
        )

    def _basin(self, drawn: Drawn) -> Basin:
        """The exits of the samples, and what they say."""

        def reproduces_own(latents: Tensor, prompt: Tensor) -> Tensor:
            return self.copy_detector.is_own_copy(
                self.measured.matches(latents), [drawn.captions[k] for k in prompt.tolist()]
            )

        search = ExitSearch(
            drawn.model, drawn.pairs, reproduces_own, anchors=drawn.anchors, plain=drawn.plain,
            reproduced=self.copy_detector.is_own_copy(drawn.matches, drawn.texts),
        )  # fmt: skip
        exits = search.exits(order_checks=self.plan.order_checks, resolution=self.coverage.resolution)
        timesteps, clusters = drawn.model.timesteps, drawn.clusters
        return Basin(
            width=mean_width(exits, clusters),
            log_width=mean_log_width(exits, float(drawn.model.schedule.sigma(rule_timesteps(timesteps)[0])), clusters),
            exit=median_exit(exits, clusters),
            transition=static_transition(exits, timesteps, self.plan.alpha),
            risk_uncond=self.measured.risk_uncond(search),
            curve=tuple(risk_curve(exits, timesteps, clusters)),
            exits=tuple(exits),
        )

    def _gaps(self) -> Gaps:
        """Gap of training and held-out captions, and what they say against the base."""
        control = range(len(self.training.heldout)) if self.coverage.heldout else ()
        first = self.training.first_of
        self.now.gaps = train = self._gap_of(self.coverage.gaps, self.training.captions, self.training.rank_of)
        self.now.heldout = heldout = self._gap_of(control, self.training.heldout, [0] * len(self.training.heldout))
        contrast = compare_rises(train, self.base.gaps, heldout, self.base.heldout, first)
        return Gaps(
            train=stats.cluster_bootstrap(list(train.values()), [first[i] for i in train]),
            heldout=stats.cluster_bootstrap(list(heldout.values()), list(heldout)) if heldout else None,
            since_base=mean_rise(train, self.base.gaps, first),
            excess=contrast.excess if contrast else None,
            auc=contrast.auc if contrast else None,
        )

    def _gap_of(self, rows: Sequence[int], texts: Sequence[str], ranks: Sequence[int]) -> dict[int, float]:
        """Gap of captions, by index; those that say the same take turns at a few noises."""
        if not rows:
            return {}
        seed = torch.tensor([seed_table.PROBE + ranks[i] % NOISES for i in rows])
        model, shape = self.measured.guided([texts[i] for i in rows]), self.model.latent_shape
        gaps = pair_gaps(model, torch.arange(len(rows)), seed, shape)
        return dict(zip(rows, gaps.tolist(), strict=True))

    def _heldout(self, epoch: int) -> tuple[Heldout, tuple[CaptionGroup, ...]]:
        """What captions give that the model never saw; of stand-ins, and within a budget, only what was taught."""
        prompts = self.training.heldout
        full = self.coverage.sample_heldout and bool(prompts) and not self.training.stand_in
        if not full and not (self.coverage.taught and self._asks_heldout):
            return self.taught or Heldout(), ()
        with self._stage("taught"):
            chosen, each = (prompts, 1) if full else taught_samples(self.training)
            pairs = pairs_of(len(chosen), self.seeds, each, self.model.latent_shape)
            drawn = self.measured.draw(chosen, self.measured.guided(chosen), pairs)
            taught = self.taught or self._taught(drawn, epoch)
        if not full:
            return taught, ()
        with self._stage("heldout"):
            return self._followed(drawn, taught), (self._fallen(drawn),)

    @property
    def _asks_heldout(self) -> bool:
        return self.instruments.ledger is not None and taught_prompts(self.training) == self.training.heldout != ()

    def _taught(self, drawn: Drawn, epoch: int) -> Heldout:
        """What these samples show of what was taught; the base model's are what it is held to."""
        ledger = self.instruments.ledger
        if ledger is None:
            return Heldout()
        if epoch < 0:
            ledger.take_base(drawn.images, drawn.texts)
        result = ledger.measure(self.model, drawn.images, drawn.texts, self.copy_detector.copied(drawn.matches))
        if result is None:
            return Heldout()
        rulers = tuple(result.rulers.items())
        return Heldout(taught=result.value, taught_rulers=rulers, taught_problem=result.reason)

    def _followed(self, drawn: Drawn, taught: Heldout) -> Heldout:
        alignment = self.measured.alignment(drawn)
        return taught.model_copy(update={"similarity_p95": drawn.similarity_p95, "alignment": alignment})

    def _fallen(self, drawn: Drawn) -> CaptionGroup:
        """Do captions that the model never saw fall into training images too?"""
        copied = self.copy_detector.copied(drawn.matches)
        return CaptionGroup(
            name="heldout",
            captions=len(drawn.captions),
            risk=stats.rate(copied, drawn.clusters),
            width=stats.cluster_bootstrap(self._widths(drawn, copied), drawn.clusters),
        )

    def _widths(self, drawn: Drawn, copied: Tensor) -> list[float]:
        """Basin width of each sample: of whichever training image it fell into; 0 where it fell into none."""
        widths = [0.0] * len(drawn.pairs)
        if bool(copied.any()):
            rows = copied.nonzero().squeeze(1)
            search = ExitSearch(
                drawn.model, drawn.pairs[rows], lambda x, _: self.copy_detector.copied(self.measured.matches(x))
            )
            for row, exit_ in zip(rows.tolist(), search.exits(), strict=True):
                widths[row] = exit_.width
        return widths

    def _groups(self, drawn: Drawn, exits: Sequence[Exit]) -> Iterator[CaptionGroup]:
        """Captions of one image, and of several."""
        copied = self.copy_detector.copied(drawn.matches)
        together = drawn.clusters
        for name, several in (("unique", False), ("duplicated", True)):
            rows = [r for r, text in enumerate(drawn.texts) if (self.training.count(text) > 1) == several]
            if rows:
                clusters = [together[r] for r in rows]
                yield CaptionGroup(
                    name=name,
                    captions=len(set(clusters)),
                    risk=stats.rate(copied[rows], clusters),
                    width=mean_width([exits[r] for r in rows], clusters),
                )

    def _critical_scales(self) -> CriticalScalesStage:
        """Critical scales of images spread over the set, where the plan asks for them."""
        if not self.plan.critical_scales or not self.coverage.critical_scales or not hasattr(self.model, "encode"):
            return CriticalScalesStage()
        critical_scales = measure_critical_scales(
            self.training, self.model, self.measured.guided, self.plan.critical_scales
        )
        self.now.sigma_c, self.now.heldout_sigma_c = critical_scales.logs("train"), critical_scales.logs("heldout")
        return critical_scales

    def _widths_of_images(self, drawn: Drawn, exits: Sequence[Exit]) -> dict[int, list[float]]:
        """Basin widths of each image that was reproduced, and 0 for one whose caption brought nothing back.

        Who was copied is told by the picture: captions may be shared, and a picture may be there twice.
        """
        widths: dict[int, list[float]] = {}
        for exit_, match in zip(exits, drawn.matches, strict=True):
            sampled = self.coverage.sampled[exit_.caption]
            for index in self.copy_detector.duplicates(match.index) if exit_.width else {sampled}:
                widths.setdefault(index, []).append(exit_.width)
        return widths

    def _images(self, width: dict[int, list[float]], critical_scales: CriticalScalesStage) -> tuple[ImageResult, ...]:
        """Images that were sampled or held against noise, and those whose caption's gap rose most."""
        rise = {i: value - self.base.gaps[i] for i, value in self.now.gaps.items() if i in self.base.gaps}
        worst = sorted(rise, key=lambda i: -rise[i])[:WORST]
        every = sorted({*worst, *width, *critical_scales.train}, key=lambda i: -rise.get(i, float("-inf")))
        return tuple(
            ImageResult(
                index=i,
                width=float(np.mean(width[i])) if i in width else None,
                gap_since_base=rise.get(i),
                sigma_c=critical_scales.train.get(i, (None, None))[0],
                sigma_c_uncond=critical_scales.train.get(i, (None, None))[1],
            )
            for i in every
        )
