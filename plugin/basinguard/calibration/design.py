"""How many pairs a proof takes: all of them at once, or round after round until the verdict is clear.

A round samples every caption equally often. After each the evidence may be looked at: a capital process that bets
against "the risk is above alpha" (`core.betting`) stands above 1 / delta with probability delta at most, whenever one
looks. Captions have unlike risks, and a round meets all of them, so at the ends of rounds, and only there, a mixture of
constant bets is worth at most what it is under one common risk: the product of 1 + stake (alpha - p_c) over captions is
largest where all p_c are equal. A part of delta is kept for the exact test of all pairs, which has the most power where
no early verdict was clear. What is hopeless is given up, which costs no error.

Source: adaptive Learn-then-Test, arXiv 2409.15844 (e-processes with optional stopping); Waudby-Smith and Ramdas, JRSS B
86 (2024), arXiv 2010.09686 (betting); the inequality of arithmetic and geometric means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from scipy.stats import betabinom
from torch import Tensor

from ..core import stats
from ..core.betting import anytime_interval, log_capital_below
from ..core.estimate import Estimate
from .terms import EARLY, Kind

ROUND = 24  # pairs, at least: fewer would leave a sampler's batches empty
HOPE = 0.05  # a proof that is less likely than this, as far as its rounds have shown, is given up
LONGEST = 1.5  # times the pairs of a fixed design: where no verdict is clear early


@dataclass(frozen=True)
class Design:
    """Pairs that a product is proven on.

    Attributes:
        pairs: at most.
        rounds: they come in; 1 is the fixed design: every product on all of them.
    """

    pairs: int
    rounds: int = 1

    @classmethod
    def of(cls, kind: Kind, captions: int, pairs: int) -> Design:
        """The sequential or the fixed design for so many captions.

        Rounds have at least `ROUND` pairs over all captions, and there are as many as take up to `LONGEST` times
        `pairs`. With fewer pairs than captions no round could meet each of them: one round, of captions at random.

        Args:
            kind: which.
            captions: that are trained on.
            pairs: asked for; captions take equally many each, so there may be a few more.

        Example:
            >>> Design.of("sequential", 24, 144), Design.of("sequential", 4, 100), Design.of("sequential", 1000, 128)
            (Design(pairs=216, rounds=9), Design(pairs=168, rounds=7), Design(pairs=128, rounds=1))
            >>> Design.of("fixed", 24, 128)
            Design(pairs=144, rounds=1)
        """
        each = captions * -(-ROUND // captions)
        rounds = math.ceil(LONGEST * pairs / each) if kind == "sequential" and captions <= pairs else 1
        if rounds > 1:
            return cls(each * rounds, rounds)
        return cls(captions * -(-pairs // captions) if captions <= pairs else pairs)

    def p_value(self, hits: int, n: int, alpha: float) -> float:
        """Of "the risk is above alpha" after `hits` copies among `n` pairs, whole rounds, however it came to end there.

        Example:
            >>> round(Design(59).p_value(0, 59, 0.05), 4), round(Design(216, 9).p_value(0, 48, 0.1), 4)
            (0.0485, 0.0321)
        """
        whole = stats.binomial_p_value(hits, n, alpha) if n >= self.pairs else 1.0
        if self.rounds == 1:
            return whole
        early = math.exp(-float(log_capital_below(hits, n, alpha)))
        return min(1.0, early / EARLY, whole / (1 - EARLY))

    def interval(self, risk: Estimate) -> Estimate:
        """The interval of a measured risk, wide enough for having stopped where it suited."""
        if self.rounds == 1:
            return risk
        anytime = anytime_interval(round(risk.value * risk.n), risk.n, risk.level)
        ends = {"low": min(risk.low, anytime.low), "high": max(risk.high, anytime.high)}
        return risk.model_copy(update=ends | {"method": f"{risk.method}; {anytime.method}"})

    def clear(self, hits: int, n: int, alpha: float, delta: float) -> bool:
        """Whether the verdict of a test at `delta` is: proven, hopeless, or out of pairs."""
        return n >= self.pairs or self.p_value(hits, n, alpha) <= delta or self.hope(hits, n, alpha, delta) < HOPE

    def hope(self, hits: int, n: int, alpha: float, delta: float) -> float:
        """Chance that all pairs will prove it, where the risk is as likely as Jeffreys' prior and the rounds say."""
        most = stats.largest_proven(alpha, delta * (1 - EARLY), self.pairs)
        if hits > most:
            return 0.0
        return float(betabinom.cdf(most - hits, self.pairs - n, hits + 0.5, n - hits + 0.5))

    def chance(self, hits: float, n: int, alpha: float, delta: float) -> float:
        """Chance that all of these pairs prove it, where so many of n others were copies (Jeffreys' prior).

        Example:
            >>> design = Design(216, 9)
            >>> [round(design.chance(hits, 48, 0.1, 0.02), 2) for hits in (0, 2, 6)]
            [0.97, 0.6, 0.04]
        """
        last = delta if self.rounds == 1 else delta * (1 - EARLY)
        most = stats.largest_proven(alpha, last, self.pairs)
        return float(betabinom.cdf(most, self.pairs, hits + 0.5, n - hits + 0.5))

    def split(self, prompt: Tensor) -> Iterator[Tensor]:
        """The rows of each round among pairs of these prompts, [N]: every prompt equally often in each."""
        if self.rounds == 1:
            yield torch.arange(len(prompt))
            return
        order = torch.argsort(prompt, stable=True)
        counts = torch.bincount(prompt)
        place = torch.cat([torch.arange(int(count)) for count in counts])
        number = torch.empty_like(prompt)
        number[order] = place * self.rounds // counts.repeat_interleave(counts)
        for k in range(self.rounds):
            yield (number == k).nonzero().flatten()

    def run(self, draw: Callable[[Tensor], Tensor], prompt: Tensor, alpha: float, delta: float) -> Tensor:
        """Draws rounds until the verdict is clear.

        Args:
            draw: from rows of the pairs to which of them are copies, bool.
            prompt: of each pair, [N].
            alpha, delta: of the test.

        Returns:
            The rows that were drawn, in order.
        """
        rows, hits = [], 0
        for part in self.split(prompt):
            rows.append(part)
            hits += int(draw(part).sum())
            if self.clear(hits, sum(len(p) for p in rows), alpha, delta):
                break
        return torch.cat(rows)
