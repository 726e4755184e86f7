"""The copy detector chosen by measurement on the user's own images, and what it is expected to miss.

Every embedder at hand sees the training images, edited copies of them as samplers make them, and pictures that are no
copies: each training image among the others, and held-out images. Its threshold is the similarity that a stated share
of the latter exceeds; what it then finds of the former is its score. Two embedders together ("a copy if either says
so") are tried as well, each at half the share. Images whose likeness is that of duplicates are nobody's strangers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from ..core.estimate import Estimate
from ..core.metric import Metric
from ..core.spread import spread
from ..core.stats import wilson
from .aligned import Aligned
from .either import Either
from .embedder import Embedder, WithThreshold
from .matching import Views, best_match, embed_views, search
from .sampler_edits import PIXEL_EDITS, Edit, apply
from .sscd import has_packaged_sscd, load_packaged_sscd
from .structure import Structure
from .thresholds import DUPLICATE, NO_COPY, NullThreshold, null_threshold

FALSE_POSITIVES = 0.01
MOST = 100  # training images that are edited, spread evenly over the set
MOST_BY_MODEL = 24  # of them that go through the model, which takes seconds each at 512 px on a processor
WORTH = 0.01  # of recall that a second embedder must add: it doubles the time of every match
USELESS = 0.5  # mean recall below which no embedder separates copies from others here


@dataclass(frozen=True)
class Row:
    """One embedder, or two, at the threshold of this set.

    Attributes:
        embedder: with that threshold.
        false_positives: the share of images that are no copies which may exceed it.
        recalls: share of the edited copies that it finds, by edit.
    """

    embedder: Embedder
    false_positives: float
    recalls: Mapping[str, Estimate]

    @property
    def recall(self) -> float:
        """Mean over the edits."""
        return float(np.mean([estimate.value for estimate in self.recalls.values()]))

    def __str__(self) -> str:
        listed = ", ".join(f"{name} {estimate.value:.0%}" for name, estimate in self.recalls.items())
        return f"{self.embedder.name} at {self.embedder.metric.threshold:.3g}: {listed}"


@dataclass(frozen=True)
class _Seen:
    """What one embedder made of everything, at both shares of false positives."""

    embedder: Embedder
    nulls: tuple[NullThreshold, NullThreshold]
    similarities: Mapping[str, np.ndarray]

    def at(self, which: int) -> Embedder:
        return WithThreshold(self.embedder, self.nulls[which].beside(self.embedder.metric))

    def hits(self, which: int) -> dict[str, np.ndarray]:
        threshold = self.at(which).metric.threshold
        return {name: values >= threshold for name, values in self.similarities.items()}


def installed_embedders() -> list[Embedder]:
    """What can be tried without asking for anything: the weight-free ones, and SSCD where its package is installed."""
    return [Aligned(), Structure(), *([load_packaged_sscd()] if has_packaged_sscd() else [])]


def choose_detector(
    train: Tensor,
    *,
    embedders: Sequence[Embedder] | None = None,
    heldout: Tensor | None = None,
    model_edits: Mapping[str, Edit] | None = None,
    false_positives: float = FALSE_POSITIVES,
) -> tuple[Embedder, list[Row]]:
    """The embedder, or the pair of them, that finds most of the edited copies, and every row that was compared.

    Args:
        train: training images, [N, 3, H, W] in [0, 1].
        embedders: to choose from; None for every one that is installed.
        heldout: images that were not trained on, [M, 3, H, W].
        model_edits: the model's own, beside those of pixels: name and function on images.
        false_positives: share of images that are no copies which the chosen one may take for one.

    Returns:
        The chosen embedder, its metric naming the share it is expected to find of each edit; and all rows, best first.

    Raises:
        ValueError: fewer than 4 images, or none of the embedders separates copies from other images of the set.
    """
    if len(train) < 4:
        raise ValueError(f"embedder='auto' with {len(train)} training images: 4 are the least to choose by; name one")
    chosen = train[spread(len(train), MOST)]
    few = chosen[:MOST_BY_MODEL] if len(chosen) <= MOST_BY_MODEL else chosen[:: -(-len(chosen) // MOST_BY_MODEL)]
    copies = {name: apply(edit, chosen) for name, edit in PIXEL_EDITS.items()}
    copies |= {name: apply(edit, few) for name, edit in (model_edits or {}).items()}
    seen = [_look(e, train, heldout, copies, false_positives) for e in embedders or installed_embedders()]
    singles = [_row(one.at(0), one.hits(0), false_positives) for one in seen]
    pairs = [_pair(one, two, false_positives) for one, two in combinations(seen, 2)]
    rows = sorted([*singles, *pairs], key=lambda row: row.recall, reverse=True)
    best = max(singles, key=lambda row: row.recall)
    if pairs and rows[0].recall > best.recall + WORTH:
        best = rows[0]
    if best.recall < USELESS:
        raise ValueError(
            f"embedder='auto': no detector at hand separates copies of these images from the others (best: {best}); "
            "install basinguard[sscd], leave out near-duplicates (basinguard curate), or name an embedder and threshold"
        )
    return WithThreshold(best.embedder, _metric(best, len(chosen))), rows


def _look(
    embedder: Embedder, train: Tensor, heldout: Tensor | None, copies: Mapping[str, Tensor], share: float
) -> _Seen:
    views = embed_views(train, embedder)
    null = _strangers(views, embedder)
    if heldout is not None:
        others = best_match(embed_views(heldout, embedder), views.straight, embedder)[0]
        null = np.concatenate([null, others[others < DUPLICATE]])
    nulls = [null_threshold(null, name="auto", gallery=len(train), false_positives=s) for s in (share, share / 2)]
    similarities = {
        name: best_match(embed_views(images, embedder), views.straight, embedder)[0] for name, images in copies.items()
    }
    return _Seen(embedder, (nulls[0], nulls[1]), similarities)


def _strangers(views: Views, embedder: Embedder) -> np.ndarray:
    """Similarity of each training image to the nearest other one that is no duplicate of it, [N]."""
    count = len(views.straight)
    best = np.full(count, -np.inf)
    for view in views:
        values, indices = search(view, views.straight, embedder, k=min(count, 8))
        other = (indices != torch.arange(count)[:, None]) & (values < DUPLICATE)
        best = np.maximum(best, values.masked_fill(~other, -torch.inf).amax(1).numpy())
    return best[np.isfinite(best)]


def _row(embedder: Embedder, hits: Mapping[str, np.ndarray], share: float) -> Row:
    return Row(embedder, share, {name: wilson(int(found.sum()), len(found)) for name, found in hits.items()})


def _pair(one: _Seen, two: _Seen, share: float) -> Row:
    hits = {name: found | two.hits(1)[name] for name, found in one.hits(1).items()}
    first, second = one.at(1), two.at(1)
    if max(first.metric.threshold, second.metric.threshold) >= NO_COPY:
        return _row(one.at(0), one.hits(0), share)
    return _row(Either(first, second, source="auto"), hits, share)


def _metric(row: Row, images: int) -> Metric:
    own = row.embedder.metric
    source = f"auto: finds most of {images} edited training images; {row.false_positives:.2g} of strangers allowed"
    return own.model_copy(update={"source": f"{source}; {own.source}"[:500], "recalls": dict(row.recalls)})
