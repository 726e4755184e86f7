"""What the stages of a probe cost, and the best probe that a budget can pay for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ..core.stats import wilson
from ..diffusion.batching import padded_size
from .budget import STAGES
from .plan import ProbePlan
from .training_set import TrainingSet

LEAST_PAIRS = 1  # pooled with those of earlier probes, one sample says something
TAUGHT_SHARE = 1 / 3  # of what the gap leaves, at most, for samples that show what was taught
LEAST_SEARCHED = 4  # and below this exits
SCALE_EVALS = 320  # most evaluations that one critical scale takes: 10 halvings of 16, with the caption and without
GAP_EVALS = 4  # a training caption: two seeds, with and without the prompt
EVALUATIONS: Mapping[str, float] = MappingProxyType(dict.fromkeys(STAGES, 1.0))  # prices where evaluations are counted


@dataclass(frozen=True)
class ProbeCosts:
    """What there is to buy, and how many rows of the network it takes.

    Attributes:
        captions: most captions to sample at one probe.
        gap_captions: captions of the training set.
        seeds: most samples of each caption.
        evaluations: of one row from noise to image.
        evaluations_alone: the same of samples whose exits are not searched for; as many when 0.
        heldout: held-out prompts, whose gap is the control.
        critical_scales: images whose critical scale is asked for.
        taught: samples of held-out prompts that show what was taught.
        unit: rows come in multiples of this, or in a power of two below it; 1 counts evaluations instead of time.
        noises: on which gaps are measured: one, or more where captions say the same.
    """

    captions: int
    gap_captions: int
    seeds: int
    evaluations: int
    evaluations_alone: int = 0
    heldout: int = 0
    critical_scales: int = 0
    taught: int = 0
    unit: int = 1
    noises: int = 1

    def gap(self, captions: int, heldout: bool = True) -> int:
        """Rows for the gap of so many captions, and of the held-out prompts."""
        control = self._full(self.heldout + 1) if heldout and self.heldout else 0
        return self._full(captions + min(self.noises, captions)) + control

    def samples(self, pairs: int) -> int:
        """Rows for plain CFG of so many pairs."""
        return self.evaluations * self._full(2 * pairs)

    def samples_alone(self, pairs: int) -> int:
        """The same of pairs whose exits are not searched for."""
        return (self.evaluations_alone or self.evaluations) * self._full(2 * pairs)

    def trunk(self, pairs: int) -> int:
        """Rows for the unguided trajectories of so many pairs."""
        return self.evaluations * self._full(pairs)

    def exits(self, pairs: int, resolution: int) -> int:
        """Rows for the exits of sampled pairs, all of which may reproduce."""
        tries = math.log2(max(2.0, self.evaluations / resolution)) / 2 + 1  # a guess saves about half of the halvings
        return self.trunk(pairs) + math.ceil(self.samples(pairs) * tries / 2)

    def _full(self, rows: int) -> int:
        return padded_size(rows, self.unit)


@dataclass(frozen=True)
class AffordableProbe:
    """What a budget buys.

    Attributes:
        gaps: captions whose gap is measured.
        captions: captions that are sampled; 0 is none.
        seeds: samples of each.
        resolution: grid positions an exit may be left open by; 0 where exits are not looked for.
        critical_scales: images whose critical scale is measured.
        heldout: whether the gap of held-out prompts is measured too.
        taught: whether held-out prompts are sampled to see what was taught.
        missing: how many times this budget the least search for exits takes; 0 where it was bought.
    """

    gaps: int
    captions: int = 0
    seeds: int = 0
    resolution: int = 0
    critical_scales: int = 0
    heldout: bool = True
    taught: bool = False
    missing: float = 0.0

    @property
    def pairs(self) -> int:
        """(caption, seed) pairs that are sampled."""
        return self.captions * self.seeds

    def precision(self, timesteps: int, total: int, alone: int = 0) -> str:
        """What that is good for, in words.

        Args:
            timesteps: of the sampler's grid.
            total: captions of the training set.
            alone: timesteps of samples without exits, where those are fewer.

        Example:
            >>> AffordableProbe(30, 8, 2, 2).precision(timesteps=20, total=30)
            'gap of 30 of 30 captions; 16 samples of 8 captions: risk within 0.22, exits within 100 timesteps'
            >>> AffordableProbe(30, missing=2.5).precision(timesteps=20, total=30)
            'gap of 30 of 30 captions; no samples; exits take 2.5 times this budget: raise it, or probe less often'
            >>> AffordableProbe(30, 4, 1).precision(timesteps=20, total=30, alone=10)
            'gap of 30 of 30 captions; 4 samples of 4 captions with 10 timesteps: risk within 0.35'
        """
        parts = [f"gap of {self.gaps} of {total} captions" + ("" if self.heldout else ", of no held-out prompts")]
        if not self.pairs:
            parts.append("no samples")
        else:
            half = wilson(self.pairs // 2, self.pairs)
            exits = f", exits within {round(self.resolution * 1000 / timesteps)} timesteps" if self.resolution else ""
            fewer = f" with {alone} timesteps" if alone and not self.resolution else ""
            drawn = f"{self.pairs} samples of {self.captions} captions{fewer}"
            parts.append(f"{drawn}: risk within {(half.high - half.low) / 2:.2f}{exits}")
        if self.critical_scales:
            parts.append(f"critical scale of {self.critical_scales} images")
        if self.taught:
            parts.append("what was taught")
        if self.missing:
            parts.append(f"exits take {self.missing:.2g} times this budget: raise it, or probe less often")
        return "; ".join(parts)


def affordable_probe(
    allowance: float, costs: ProbeCosts, prices: Mapping[str, float] = EVALUATIONS
) -> AffordableProbe | None:
    """The best measurement for an allowance; None when it cannot pay for the gap of two captions.

    The gap comes first, because it warns earliest and costs one evaluation a caption: of all captions where that leaves
    a sample, else of as many as do; held-out prompts, its control, are left out where nothing would remain for
    captions. Then samples with their exits, more captions before more seeds and a finer search last; where exits are
    too dear, samples alone, which tell the risk. What is left goes to critical scales, where the plan asks for them.
    Samples that show what was taught come right after the gap, where they take no more than a third of what it leaves
    and leave a sample of the training captions.

    Args:
        allowance: what may be spent, in seconds or evaluations.
        costs: what there is.
        prices: of a row of each stage, in the same currency.
    """
    sample = costs.samples_alone(LEAST_PAIRS) * prices["samples"]
    gaps, heldout = _affordable_gaps(allowance - sample if sample <= allowance / 2 else allowance, costs, prices)
    if not gaps:
        gaps, heldout = _affordable_gaps(allowance, costs, prices)
    if not gaps:
        return None
    left = allowance - costs.gap(gaps, heldout) * prices["gap"]
    taught = costs.samples(costs.taught) * prices["taught"] if costs.taught else 0.0
    taught = taught if taught <= min(TAUGHT_SHARE * left, left - sample) else 0.0
    left -= taught
    most, searched = costs.captions * costs.seeds, min(LEAST_SEARCHED, costs.captions * costs.seeds)

    def with_exits(resolution: int) -> Callable[[int], float]:
        return lambda n: costs.samples(n) * prices["samples"] + costs.exits(n, resolution) * prices["exits"]

    pairs, resolution = 0, 0
    for resolution in (1, 2, 4, 8):
        pairs = _most(most, with_exits(resolution), left)
        if pairs >= searched:
            break
    spent, missing = with_exits(resolution)(pairs), 0.0
    if pairs < searched:
        pairs, resolution = _most(most, lambda n: costs.samples_alone(n) * prices["samples"], left), 0
        spent = costs.samples_alone(pairs) * prices["samples"]
        missing = (costs.gap(gaps, heldout) * prices["gap"] + taught + with_exits(8)(searched)) / allowance
    captions = min(costs.captions, pairs)
    critical_scales = (
        costs.critical_scales if costs.critical_scales * SCALE_EVALS * prices["critical_scales"] <= left - spent else 0
    )
    seeds = pairs // captions if captions else 0
    return AffordableProbe(gaps, captions, seeds, resolution, critical_scales, heldout, taught > 0, missing)


def _affordable_gaps(allowance: float, costs: ProbeCosts, prices: Mapping[str, float]) -> tuple[int, bool]:
    """Captions whose gap an allowance pays for, 0 where fewer than two; and whether held-out prompts' as well."""
    least = min(2, costs.gap_captions)
    heldout = costs.gap(least) * prices["gap"] <= allowance
    gaps = _most(costs.gap_captions, lambda n: costs.gap(n, heldout) * prices["gap"], allowance)
    return (gaps, heldout) if gaps >= least else (0, False)


