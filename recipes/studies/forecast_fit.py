"""The forecast of a breach, fitted on the runs of `acting_study.py`: its coefficients, its interval, its errors.

`acting_table.py` calls it. The line is fitted on the runs whose risk exceeded alpha and scored on each of them with
that run left out; its interval is learnt the same way. Coefficients go into `guard.forecast` by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from basinguard.core import stats
from basinguard.core.report import Report
from basinguard.guard.forecast import forecast_features

ALPHA = 0.1
FEATURES = {"gap, critical scale, width": (0, 1, 2), "gap, width": (0, 2)}
MAIN = "gap, critical scale, width"
LEVEL, RIDGE = 0.8, 0.1  # of the forecast's interval; of the fit, on standardised features


@dataclass(frozen=True)
class Row:
    """One probe before a breach: what had risen, and log(t* / t)."""

    run: str
    train_step: int
    features: tuple[float, ...]
    left: float
    images: int


def breach_of(history: list[Report]) -> tuple[int, float] | None:
    """Index of the first report above the allowed risk, and t*: between it and the one before, on a log scale."""
    for k, report in enumerate(history):
        if report.epoch >= 0 and report.samples.risk is not None and report.samples.risk.value > ALPHA:
            before = max(1, history[k - 1].train_step)
            return k, float(np.sqrt(before * report.train_step))
    return None


def rows_of(name: str, images: int, history: list[Report]) -> list[Row]:
    """Every probe before the breach of one run; none where there was no breach."""
    breach = breach_of(history)
    if breach is None:
        return []
    before = (r for r in history[: breach[0]] if r.epoch >= 0)
    return [
        Row(name, r.train_step, forecast_features(r), float(np.log(breach[1] / r.train_step)), images) for r in before
    ]


def fitted_line(rows: list[Row], used: tuple[int, ...]) -> np.ndarray:
    """Constant and coefficients by ridge regression on standardised features; every run weighs the same."""
    x, y = np.array([[row.features[k] for k in used] for row in rows]), np.array([row.left for row in rows])
    weight = np.array([1 / sum(other.run == row.run for other in rows) for row in rows])
    weight /= weight.sum()
    mean, spread = weight @ x, np.sqrt(weight @ (x - weight @ x) ** 2) + 1e-9
    z, middle = (x - mean) / spread, weight @ y
    slope = np.linalg.solve(z.T @ (weight[:, None] * z) + RIDGE * np.eye(len(used)), z.T @ (weight * (y - middle)))
    return np.array([middle - slope / spread @ mean, *(slope / spread)])


def forecast_of(line: np.ndarray, features: tuple[float, ...], used: tuple[int, ...]) -> float:
    """The forecast of log(t* / t)."""
    return float(line[0] + sum(c * features[k] for c, k in zip(line[1:], used, strict=True)))


def left_out(rows: list[Row], used: tuple[int, ...]) -> list[float]:
    """Error of each row, truth less forecast, by a line fitted without its run."""
    errors = []
    for row in rows:
        line = fitted_line([other for other in rows if other.run != row.run], used)
        errors.append(row.left - forecast_of(line, row.features, used))
    return errors


def ends_of(errors: list[float]) -> tuple[float, float]:
    """Quantiles that leave (1 - LEVEL) / 2 outside on each side, by rank (n + 1); the extremes where n is small."""
    ranked, n = np.sort(errors), len(errors)
    k = max(1, int(np.floor((n + 1) * (1 - LEVEL) / 2)))
    return float(ranked[k - 1]), float(ranked[n - k])


def scored(rows: list[Row], used: tuple[int, ...]) -> dict[str, Any]:
    """Errors on runs left out, and how often an interval learnt without the run holds the truth."""
    errors, inside, naive = left_out(rows, used), [], []
    for row, error in zip(rows, errors, strict=True):
        others = [other for other in rows if other.run != row.run]
        low, high = ends_of(left_out(others, used))
        inside.append(low <= error <= high)
        passes = np.median([other.left + np.log(other.train_step / other.images) for other in others])
        naive.append(row.left - float(passes + np.log(row.images / row.train_step)))
    runs = [row.run for row in rows]
    return {
        "rows": len(rows),
        "runs": len(set(runs)),
        "coverage": stats.rate(inside, runs).model_dump(),
        "wanted_coverage": LEVEL,
        "mean_absolute_log_error": stats.cluster_bootstrap(np.abs(errors), runs).model_dump(),
        "usual_passes_instead": stats.cluster_bootstrap(np.abs(naive), runs).model_dump(),
        "mean_log_error": float(np.mean(errors)),
        "coefficients": fitted_line(rows, used).tolist(),
        "interval": ends_of(errors),
        "errors": dict(zip([f"{r.run} at {r.train_step}" for r in rows], errors, strict=True)),
    }


def never_rows(histories: dict[str, list[Report]], line: list[float], high: float) -> dict[str, Any]:
    """Runs without a breach: how often the interval lay wholly within what was trained, and was so wrong."""
    without = [history for history in histories.values() if breach_of(history) is None]
    wrong = [
        r.train_step * np.exp(forecast_of(np.array(line), forecast_features(r), FEATURES[MAIN]) + high)
        < history[-1].train_step
        for history in without
        for r in history[1:-1]
    ]
    return {"runs": len(without), "forecasts": len(wrong), "breach_said_within_the_run": int(sum(wrong))}
