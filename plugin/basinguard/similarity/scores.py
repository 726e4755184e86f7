"""From similarities to the numbers a table shows, each with its interval, and with the floor it stands on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..core.estimate import Estimate
from ..core.metric import Metric
from ..core.stats import cluster_bootstrap, median, p95, rate


def summarise(similarities: ArrayLike, prompts: ArrayLike, *, threshold: float) -> dict[str, Estimate]:
    """What the field reports, and what it should: prompts are the unit, seeds are nested in them.

    Args:
        similarities: best-match similarity of each sample, [N].
        prompts: which prompt each sample was drawn for, [N].
        threshold: at and above it a sample is a copy.

    Returns:
        "sim95" (95th percentile of all samples), "share" (samples at or above the threshold), and over prompts
        "median_median", "median_max" (the middle prompt's median and maximum over its seeds), "share_any" (prompts
        with at least one copy).

    Raises:
        ValueError: no similarities, lists of different lengths, or values that are not finite.
    """
    s, p = np.asarray(similarities, float), np.asarray(prompts)
    if s.ndim != 1 or s.shape != p.shape or len(s) == 0 or not np.isfinite(s).all():
        raise ValueError(f"similarities {s.shape} and prompts {p.shape}: expected equally long lists of finite numbers")
    names = np.unique(p)
    medians = np.array([np.median(s[p == name]) for name in names])
    maxima = np.array([s[p == name].max() for name in names])
    return {
        "sim95": cluster_bootstrap(s, p, statistic=p95),
        "share": rate(s >= threshold, p),
        "median_median": cluster_bootstrap(medians, names, statistic=median),
        "median_max": cluster_bootstrap(maxima, names, statistic=median),
        "share_any": rate(maxima >= threshold, names),
    }


def above_floor(similarities: ArrayLike, floor: ArrayLike, prompts: ArrayLike) -> Estimate:
    """Mean of similarity minus that of the floor on the same prompt and noise (the base model's sample), paired.

    Raises:
        ValueError: lists of different lengths.
    """
    s, f = np.asarray(similarities, float), np.asarray(floor, float)
    if s.shape != f.shape:
        raise ValueError(f"{s.shape} similarities and {f.shape} of the floor given; they must be pairs")
    return cluster_bootstrap(s - f, prompts)


def summary_lines(summary: Mapping[str, Estimate], *, metric: str) -> list[str]:
    """A summary for people, the metric's name in every line."""
    return [f"{name:14} {estimate!s:34} {metric}" for name, estimate in summary.items()]


def metrics_lines(results: Mapping[str, Any]) -> list[str]:
    """What `metrics` found, for people: the aggregates, the share of copies by every threshold, and what is missed."""
    metric = Metric.model_validate(results["metric"])
    aggregates = {name: Estimate.model_validate(e) for name, e in results["aggregates"].items()}
    rows = summary_lines(aggregates, metric=_at(metric, metric.kind))
    if second := results.get("figure"):
        share = {"share": Estimate.model_validate(second["share"])}
        rows += summary_lines(share, metric=_at(Metric.model_validate(second["metric"]), "published"))
    for part in ("null_train", "null_heldout", "null_base_samples"):
        null = results.get(part)
        if isinstance(null, str):
            rows.append(f"{part}: {null}")
        elif null:
            share = {"share": Estimate.model_validate(null["share"])}
            rows += summary_lines(share, metric=_at(Metric.model_validate(null["metric"]), part))
    return [*rows, metric.expected_misses] if metric.recalls else rows


def _at(metric: Metric, kind: str) -> str:
    return f"{metric.embedder} at {metric.threshold:.3g} ({kind})"
