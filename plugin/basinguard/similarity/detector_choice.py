"""The copy detector chosen by measurement on the user's own images, and what it is expected to miss.

Every embedder at hand sees the training images, edited copies of them as samplers make them, and pictures that are no
copies: each training image among the others, and held-out images. Its threshold is the similarity that a stated share
of the latter exceeds; what it then finds of the former is its score. Two embedders together ("a copy if either says
so") are tried as well, each at half the share. Images whose likeness is that of duplicates are nobody's strangers.
What was chosen is kept by content (`choice_cache`).
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
from .choice_cache import ComparedDetectors, content_key, remembered, store_choice
from .either import NAME as PAIR
from .either import Either
from .embedder import Embedder, WithThreshold, embed_all
from .matching import Views, best_match, embed_views, search
from .sampler_edits import PIXEL_EDITS, Edit, apply
from .sscd import has_packaged_sscd, load_packaged_sscd
from .structure import Structure
from .structure_figure import StructureFigure
from .thresholds import DUPLICATE, NO_COPY, NullThreshold, null_threshold

FALSE_POSITIVES = 0.01
MOST = 100  # training images that are edited, spread evenly over the set
MOST_BY_MODEL = 24  # of them that go through the model, which takes seconds each at 512 px on a processor
WORTH = 0.01  # of recall that a second embedder must add: it doubles the time of every match
USELESS = 0.5  # mean recall below which no embedder separates copies from others here


@dataclass(frozen=True)
class DetectorCandidate:
    """One embedder, or two, at the threshold of this set; its metric says what it is expected to find of each edit."""

    embedder: Embedder

    @property
    def recalls(self) -> Mapping[str, Estimate]:
        """Share of the edited copies that it finds, by edit."""
        return self.embedder.metric.recalls

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
    return [Aligned(), Structure(), StructureFigure(), *([load_packaged_sscd()] if has_packaged_sscd() else [])]


@dataclass(frozen=True)
class ModelEdits:
    """What the very model does to a picture, beside the edits of pixels.

    Attributes:
        edits: name and function on images [B, 3, H, W] in [0, 1].
        model: what they belong to, such as the hash of its weights: another model's choice is another.
    """

    edits: Mapping[str, Edit]
    model: str


def choose_detector(
    train: Tensor,
    *,
    embedders: Sequence[Embedder] | None = None,
    heldout: Tensor | None = None,
    model_edits: ModelEdits | None = None,
    false_positives: float = FALSE_POSITIVES,
) -> tuple[Embedder, list[DetectorCandidate]]:
    """The embedder, or the pair of them, that finds most of the edited copies, and every row that was compared.

    Args:
        train: training images, [N, 3, H, W] in [0, 1].
        embedders: to choose from; None for every one that is installed.
        heldout: images that were not trained on, [M, 3, H, W].
        model_edits: the model's own, beside those of pixels.
        false_positives: share of images that are no copies which the chosen one may take for one.

    Returns:
        The chosen embedder, its metric naming the share it is expected to find of each edit; and all rows, best first.

    Raises:
        ValueError: fewer than 4 images, or none of the embedders separates copies from other images of the set.
    """
    if len(train) < 4:
        raise ValueError(f"embedder='auto' with {len(train)} training images: 4 are the least to choose by; name one")
    embedders = embedders or installed_embedders()
    own = model_edits or ModelEdits({}, "")
    words = [*(str(e.metric.to_json()) for e in embedders), f"{false_positives}", own.model, *own.edits, *PIXEL_EDITS]
    key = content_key([train, heldout], words)
    choice = remembered(key)
    if choice is None:
        chosen, rows = _compare(train, embedders, heldout, own.edits, false_positives)
        store_choice(key, ComparedDetectors(rows=(chosen.embedder.metric, *(row.embedder.metric for row in rows))))
        return chosen.embedder, rows
    rebuilt = [_rebuilt(metric, embedders) for metric in choice.rows]
    return rebuilt[0], [DetectorCandidate(embedder) for embedder in rebuilt[1:]]


def _compare(
    train: Tensor, embedders: Sequence[Embedder], heldout: Tensor | None, own: Mapping[str, Edit], share: float
) -> tuple[DetectorCandidate, list[DetectorCandidate]]:
    images = train[spread(len(train), MOST)]
    few = images[spread(len(images), MOST_BY_MODEL)]
    copies = {name: apply(edit, images) for name, edit in PIXEL_EDITS.items()}
    copies |= {name: apply(edit, few) for name, edit in own.items()}
    candidates = [_candidate(embedder, train, heldout, copies, share) for embedder in embedders]
    note = f"auto: finds most of {len(images)} edited training images; {share:.2g} of strangers allowed"
    singles = [_row(one.at(0), one.hits(0), note) for one in candidates]
    pairs = [row for one, two in combinations(candidates, 2) if (row := _pair(one, two, note))]
    rows = sorted([*singles, *pairs], key=lambda row: row.recall, reverse=True)
    best = max(singles, key=lambda row: row.recall)
    if rows[0].recall > best.recall + WORTH:
        best = rows[0]
    if best.recall < USELESS:
        raise ValueError(
            f"embedder='auto': no detector at hand separates copies of these images from the others (best: {best}); "
            "install basinguard[sscd], leave out near-duplicates (basinguard curate), or name an embedder and threshold"
        )
    return best, rows


def _candidate(
    embedder: Embedder, train: Tensor, heldout: Tensor | None, copies: Mapping[str, Tensor], share: float
) -> _Seen:
    views = embed_views(train, embedder)
    null = _strangers(views, embedder)
    if heldout is not None:
        others = best_match(embed_views(heldout, embedder), views.straight, embedder)[0]
        null = np.concatenate([null, others[others < DUPLICATE]])
    nulls = [null_threshold(null, name="auto", gallery=len(train), false_positives=s) for s in (share, share / 2)]
    similarities = {
        name: search(embed_all(images, embedder), views.straight, embedder)[0][:, 0].cpu().numpy()
        for name, images in copies.items()
    }  # none of the edits mirrors
    return _Seen(embedder, (nulls[0], nulls[1]), similarities)


def _strangers(views: Views, embedder: Embedder) -> np.ndarray:
    """Similarity of each training image to the nearest other one that is no duplicate of it, [N]."""
    count = len(views.straight)
    best = np.full(count, -np.inf)
    for view in views:
        values, indices = search(view, views.straight, embedder, k=min(count, 8))
        other = (indices != torch.arange(count)[:, None]) & (values < DUPLICATE)
        nearest = values.gather(1, other.float().argmax(1, keepdim=True))[:, 0]  # they stand in the order of likeness
        best = np.maximum(best, nearest.masked_fill(~other.any(1), -torch.inf).numpy())
    return best[np.isfinite(best)]


def _pair(one: _Seen, two: _Seen, note: str) -> DetectorCandidate | None:
    """Both at half the share; None where one of them would call nothing a copy."""
    first, second = one.at(1), two.at(1)
    if max(first.metric.threshold, second.metric.threshold) >= NO_COPY:
        return None
    hits = {name: hit | two.hits(1)[name] for name, hit in one.hits(1).items()}
    return _row(Either(first, second, source="auto"), hits, note)


def _row(embedder: Embedder, hits: Mapping[str, np.ndarray], note: str) -> DetectorCandidate:
    recalls = {name: wilson(int(hit.sum()), len(hit)) for name, hit in hits.items()}
    source = f"{note}; {embedder.metric.source}"[:500]
    metric = embedder.metric.model_copy(update={"source": source, "recalls": recalls})
    inner = embedder.embedder if isinstance(embedder, WithThreshold) else embedder
    return DetectorCandidate(WithThreshold(inner, metric))


def _rebuilt(metric: Metric, embedders: Sequence[Embedder]) -> Embedder:
    """The embedder, or the pair of those at hand, that a kept metric names."""
    by_name = {embedder.name: embedder for embedder in embedders}
    if pair := PAIR.fullmatch(metric.embedder):
        first, second = (
            WithThreshold(by_name[pair[n]], Metric(embedder=pair[n], threshold=float(pair[at]), source="auto"))
            for n, at in (("first", "at"), ("second", "other"))
        )
        return WithThreshold(Either(first, second, source="auto"), metric)
    return WithThreshold(by_name[metric.embedder], metric)
