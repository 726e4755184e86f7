"""Is the risk that probes of few samples pool honest, and when does it see a breach? Monte Carlo by the product's code.

Copy this file, do not import it.

    python recipes/studies/pooled_risk.py --runs 200

Risk moves as it did in real runs (the rates of an unlimited guard's 24 pairs a probe, taken as the truth; TinyWorld,
`ProbePlan(captions=12, seeds=2, timesteps=16, scale=3)`) and as made-up runs have it. The base model's probe draws 24
samples, every later one so few as told; outcomes are independent. Counted: how often the interval holds the risk, over
all probes and at the worst; and, where the unlimited guard is sure of a breach (alpha 0.1), how often the pooled
verdict is above alpha (and surely so) no later than one probe after, and how often before it.

Expected: `pooled_risk.json` under recipes/results. Time: a minute on one core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from basinguard.core.pooled_risk import pooled_risk
from basinguard.core.stats import wilson
from basinguard.guard.verdict import SURE, sureness

ALPHA, PAIRS = 0.1, 24
COPIES = {  # of 24 pairs, the base model first
    "demo, probes every 40 updates": (0, 1, 0, 3, 1, 4, 5, 11, 16, 17, 20),
    "demo, every 80 updates": (0, 0, 1, 5, 16, 20),
    "scenes, every 80 updates": (0, 0, 2, 11, 20, 21),
    "ink, another seed": (0, 0, 0, 1, 9, 17),
    "emoji, 16 images": (0, 0, 0, 0, 0, 7, 9, 2, 9, 12, 12),
    "emoji, 32 images": (0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0),
    "brick": (0, 0, 1, 1, 3, 3, 3, 4, 12, 14, 17),
    "neon": (0, 0, 0, 2, 2, 4, 4, 8, 14, 17, 17),
    "subject": (0, 0, 0, 0, 5, 6),
}
MADE_UP = {
    "always 0.02": (0, *[0.02] * 8),
    "always 0.05": (0, *[0.05] * 8),
    "always 0.1": (0, *[0.1] * 8),
    "always 0.3": (0, *[0.3] * 8),
    "0 to 0.8 evenly": tuple(np.linspace(0, 0.8, 9).tolist()),
    "0, then 0.6": (0, 0, 0, 0, 0.6, 0.6, 0.6),
    "0.5, then 0.1": (0, 0.5, 0.5, 0.1, 0.1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--out", type=Path, default=Path("recipes/results/pooled_risk.json"))
    args = parser.parse_args()
    truths = {name: tuple(k / PAIRS for k in copies) for name, copies in COPIES.items()} | MADE_UP
    result: dict[str, Any] = {"command": f"python recipes/studies/pooled_risk.py --runs {args.runs}", "runs": args.runs}
    for samples in args.samples:
        random = np.random.default_rng(samples)
        rows = {name: measured(truth, samples, args.runs, random) for name, truth in truths.items()}
        result[f"{samples} samples a probe"] = rows | {"all real runs": together([rows[name] for name in COPIES])}
        print(samples, json.dumps(result[f"{samples} samples a probe"], indent=1), flush=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


def measured(truth: Sequence[float], samples: int, runs: int, random: np.random.Generator) -> dict[str, Any]:
    """Coverage of the interval and promptness of the verdict on one course of the risk."""
    held, half = np.zeros(len(truth) - 1), np.zeros(len(truth) - 1)
    breach = next((t for t, p in enumerate(truth) if t and surely(wilson(round(p * PAIRS), PAIRS))), None)
    above: list[int | None] = []
    sure: list[int | None] = []
    for _ in range(runs):
        counts = [(random.binomial(PAIRS, truth[0]), PAIRS)]
        estimates = []
        for p in truth[1:]:
            counts.append((random.binomial(samples, p), samples))
            estimates.append(pooled_risk(counts))
        held += [e.low <= p <= e.high for e, p in zip(estimates, truth[1:], strict=True)]
        half += [(e.high - e.low) / 2 for e in estimates]
        above.append(next((t for t, e in enumerate(estimates, 1) if e.value > ALPHA), None))
        sure.append(next((t for t, e in enumerate(estimates, 1) if surely(e)), None))
    row: dict[str, Any] = {"held": held.mean() / runs, "held at the worst probe": held.min() / runs}
    row |= {"half width": half.mean() / runs, "breach at probe": breach}
    for name, firsts in (("above alpha", above), ("surely above alpha", sure)):
        row[f"{name}, before it"] = sum(t is not None and (breach is None or t < breach) for t in firsts) / runs
        if breach is not None:
            row[f"{name}, by one probe after"] = sum(t is not None and t <= breach + 1 for t in firsts) / runs
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}


def surely(estimate: Any) -> bool:
    """As `Verdict.breaches` asks for."""
    return estimate.value > ALPHA and sureness(estimate, ALPHA) >= SURE


def together(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over runs, each as much as another."""
    names = ("held", "half width", "above alpha, by one probe after", "surely above alpha, by one probe after")
    return {name: round(float(np.mean([row[name] for row in rows if name in row])), 3) for name in names}


if __name__ == "__main__":
    main()
