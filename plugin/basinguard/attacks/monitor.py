"""Does the promise still hold in use? A count of copies that may be looked at after every sample.

A deployment checks what it draws with the copy detector; after each sample the monitor says how high the risk may be,
whether it is proven to lie above what was promised, and whether the samples are still like those that the promise was
measured on. Each of the three is wrong with probability delta at most over the whole life of the stream, however often
one looks: that is what a confidence interval for a fixed n does not give.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field
from torch import Tensor

from ..core.betting import anytime_interval, anytime_upper, log_capital_above
from ..core.estimate import Estimate
from ..core.record import SIMILARITY_DIGITS, Record
from ..core.schema import Finite, Schema
from ..exports.fingerprints import dataset_sha256
from ..similarity.copy_detector import CopyDetector
from .exchangeability import ConformalRanks, log_mixture


class Reading(Schema):
    """What a stream shows so far.

    Attributes:
        samples, copies: how many were seen, and how many of them copy.
        risk: share of copies, with an interval that holds at every sample at once.
        upper: upper bound of the risk at level 1 - delta, one-sided, likewise; 1 before the first sample.
        alpha, delta: what was promised.
        evidence: log capital against "the risk is at most alpha".
        breached: whether that evidence ever reached log(1 / delta): the risk is above alpha.
        proven: whether `upper` is at most alpha now: the promise is proven by the stream itself.
        shift: log capital against "these samples are like those of the calibration"; None without those.
        shifted: whether that ever reached log(1 / delta): the promise is about other samples than these.
    """

    samples: Annotated[int, Field(ge=0)]
    copies: Annotated[int, Field(ge=0)]
    risk: Estimate | None
    upper: Finite
    alpha: Finite
    delta: Finite
    evidence: Finite
    breached: bool
    proven: bool
    shift: Finite | None = None
    shifted: bool = False

    def __str__(self) -> str:
        counts = f"{self.copies} copies among {self.samples} samples; the risk is at most {self.upper:.1%}"
        state = "BREACHED" if self.breached else "kept" if self.proven else "not refuted, not yet proven"
        how = f"at every sample at once, wrong with probability {self.delta:g}"
        line = f"{counts} ({how}); alpha = {self.alpha:g}: {state}"
        if self.shift is None:
            return line
        like = "are NOT like" if self.shifted else "cannot be told from"
        return f"{line}; these samples {like} those that the promise was measured on"


class Monitor:
    """Watches a stream of samples.

    Args:
        copy_detector: says what is a copy.
        alpha: the risk that was promised.
        delta: chance that each of its statements is ever wrong.
        calibration: similarities of samples that the promise was measured on, where they are known; their order plays
            no part, and they are rounded as a record's are.
        seed: of the order they are ranked in, and of ties.

    Raises:
        ValueError: alpha or delta outside (0, 1).

    Example:
        >>> monitor = Monitor.of_record(record, detector)                         # doctest: +SKIP
        >>> print(monitor.see(images))                                            # doctest: +SKIP
        0 copies among 32 samples; the risk is at most 11.1% ...
    """

    def __init__(
        self,
        copy_detector: CopyDetector,
        alpha: float,
        delta: float = 0.05,
        calibration: Sequence[float] = (),
        seed: int = 0,
    ) -> None:
        if not (0 < alpha < 1 and 0 < delta < 1):
            raise ValueError(f"Monitor(alpha={alpha}, delta={delta}): expected numbers strictly between 0 and 1")
        self.copy_detector, self.alpha, self.delta = copy_detector, alpha, delta
        self.samples = self.copies = 0
        self._breached = self._shifted = False
        self._ranks = ConformalRanks(seed) if len(calibration) else None
        self._log_p = self._log_p_count = 0.0
        for score in np.random.default_rng(seed).permutation(np.asarray(calibration, float)).tolist():
            assert self._ranks is not None
            self._ranks.p_value(_rounded(score))  # exchangeable by the shuffle: nothing is bet on them

    @classmethod
    def of_record(cls, record: Record, copy_detector: CopyDetector, alpha: float = 0.0, delta: float = 0.0) -> Monitor:
        """A monitor of what a record promises, with the samples of its proof where they can be compared with.

        Args:
            record: of the export.
            copy_detector: on its training images.
            alpha, delta: as above; the record's where 0.
        """
        calibration = () if incomparable(record, copy_detector) else record.similarities
        return cls(copy_detector, alpha or record.alpha, delta or record.delta, calibration)

    def see(self, images: Tensor) -> Reading:
        """Checks images [N, 3, H, W] in [0, 1], in the order they were drawn."""
        return self.see_similarities([match.similarity for match in self.copy_detector.matches(images)])

    def see_similarities(self, similarities: Sequence[float]) -> Reading:
        """The same of similarities to the nearest training image that the copy detector gave before."""
        threshold = self.copy_detector.embedder.metric.threshold
        for similarity in similarities:
            self.samples += 1
            self.copies += similarity >= threshold
            self._breached |= self._evidence() >= -math.log(self.delta)
            if self._ranks is not None:
                self._log_p += math.log(self._ranks.p_value(_rounded(similarity)))
                self._log_p_count += 1
                self._shifted |= self._shift() >= -math.log(self.delta)
        return self.reading()

    def reading(self) -> Reading:
        """What the stream shows so far."""
        upper = float(anytime_upper(self.copies, self.samples, self.delta))
        return Reading(
            samples=self.samples,
            copies=self.copies,
            risk=anytime_interval(self.copies, self.samples, 1 - self.delta) if self.samples else None,
            upper=upper,
            alpha=self.alpha,
            delta=self.delta,
            evidence=self._evidence(),
            breached=self._breached,
            proven=upper <= self.alpha and not self._breached,
            shift=None if self._ranks is None else self._shift(),
            shifted=self._shifted,
        )

    def _evidence(self) -> float:
        return float(log_capital_above(self.copies, self.samples, self.alpha))

    def _shift(self) -> float:
        return float(log_mixture(self._log_p, self._log_p_count))


def incomparable(record: Record, copy_detector: CopyDetector) -> str:
    """Why samples in use cannot be compared with those of a record's proof; "" where they can."""
    own, metric = record.metric.embedder, copy_detector.embedder.metric
    if not record.similarities:
        return "the record holds no similarities of its proof: it was made by an earlier version"
    if metric.embedder != own:
        return f"the record's similarities are of {own}, these of {metric.embedder}"
    if dataset_sha256(copy_detector.images, copy_detector.captions) != record.dataset_sha256:
        return "the record's similarities are to other training images, or other captions, than were given"
    return ""


def _rounded(similarity: float) -> float:
    return round(similarity, SIMILARITY_DIGITS)
