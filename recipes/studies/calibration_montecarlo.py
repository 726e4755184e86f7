"""Is the promise kept, and how timid is it? Many calibrations of a model whose true risk is known.

Copy this file, do not import it. The model is the closed-form memorizer of `basinguard.diffusion.toy`. Each
calibration has pairs of its own, lets pilot pairs choose the settings, tests them in sequence and ships the best proven
rule, as `basinguard calibrate` does; then the true risk of what it shipped is looked up. A promise is broken where that
is above alpha. Timidity is measured against the best rule that is truly safe. The pairs of all calibrations are sampled
in one go, because a small batch is no faster than a large one.

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
from basinguard.calibration.candidate import RuleCandidate
from basinguard.calibration.fixed_sequence import proven
from basinguard.calibration.rule_search import best, explore, finalists
from basinguard.calibration.terms import Setting
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
FINALISTS = 2
PILOT_PAIRS = 40
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
    truth = {key(c): c for c in sample(1, args.true_pairs, 10**9, args.alpha).shared}
    pilot = sample(args.calibrations, PILOT_PAIRS, 2 * 10**9, args.alpha)
    tested = sample(args.calibrations, args.pairs, 3 * 10**9, args.alpha)
    shipped = [calibrate(pilot.of(n), tested.of(n), args) for n in range(args.calibrations)]
    result = summary(shipped, truth, args) | {"seconds": round(time.monotonic() - start, 1)}
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({name: result[name] for name in ("broken", "promised", "timidity")}, indent=2))


@dataclass(frozen=True)
class Samples:
    """Every rule on the pairs of all calibrations.

    Attributes:
        shared: each rule on all of the pairs.
        hits, scores: of each rule and pair, [rules, calibrations, pairs].
        prompt: of each pair, [pairs]; the same for every calibration.
        alpha: the risk that may not be exceeded.
    """

    shared: list[RuleCandidate]
    hits: torch.Tensor
    scores: torch.Tensor
    prompt: torch.Tensor
    alpha: float

    def of(self, number: int) -> list[RuleCandidate]:
        """What one calibration sees."""
        return [
            RuleCandidate.measured(
                hits,
                self.prompt,
                self.alpha,
                alignment=stats.cluster_bootstrap(scores, self.prompt),
                guidance=rule.guidance,
                evals_per_sample=rule.evals_per_sample,
            )
            for rule, hits, scores in zip(self.shared, self.hits[:, number], self.scores[:, number], strict=True)
        ]


def sample(calibrations: int, each: int, first_seed: int, alpha: float) -> Samples:
    """Draws every rule on `each` pairs for each calibration, every caption equally often."""
    pairs = calibration_pairs(CAPTIONS, calibrations * each, (8,), first_seed)
    hits, scores = [], []

    def judge(latents: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        hits.append(TOY.nearest(latents) == prompt)
        return hits[-1]

    def align(latents: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        scores.append(-(latents - TOY.points[prompt]).norm(dim=1))  # nearness to what the caption names
        return scores[-1]

    shared = explore(Trial(PROBE, pairs, judge, align), SETTINGS, alpha=alpha, positions=POSITIONS)

    def split(rows: list[torch.Tensor]) -> torch.Tensor:
        parts = torch.stack(rows).reshape(len(rows), CAPTIONS, calibrations, -1)
        return parts.transpose(1, 2).flatten(2)

    return Samples(
        shared, split(hits), split(scores), torch.arange(CAPTIONS).repeat_interleave(each // CAPTIONS), alpha
    )


def calibrate(
    pilot: list[RuleCandidate], tested: list[RuleCandidate], args: argparse.Namespace
) -> RuleCandidate | None:
    """One calibration: the pilot names the finalists, each is tested from its safest transition on, the best ships."""
    share = args.delta / FINALISTS
    allowed = stats.largest_proven(args.alpha, share, args.pairs) / args.pairs
    return best(
        candidate
        for setting in finalists(pilot, FINALISTS, allowed)
        for candidate in proven((candidate for candidate in tested if candidate.setting == setting), share)
    )


def key(candidate: RuleCandidate) -> tuple[Setting, float]:
    return candidate.setting, candidate.guidance.transition


def summary(shipped: list[RuleCandidate | None], truth: dict, args: argparse.Namespace) -> dict:
    """Broken promises, and the distance to the best rule that is truly safe."""
    chosen = [truth[key(candidate)] for candidate in shipped if candidate is not None]
    safe = [c for c in truth.values() if c.risk.value <= args.alpha]
    goal = max(safe, key=lambda c: c.alignment.value)
    late = [boldest(safe, c.setting) - grid_index(c.guidance.transition) for c in chosen]
    broken = sum(c.risk.value > args.alpha for c in chosen)
    return {
        "broken": dump(stats.clopper_pearson(broken, len(shipped))),
        "promised": dump(stats.clopper_pearson(len(chosen), len(shipped))),
        "true_risk_shipped": dump(stats.cluster_bootstrap([c.risk.value for c in chosen], range(len(chosen)))),
        "timidity": {
            "grid_steps_below_the_boldest_safe_transition_of_its_setting": dump(
                stats.cluster_bootstrap(late, range(len(late)))
            ),
            "share_at_the_boldest_safe_transition_or_above": dump(
                stats.clopper_pearson(sum(k <= 0 for k in late), len(late))
            ),
            "best_safe_rule": named(goal),
            "same_setting_as_the_best_safe_rule": dump(
                stats.clopper_pearson(sum(c.setting == goal.setting for c in chosen), len(chosen))
            ),
            "alignment_lost_to_the_best_safe_rule": dump(
                stats.cluster_bootstrap([goal.alignment.value - c.alignment.value for c in chosen], range(len(chosen)))
            ),
        },
        "grid": GRID.tolist(),
        "truth": [named(c) for c in truth.values()],
        "alpha": args.alpha,
        "delta": args.delta,
        "pairs": args.pairs,
        "finalists": FINALISTS,
        "command": f"python recipes/studies/calibration_montecarlo.py --calibrations {args.calibrations} "
        f"--alpha {args.alpha} --delta {args.delta} --pairs {args.pairs} --out ...",
        "commit": commit(),
        "versions": versions(),
    }


def named(candidate: RuleCandidate) -> dict:
    rule = candidate.guidance
    return {"setting": str(candidate.setting), "transition": rule.transition, "risk": candidate.risk.value}


def grid_index(transition: float) -> int:
    """How many grid timesteps lie at or below a transition: larger is bolder."""
    return int((transition >= GRID).sum())


def boldest(safe: list[RuleCandidate], setting: Setting) -> int:
    return max((grid_index(c.guidance.transition) for c in safe if c.setting == setting), default=0)


def dump(estimate: stats.Estimate) -> dict:
    return json.loads(estimate.to_json())


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    main()
