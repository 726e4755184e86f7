"""Is the monitor ever wrong more often than it says, and how soon does it notice? Many streams of a known risk.

Copy this file, do not import it. A stream is one Bernoulli draw after the other, so the truth needs no model. At a risk
of exactly alpha the bound must not fall below it, and no breach may be told, in more than delta of the streams; at
twice alpha it is counted how many samples it takes to notice. The test of exchangeability is run on normal similarities
that stay as they were, and on others that move by half a standard deviation; and again with what a record stores: the
samples of a sequential proof, which ends where it suits, of the boldest product that it proves. Captions are unlike
each other there, the proof takes each equally often, and the stream takes them at random.

    python recipes/studies/monitor_montecarlo.py --out recipes/results/monitor_montecarlo.json

Expected: every share in `errors`, and of what is told where nothing moved, at most delta. Time: three minutes on one
core. Memory: 1 GB.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from basinguard.attacks.exchangeability import ConformalRanks, log_mixture
from basinguard.attacks.monitor import Monitor
from basinguard.calibration.design import Design
from basinguard.core import stats
from basinguard.core.betting import log_capital_above, log_capital_below
from basinguard.core.provenance import versions
from basinguard.core.record import stored_similarities

SETTINGS = ((0.02, 0.05), (0.05, 0.05), (0.05, 0.1), (0.1, 0.05), (0.2, 0.1))  # alpha, delta
CALIBRATION, USED = 144, 400  # similarities that were calibrated on, and of each stream in use
LOOK = 20  # samples between two looks at a stream in use
CAPTIONS, SPREAD, PRODUCTS = 24, 1.0, 8  # captions differ as much as samples of one caption do
COPY, ALPHA = 3.0, 0.1  # similarity of a copy, in standard deviations; a copy is 1.7 % of the first product's samples
DETECTOR: Any = SimpleNamespace(embedder=SimpleNamespace(metric=SimpleNamespace(threshold=COPY)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--length", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    rows = [bound(rng, alpha, delta, args) for alpha, delta in SETTINGS]
    shifts = [exchangeability(rng, move, 0.05, args.streams) for move in (0.0, 0.5)]
    own = np.random.default_rng(args.seed + 1)
    records = [of_record(own, move, 0.05, args.streams) for move in (0.0, 0.5)]
    command = f"python recipes/studies/monitor_montecarlo.py --streams {args.streams} --length {args.length}"
    result = {
        "bound": rows,
        "exchangeability": shifts,
        "record": records,
        "command": f"{command} --out ...",
        "versions": versions(),
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def bound(rng: np.random.Generator, alpha: float, delta: float, args: argparse.Namespace) -> dict[str, Any]:
    """Errors at a risk of alpha, and samples to notice one of twice that."""
    n = np.arange(1, args.length + 1)
    at, above = (copies(rng, risk, args) for risk in (alpha, 2 * alpha))
    limit = -np.log(delta)
    low = (log_capital_below(at, n, alpha) >= limit).any(1)  # where the true risk is refuted, the bound is below it
    false = (log_capital_above(at, n, alpha) >= limit).any(1)
    noticed = log_capital_above(above, n, alpha) >= limit
    first = np.where(noticed.any(1), noticed.argmax(1) + 1, np.inf)
    return {
        "alpha": alpha,
        "delta": delta,
        "errors": {"bound broken": share(low), "false breach": share(false)},
        "noticed": share(noticed.any(1)),
        "samples_to_notice_2_alpha": {f"{q:.0%}": float(np.quantile(first, q, method="higher")) for q in (0.5, 0.9)},
    }


def copies(rng: np.random.Generator, risk: float, args: argparse.Namespace) -> np.ndarray:
    """Copies so far, [streams, length]."""
    return (rng.random((args.streams, args.length)) < risk).cumsum(1)


def exchangeability(rng: np.random.Generator, move: float, delta: float, streams: int) -> dict[str, Any]:
    """How often samples are told from those of the calibration where they moved by so many standard deviations."""
    firsts = [first_shift(rng, move, delta) for _ in range(streams)]
    noticed = np.isfinite(firsts)
    return {"moved_by": move, "delta": delta, "told": share(noticed), "median": float(np.median(firsts))}


def first_shift(rng: np.random.Generator, move: float, delta: float) -> float:
    """Sample at which a stream is told from its calibration; infinite where it never is."""
    ranks = ConformalRanks(int(rng.integers(2**31)))
    for score in rng.normal(size=CALIBRATION).tolist():
        ranks.p_value(score)
    log_p = np.log([ranks.p_value(score) for score in rng.normal(move, size=USED).tolist()]).cumsum()
    noticed = log_mixture(log_p, np.arange(1, USED + 1)) >= -np.log(delta)
    return float(noticed.argmax() + 1) if noticed.any() else np.inf


def of_record(rng: np.random.Generator, move: float, delta: float, streams: int) -> dict[str, Any]:
    """The same where the calibration's similarities come from a record."""
    drawn, tried = [], 0
    while len(drawn) < streams:
        tried += 1
        drawn += [stream] if (stream := first_of_record(rng, move, delta)) is not None else []
    firsts, stored = zip(*drawn, strict=True)
    alarms = {"told": share(np.isfinite(firsts)), "median": float(np.median(firsts))}
    return {
        "moved_by": move,
        "delta": delta,
        **alarms,
        "similarities": {"min": min(stored), "max": max(stored)},
        "proofs": tried,
    }


def first_of_record(rng: np.random.Generator, move: float, delta: float) -> tuple[float, int] | None:
    """Sample at which a stream is told from the proof of its product, and how many were stored; None without a proof.

    Products grow bolder, each a quarter of a standard deviation nearer; the last that is proven ships.
    """
    design, means = Design.of("sequential", CAPTIONS, CALIBRATION), rng.normal(0, SPREAD, CAPTIONS)
    prompt = np.repeat(np.arange(CAPTIONS), design.pairs // CAPTIONS)
    shipped, bolder = np.zeros(0), 0.0
    for product in range(PRODUCTS):
        drawn = means[prompt] + 0.25 * product + rng.normal(size=len(prompt))
        copied = torch.from_numpy(drawn >= COPY)
        rows = design.run(copied.__getitem__, torch.from_numpy(prompt), ALPHA, delta).numpy()
        if design.p_value(int(copied[rows].sum()), len(rows), ALPHA) > delta:
            break
        shipped, bolder = drawn[rows], 0.25 * product
    if not len(shipped):
        return None
    monitor = Monitor(DETECTOR, ALPHA, delta, calibration=stored_similarities(shipped.tolist()))
    used = means[rng.integers(CAPTIONS, size=USED)] + bolder + move + rng.normal(size=USED)
    for part in np.array_split(used, USED // LOOK):
        if (reading := monitor.see_similarities(part.tolist())).shifted:
            return float(reading.samples), len(shipped)
    return np.inf, len(shipped)


def share(hits: np.ndarray) -> dict[str, Any]:
    return json.loads(stats.clopper_pearson(int(hits.sum()), len(hits)).to_json())


if __name__ == "__main__":
    main()
