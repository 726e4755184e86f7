"""Is the promise kept, and how timid is it? Many calibrations of a model whose true risk is known.

Copy this file, do not import it. The model is the closed-form memorizer of `basinguard.diffusion.toy`. Each
calibration has pairs of its own, searches products (rules, and plain CFG at two scales) on few of them, tests the
ladders that are left in sequence and ships the best proven product, as `basinguard calibrate` does; then the true risk
of what it shipped is looked up. A promise is broken where that is above alpha. Timidity is measured against the best
product that is truly safe. The pairs of all calibrations are sampled in one go, because a small batch is no faster than
a large one.

    python recipes/studies/calibration_montecarlo.py --out recipes/results/calibration_montecarlo.json

Expected: broken in at most delta of the calibrations. Time: about 4 minutes on one CPU core. Memory: 2 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from basinguard.basin.trajectories import GuidedModel
from basinguard.calibration.candidate import Phase, Product, ProductCandidate
from basinguard.calibration.choice import best
from basinguard.calibration.fixed_sequence import proven
from basinguard.calibration.search import chains, plain_cfg, rule
from basinguard.calibration.terms import CalibrationTerms, Setting
from basinguard.calibration.trial import Trial, calibration_pairs
from basinguard.core import stats
from basinguard.core.provenance import versions
from basinguard.diffusion.toy import gaussian_memorizer

TOY = gaussian_memorizer(count=64, dim=8, leak=1e-2)
GRID = TOY.schedule.grid(24)
PROBE = GuidedModel(TOY, TOY.schedule, GRID, 4.0, chunk=100_000)
CAPTIONS = 4
SETTINGS = [Setting(before, after) for before in (0.0, -1.0) for after in (2.0, 4.0)]
POSITIONS = [index for index, timestep in enumerate(GRID.tolist()) if timestep < 600]
SEARCH_PAIRS = 40
SCALES = (2.0, 4.0)
PRODUCTS = [
    *(Product(plain_cfg(scale, TOY.schedule)) for scale in SCALES),
    *(Product(rule(s, float(GRID[at]), TOY.schedule, 4.0)) for s in SETTINGS for at in POSITIONS),
]
TRUE_PAIRS = 40_000  # the true risk of a rule is known to about 0.1 %


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibrations", type=int, default=500)
    parser.add_argument("--alpha", type=float, default=0.2)
    parser.add_argument("--delta", type=float, default=0.1)
    parser.add_argument("--pairs", type=int, default=120)
    parser.add_argument("--true-pairs", type=int, default=TRUE_PAIRS)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    start = time.monotonic()
    truth = {c.product: c for c in sample(1, args.true_pairs, 10**9, args.alpha, "proof").of(0)}
    searched = sample(args.calibrations, SEARCH_PAIRS, 2 * 10**9, args.alpha, "search")
    tested = sample(args.calibrations, args.pairs, 3 * 10**9, args.alpha, "proof")
    shipped = [calibrate(searched.of(n), tested.of(n), args) for n in range(args.calibrations)]
    result = summary(shipped, truth, args) | {"seconds": round(time.monotonic() - start, 1)}
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({name: result[name] for name in ("broken", "promised", "timidity")}, indent=2))


@dataclass(frozen=True)
class Samples:
    """Every product on the pairs of all calibrations.

    Attributes:
        hits, scores: of each product and pair, [products, calibrations, pairs].
        prompt: of each pair, [pairs]; the same for every calibration.
        alpha: the risk that may not be exceeded.
        phase: of the candidates.
    """

    hits: torch.Tensor
    scores: torch.Tensor
    prompt: torch.Tensor
    alpha: float
    phase: Phase

    def of(self, number: int) -> list[ProductCandidate]:
        """What one calibration sees."""
        return [
            ProductCandidate.measured(
                hits,
                self.prompt,
                self.alpha,
                alignment=stats.cluster_bootstrap(scores, self.prompt),
                product=product,
                phase=self.phase,
                evals_per_sample=48.0,
                nearest=float(scores.mean()),
            )
            for product, hits, scores in zip(PRODUCTS, self.hits[:, number], self.scores[:, number], strict=True)
        ]


def sample(calibrations: int, each: int, first_seed: int, alpha: float, phase: Phase) -> Samples:
    """Draws every product on `each` pairs for each calibration, every caption equally often."""
    trial = Trial(PROBE, calibration_pairs(CAPTIONS, calibrations * each, (8,), first_seed))
    prompt = trial.pairs.prompt
    ends = [trial.sample(product.guidance)[0] for product in PRODUCTS]
    hits = [TOY.nearest(x) == prompt for x in ends]
    scores = [-(x - TOY.points[prompt]).norm(dim=1) for x in ends]  # nearness to what the caption names

    def split(rows: list[torch.Tensor]) -> torch.Tensor:
        parts = torch.stack(rows).reshape(len(rows), CAPTIONS, calibrations, -1)
        return parts.transpose(1, 2).flatten(2)

    each_prompt = torch.arange(CAPTIONS).repeat_interleave(each // CAPTIONS)
    return Samples(split(hits), split(scores), each_prompt, alpha, phase)


def calibrate(
    searched: list[ProductCandidate], tested: list[ProductCandidate], args: argparse.Namespace
) -> ProductCandidate | None:
    """One calibration: the search names the ladders, each is tested from its safest product on, the best ships."""
    measured = {candidate.product: candidate for candidate in tested}
    ladders = chains(searched, CalibrationTerms(alpha=args.alpha, delta=args.delta, chain=6))
    share = args.delta / len(ladders)
    return best(c for ladder in ladders for c in proven((measured[product] for product in ladder), share))


def summary(shipped: list[ProductCandidate | None], truth: dict, args: argparse.Namespace) -> dict:
    """Broken promises, and the distance to the best product that is truly safe."""
    chosen = [truth[candidate.product] for candidate in shipped if candidate is not None]
    goal = max((c for c in truth.values() if c.risk.value <= args.alpha), key=lambda c: c.alignment.value)
    broken = sum(c.risk.value > args.alpha for c in chosen)
    lost = [goal.alignment.value - c.alignment.value for c in chosen]
    return {
        "broken": dump(stats.clopper_pearson(broken, len(shipped))),
        "promised": dump(stats.clopper_pearson(len(chosen), len(shipped))),
        "true_risk_shipped": dump(stats.cluster_bootstrap([c.risk.value for c in chosen], range(len(chosen)))),
        "timidity": {
            "best_safe_product": named(goal),
            "alignment_lost_to_the_best_safe_product": dump(stats.cluster_bootstrap(lost, range(len(lost)))),
        },
        "grid": GRID.tolist(),
        "truth": [named(c) for c in truth.values()],
        "alpha": args.alpha,
        "delta": args.delta,
        "pairs": args.pairs,
        "command": f"python recipes/studies/calibration_montecarlo.py --calibrations {args.calibrations} "
        f"--alpha {args.alpha} --delta {args.delta} --pairs {args.pairs} --out ...",
        "commit": commit(),
        "versions": versions(),
    }


def named(candidate: ProductCandidate) -> dict:
    return {"product": str(candidate.product), "risk": candidate.risk.value}


def dump(estimate: stats.Estimate) -> dict:
    return json.loads(estimate.to_json())


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    main()