def _most(count: int, cost: Callable[[int], float], allowance: float) -> int:
    """The largest number up to `count` whose cost is within the allowance; 0 when not even 1 is."""
    return next((n for n in range(count, 0, -1) if cost(n) <= allowance), 0)


def rotated(total: int, count: int, begin: int) -> list[int]:
    """`count` of `total` captions, from place `begin` on, round and round, in one fixed mixed order.

    Example:
        >>> rotated(5, 2, 0), rotated(5, 2, 2), rotated(5, 2, 4)
        ([0, 3], [1, 4], [2, 0])
    """
    stride = next(s for s in range(int(total * 0.618), total + 2) if math.gcd(s, total) == 1) if total > 1 else 1
    return [stride * (begin + i) % total for i in range(count)]


def probe_evals(
    captions: int, seeds: int, timesteps: int, images: int, heldout: int = 0, critical_scales: int = 0
) -> int:
    """Most evaluations of the UNet in one probe; fewer when few samples are copies, as there are fewer exits to find.

    Args:
        captions: training captions that are sampled.
        seeds: samples of each.
        timesteps: sampling steps.
        images: of the training set; the gap is measured on all of its captions.
        heldout: prompts of the control group.
        critical_scales: images whose critical scale is measured.

    Example:
        >>> probe_evals(captions=8, seeds=2, timesteps=20, images=32)
        4608
    """
    pairs = captions * seeds
    sampled = 2 * timesteps * (2 * pairs + heldout)  # the samples, and their trajectories without a prompt
    searched = pairs * math.ceil(math.log2(timesteps + 1)) * 2 * timesteps
    return sampled + searched + GAP_EVALS * (images + heldout) + SCALE_EVALS * critical_scales


def probe_limit(plan: ProbePlan, training: TrainingSet) -> int:
    """Most evaluations of a probe of these images without a budget, as the base model's is."""
    heldout, nodes = len(training.heldout), plan.timesteps * (2 if plan.solver == "heun" else 1)
    scales = min(plan.critical_scales, len(training.captions)) + min(plan.critical_scales, heldout)
    return probe_evals(plan.captions, plan.seeds, nodes, len(training.captions), heldout, scales)
