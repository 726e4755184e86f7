"""What the owner of the images calls a copy: pairs near the threshold to judge, and the threshold fitted to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core.estimate import Estimate
from ..core.metric import Metric
from ..core.schema import MAX_BYTES

WORDS = {"copy": True, "other": False}  # what an answer may be; "unsure" counts as none
FEWEST = 3  # answers of either kind that a threshold needs
RESAMPLES = 2000


@dataclass(frozen=True)
class FittedThreshold:
    """The threshold that agrees best with the owner's answers.

    Attributes:
        metric: the embedder, with that threshold.
        threshold: the same with its interval.
        copies: answers "copy".
        agreement: share of the answers that the threshold before, and the new one, agree with.
    """

    metric: Metric
    threshold: Estimate
    copies: int
    agreement: tuple[float, float]

    def __str__(self) -> str:
        before, now = self.agreement
        return (
            f"{self.threshold.n} pairs judged, {self.copies} of them copies; threshold of {self.metric.embedder}: "
            f"{self.threshold.interval()}; it agrees with {now:.0%} of the answers, the one before with {before:.0%}. "
            f"Use it with --threshold {self.metric.threshold:.4g}"
        )


def near_threshold(similarity: ArrayLike, threshold: float, count: int) -> NDArray[np.int64]:
    """The samples nearest to a threshold, as many above as below where there are that many, by index.

    Example:
        >>> near_threshold([0.1, 0.5, 0.69, 0.71, 0.9, 0.99], 0.7, 4).tolist()
        [1, 2, 3, 4]
    """
    values = np.asarray(similarity, float)
    order = np.argsort(np.abs(values - threshold), kind="stable")
    above, below = order[values[order] >= threshold], order[values[order] < threshold]
    half = count // 2
    upper = above[: max(half, count - len(below))]
    return np.sort(np.concatenate([upper, below[: count - len(upper)]]))


def read_answers(path: Path, pairs: int, fingerprint: str) -> dict[int, bool]:
    """Answers that a page wrote down: whether each judged pair is a copy, by its number.

    Args:
        path: what the page wrote.
        pairs: how many it showed.
        fingerprint: of those pairs: numbers of another page would be about other pictures.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such answers, or of another page.
    """
    try:
        form = json.loads(path.read_bytes()[: MAX_BYTES + 1])
        answers = {int(number): str(word) for number, word in form["answers"].items()}
        theirs = str(form["pairs"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{path}: expected the answers that judge.html writes down") from None
    if theirs != fingerprint or not all(0 <= number < pairs for number in answers):
        raise ValueError(
            f"{path}: answers about other pairs ({theirs[:16]}, these are {fingerprint}): give the samples, images, "
            "detector, threshold and pairs that judge.html was made with"
        )
    return {number: WORDS[word] for number, word in answers.items() if word in WORDS}


def refit(similarity: Sequence[float], copies: Sequence[bool], metric: Metric) -> FittedThreshold:
    """The threshold with the fewest disagreements, in the middle where several have as few.

    Args:
        similarity: of each judged pair, [N].
        copies: what the owner said of it, [N].
        metric: the embedder, and the threshold before.

    Raises:
        ValueError: too few answers of one kind.

    Source: interval: percentile bootstrap over pairs; Efron and Tibshirani (1993), section 13.3.
    """
    values, labels = np.asarray(similarity, float), np.asarray(copies, bool)
    if min(labels.sum(), (~labels).sum()) < FEWEST:
        raise ValueError(
            f"{int(labels.sum())} pairs called copies and {int((~labels).sum())} not: a threshold needs at least "
            f"{FEWEST} of each; judge more pairs, or keep {metric.threshold:g}"
        )
    best = _fewest_errors(values, labels)
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(values), (RESAMPLES, len(values)))
    spread = [_fewest_errors(values[rows], labels[rows]) for rows in drawn if 0 < labels[rows].sum() < len(rows)]
    low, high = np.quantile(spread, [0.025, 0.975])
    threshold = Estimate(
        value=best, low=min(low, best), high=max(high, best), level=0.95, n=len(values), method="bootstrap over pairs"
    )
    source = f"the owner's judgement of {len(values)} pairs near {metric.threshold:g}: {threshold}"
    agreement = tuple(float(((values >= at) == labels).mean()) for at in (metric.threshold, best))
    judged = Metric(embedder=metric.embedder, threshold=best, source=source[:500])
    return FittedThreshold(judged, threshold, int(labels.sum()), (agreement[0], agreement[1]))


def _fewest_errors(values: NDArray, labels: NDArray) -> float:
    order = np.argsort(values)
    values, labels = values[order], labels[order]
    missed = np.concatenate([[0], labels.cumsum()])  # copies below each cut
    wrong = np.concatenate([(~labels)[::-1].cumsum()[::-1], [0]])  # others above it
    cuts = np.flatnonzero(missed + wrong == (missed + wrong).min())
    ends = np.concatenate([[values[0]], (values[1:] + values[:-1]) / 2, [values[-1]]])
    return float(ends[cuts[len(cuts) // 2]])
