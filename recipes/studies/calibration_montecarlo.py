"""Is the promise kept, how timid is it, and what does it cost? Many calibrations of a model whose true risk is known.

Copy this file, do not import it. The model is the closed-form memorizer of `basinguard.diffusion.toy`; a smaller `leak`
copies more. Each calibration has pairs of its own, searches products (rules, and plain CFG at three scales) on few of
them, ranks what may ship on some more, tests the ladders that are left and ships the best proven product, as
`basinguard calibrate` does: by the fixed and by the sequential design, on the same search and the same pairs. Then the
true risk of what it shipped is looked up. A promise is broken where that is above alpha. Timidity is measured against
the best product that is truly safe; cost in evaluations of the network, all in all, and how many of them search and
ranking take, which no design of the proof saves. All pairs are sampled in one go: a small batch is no faster than a
large one.

    python recipes/studies/calibration_montecarlo.py --out recipes/results/calibration_montecarlo.json
    python recipes/studies/calibration_montecarlo.py --calibrations 40 --alphas 0.05 0.1 0.2 0.3 --deltas 0.05 0.1 \
        --leaks 0.3 0.1 0.03 0.01 --true-pairs 10000 --out recipes/results/calibration_settings.json

Expected: broken in at most delta of the calibrations. Time: about 8 minutes on one CPU core, the second line 25.
Memory: 3 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product as combinations
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from basinguard.basin.trajectories import GuidedModel
from basinguard.calibration.candidate import Phase, Product, ProductCandidate
from basinguard.calibration.choice import best
from basinguard.calibration.design import Design
from basinguard.calibration.fixed_sequence import climb, fixed_sequence
from basinguard.calibration.ladders import Ladder, chains, contenders
from basinguard.calibration.rules import plain_cfg, rules_of
from basinguard.calibration.terms import RANKED, CalibrationTerms, Kind
from basinguard.calibration.trial import Trial, calibration_pairs
from basinguard.core import stats
from basinguard.core.provenance import versions
from basinguard.diffusion.toy import gaussian_memorizer

CAPTIONS, SCALE, AFTER = 4, 4.0, (2.0, 4.0)
TRUE_PAIRS = 40_000  # the true risk of a product is known to about 0.1 %


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibrations", type=int, default=500)
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.2])
    parser.add_argument("--deltas", type=float, nargs="+", default=[0.1])
    parser.add_argument("--leaks", type=float, nargs="+", default=[1e-2])
    parser.add_argument("--pairs", type=int, default=120)
    parser.add_argument("--true-pairs", type=int, default=TRUE_PAIRS)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    start, rows = time.monotonic(), []
    for leak in args.leaks:
        world = World(leak, args.pairs, args.calibrations, args.true_pairs)
        for alpha, delta in combinations(args.alphas, args.deltas):
            rows.append(
                {"leak": leak} | world.row(CalibrationTerms(alpha=alpha, delta=delta, pairs=args.pairs, chain=6))
            )
            print(json.dumps({key: rows[-1][key] for key in ("leak", "alpha", "delta", "ratio")}), flush=True)
    result = {
        "rows": rows,
        "ratio": over_settings([r["ratio"] for r in rows]),
        "highest_ratio": max(r["highest_ratio"] for r in rows),
        "before_proof": over_settings([r["before_proof"] for r in rows]),
        "proof_ratio": over_settings([r["proof_ratio"] for r in rows]),
        "pairs": args.pairs,
        "command": f"python recipes/studies/calibration_montecarlo.py --calibrations {args.calibrations} --alphas "
        f"{words(args.alphas)} --deltas {words(args.deltas)} --leaks {words(args.leaks)} --pairs {args.pairs} "
        f"--true-pairs {args.true_pairs} --out ...",
        "commit": commit(),
        "versions": versions(),
        "seconds": round(time.monotonic() - start, 1),
    }
    args.out.write_text(json.dumps(result, indent=2) + "\n")


@dataclass(frozen=True)
class Samples:
    """Every product on the pairs of all calibrations.

    Attributes:
        hits, scores: of each product and pair, [products, calibrations, pairs].
        prompt: of each pair, [pairs]; the same for every calibration.
    """

    hits: Tensor
    scores: Tensor
    prompt: Tensor


class Evaluations(NamedTuple):
    """Of one calibration: of its search and ranking, and of all of it."""

    before_proof: float
    whole: float


class World:
    """A memorizer with its products, sampled for many calibrations at once."""

    def __init__(self, leak: float, pairs: int, calibrations: int, true_pairs: int) -> None:
        self.toy, self.calibrations = gaussian_memorizer(count=64, dim=8, leak=leak), calibrations
        self.grid = self.toy.schedule.grid(24)
        self.probe = GuidedModel(self.toy, self.toy.schedule, self.grid, SCALE, chunk=100_000)
        terms, schedule = CalibrationTerms(after=AFTER), self.toy.schedule
        plain = [plain_cfg(scale, schedule) for scale in terms.plain_scales(SCALE)]
        self.products = [Product(guidance) for guidance in (*plain, *rules_of(terms, self.grid, schedule, SCALE))]
        most = max(Design.of(kind, CAPTIONS, pairs).pairs for kind in get_args(Kind))
        self.truth = self._sample(1, true_pairs, 10**9)
        self.searched = self._sample(calibrations, terms.search_pairs, 2 * 10**9)
        self.ranked = self._sample(calibrations, RANKED * terms.search_pairs, 4 * 10**9)
        self.tested = self._sample(calibrations, most, 3 * 10**9)

    def _sample(self, calibrations: int, each: int, first_seed: int) -> Samples:
        """Draws every product on `each` pairs for each calibration, every caption equally often."""
        trial = Trial(self.probe, calibration_pairs(CAPTIONS, calibrations * each, (8,), first_seed))
        prompt = trial.pairs.prompt
        ends = [trial.sample(product.guidance)[0] for product in self.products]
        hits = [self.toy.nearest(x) == prompt for x in ends]
        scores = [-(x - self.toy.points[prompt]).norm(dim=1) for x in ends]  # nearness to what the caption names

        def split(rows: list[Tensor]) -> Tensor:
            parts = torch.stack(rows).reshape(len(rows), CAPTIONS, calibrations, -1)
            return parts.transpose(1, 2).flatten(2)

        return Samples(split(hits), split(scores), torch.arange(CAPTIONS).repeat_interleave(each // CAPTIONS))

    def row(self, terms: CalibrationTerms) -> dict:
        """One setting: both designs on the same calibrations."""
        truth = {p: self._candidate(self.truth, 0, p, terms.alpha, "proof") for p in self.products}
        done = {kind: [self._calibrate(n, terms, kind) for n in range(self.calibrations)] for kind in get_args(Kind)}
        costs = {kind: np.array([cost.whole for _, cost in rows]) for kind, rows in done.items()}
        ratios = costs["sequential"] / costs["fixed"]
        before = np.array([cost.before_proof for _, cost in done["fixed"]])  # the same for both designs
        proofs = (costs["sequential"] - before) / (costs["fixed"] - before)
        return {
            "alpha": terms.alpha,
            "delta": terms.delta,
            "ratio": float(np.median(ratios)),
            "highest_ratio": float(ratios.max()),
            "before_proof": float(np.median(before / costs["fixed"])),
            "proof_ratio": float(np.median(proofs)),
            "designs": {
                kind: summary([shipped for shipped, _ in rows], costs[kind], truth, terms.alpha)
                for kind, rows in done.items()
            },
        }

    def _calibrate(self, n: int, terms: CalibrationTerms, kind: Kind) -> tuple[ProductCandidate | None, Evaluations]:
        """The search names the ladders, each is tested by the design, the best ships; and what it took."""
        searched = [self._candidate(self.searched, n, p, terms.alpha, "search") for p in self.products]
        chosen = contenders(searched, terms)
        ranked = [self._candidate(self.ranked, n, p, terms.alpha, "ranking") for p in chosen]
        ladders = chains(ranked, terms, Design.of(kind, CAPTIONS, terms.pairs))
        tested = [c for ladder in ladders for c in self._prove(n, ladder, terms, kind, terms.delta / len(ladders))]
        return best(tested), Evaluations(evaluations((*searched, *ranked)), evaluations((*searched, *ranked, *tested)))

    def _prove(
        self, n: int, ladder: Ladder, terms: CalibrationTerms, kind: Kind, delta: float
    ) -> Sequence[ProductCandidate]:
        design = Design.of(kind, CAPTIONS, terms.pairs)
        if kind == "fixed":
            each = design.pairs // CAPTIONS
            place = torch.arange(len(self.tested.prompt)) % (len(self.tested.prompt) // CAPTIONS)
            rows = (place < each).nonzero().flatten()
            whole = (self._candidate(self.tested, n, p, terms.alpha, "proof", rows) for p in ladder.steps)
            return list(fixed_sequence(whole, delta))

        def measure(product: Product, share: float) -> ProductCandidate:
            hits = self.tested.hits[self.products.index(product), n]
            rows = design.run(lambda part: hits[part], self.tested.prompt, terms.alpha, share)
            return self._candidate(self.tested, n, product, terms.alpha, "proof", rows, design)

        return list(climb(ladder.steps, ladder.start, measure, delta))

    def _candidate(
        self,
        samples: Samples,
        n: int,
        product: Product,
        alpha: float,
        phase: Phase,
        rows: Tensor | slice = slice(None),
        design: Design | None = None,
    ) -> ProductCandidate:
        """What one calibration sees of a product on these pairs."""
        at, prompt = self.products.index(product), samples.prompt[rows]
        scores = samples.scores[at, n][rows]
        above = 1 if product.guidance.before in (0.0, 1.0) else 2  # evaluations of a step before guidance comes on
        first = 0 if product.guidance.plain else int((self.grid > product.guidance.transition).sum())
        return ProductCandidate.measured(
            samples.hits[at, n][rows],
            prompt,
            alpha,
            design,
            alignment=stats.cluster_bootstrap(scores, prompt),
            product=product,
            phase=phase,
            evals_per_sample=float(above * first + 2 * (len(self.grid) - first)),
            nearest=float(scores.mean()),
        )


def evaluations(candidates: Sequence[ProductCandidate]) -> float:
    """What these candidates took."""
    return sum(c.evals_per_sample * c.risk.n for c in candidates)


def summary(shipped: list[ProductCandidate | None], costs: np.ndarray, truth: dict, alpha: float) -> dict:
    """Broken promises, the distance to the best product that is truly safe, and evaluations."""
    chosen = [truth[candidate.product] for candidate in shipped if candidate is not None]
    safe = [c for c in truth.values() if c.risk.value <= alpha]
    broken = sum(c.risk.value > alpha for c in chosen)
    result = {
        "broken": dump(stats.clopper_pearson(broken, len(shipped))),
        "promised": dump(stats.clopper_pearson(len(chosen), len(shipped))),
        "evaluations": dump(stats.cluster_bootstrap(costs, range(len(costs)), stats.median)),
    }
    if not (chosen and safe):
        return result
    goal = max(safe, key=lambda c: c.alignment.value)
    lost = [goal.alignment.value - c.alignment.value for c in chosen]
    return result | {
        "true_risk_shipped": dump(stats.cluster_bootstrap([c.risk.value for c in chosen], range(len(chosen)))),
        "best_safe_product": {"product": str(goal.product), "risk": goal.risk.value},
        "alignment_lost_to_it": dump(stats.cluster_bootstrap(lost, range(len(lost)))),
    }


def over_settings(ratios: Sequence[float]) -> dict:
    """Their median, with an interval over settings."""
    return dump(stats.cluster_bootstrap(ratios, range(len(ratios)), stats.median))


def words(numbers: Sequence[float]) -> str:
    return " ".join(f"{number:g}" for number in numbers)


def dump(estimate: stats.Estimate) -> dict:
    return json.loads(estimate.to_json())


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    main()
