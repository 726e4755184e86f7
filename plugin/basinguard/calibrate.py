"""From exits to a promise: the boldest transition whose risk is proven to stay within alpha.

Candidates are ordered from the safest (guidance on late) to the boldest and tested one after the other; the first that
cannot be proven ends the sequence. So P(risk of the chosen transition > alpha) <= delta, whatever the candidates are
and however many. Nothing is extrapolated: only transitions that were sampled can be chosen.

Source: Learn-then-Test with fixed sequence testing, arXiv 2110.01052, sections 3.1 and 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import stats
from .basin import Judge, Pairs, Probe, branch, prefix
from .records import Estimate
from .sampling import draw_noise

Align = Callable[[Tensor, Tensor], Tensor]  # clean latents [B, ...] and prompts [B] -> agreement [B]


@dataclass(frozen=True)
class Candidate:
    """One transition that was tried.

    Attributes:
        transition: timestep at and below which CFG is on.
        sigma: noise level there.
        before: scale above it.
        risk: share of pairs that reproduce a training image.
        p_value: of "the risk is above alpha".
        alignment: agreement of image and caption; None where it was not measured.
        evals_per_sample: network evaluations one sample takes.
        kept: whether the promise covers it.
    """

    transition: float
    sigma: float
    before: float
    risk: Estimate
    p_value: float
    alignment: Estimate | None
    evals_per_sample: float
    kept: bool


def calibration_pairs(captions: int, count: int, shape: Sequence[int], first_seed: int) -> Pairs:
    """Pairs for a promise over *all captions x random seeds*: no two share their noise.

    With at least one pair for each caption the captions are enumerated evenly, so `count` is rounded up to a multiple;
    with fewer pairs than captions they are drawn at random.

    Source: both designs make the hit count at most as dangerous as a binomial one (Hoeffding 1956, Theorem 4).
    """
    if count >= captions:
        prompt = torch.arange(captions).repeat_interleave(-(-count // captions))
    else:
        prompt = torch.randint(captions, (count,), generator=torch.Generator().manual_seed(first_seed))
    seed = torch.arange(first_seed, first_seed + len(prompt))
    return Pairs(prompt, seed, draw_noise(seed.tolist(), shape))


def frontier(
    probe: Probe,
    pairs: Pairs,
    judge: Judge,
    *,
    alpha: float,
    delta: float,
    before: float = 0.0,
    positions: Sequence[int] | None = None,
    align: Align | None = None,
) -> Iterator[Candidate]:
    """Tests transitions from the safest to the boldest and stops after the first that cannot be proven.

    Args:
        probe: the model.
        pairs: from `calibration_pairs`.
        judge: says which clean latents reproduce a training image.
        alpha: the risk that may not be exceeded, in (0, 1).
        delta: the chance that the promise is broken, in (0, 1).
        before: scale above the transition.
        positions: grid positions to try, any order; every one by default.
        align: scores the agreement of image and caption.

    Raises:
        ValueError: alpha or delta out of range.
    """
    for name, value in (("alpha", alpha), ("delta", delta)):
        if not 0 < value < 1:
            raise ValueError(f"{name}={value}: expected a number strictly between 0 and 1")
    states, _ = prefix(probe, pairs, before)
    prefix_cost = 1 if before in (0.0, 1.0) else 2
    for position in sorted(positions or range(len(probe.timesteps)), reverse=True):
        ends, cost = branch(probe, states[position], pairs.prompt, torch.full_like(pairs.prompt, position))
        hits = judge(ends, pairs.prompt)
        p_value = stats.binomial_p_value(int(hits.sum()), len(pairs), alpha)
        timestep = float(probe.timesteps[position])
        yield Candidate(
            transition=timestep,
            sigma=float(probe.schedule.sigma(timestep)),
            before=before,
            risk=stats.rate(hits, pairs.prompt),
            p_value=p_value,
            alignment=stats.cluster_bootstrap(align(ends, pairs.prompt), pairs.prompt) if align else None,
            evals_per_sample=position * prefix_cost + cost / len(pairs),
            kept=p_value <= delta,
        )
        if p_value > delta:
            return


def best(candidates: Sequence[Candidate]) -> Candidate | None:
    """Of the candidates that keep the promise, the one with the best alignment; without alignment, the boldest.

    Choosing among proven candidates needs no further correction: the promise covers all of them at once.
    """
    kept = [c for c in candidates if c.kept]
    return max(kept, key=lambda c: (c.alignment.value if c.alignment else 0.0, c.transition), default=None)


def shortfall(alpha: float, delta: float, pairs: int) -> str:
    """Says in words how many pairs a promise would take, or "" when there are enough for a spotless result.

    Example:
        >>> shortfall(0.05, 0.05, 20)
        'no promise: 20 pairs cannot prove a risk of at most 5% with 95% confidence; 39 more pairs would'
    """
    needed = stats.pairs_needed(alpha, delta)
    if pairs >= needed:
        return ""
    return (
        f"no promise: {pairs} pairs cannot prove a risk of at most {alpha:.0%} with {1 - delta:.0%} confidence; "
        f"{needed - pairs} more pairs would"
    )
