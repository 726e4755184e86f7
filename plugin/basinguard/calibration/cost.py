"""What a calibration takes at most, said before it begins: products, samples, evaluations of the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .terms import COARSE, CONTENDERS, HALVINGS, CalibrationTerms

AROUND = 3  # strengths that another guidance scale is tried at: the leader's and its neighbours
BESIDE = 2  # products that are measured beside those on trial: whole plain CFG, and the shipped weights without a rule
SHARED = 3  # epochs of which shares are tried: the best two and the one after
COMPARED = 6  # of the proven, at most: the finalists of all and of plain CFG, where they cannot be told apart
TOLD = 4  # products that are sampled for held-out prompts: what ships, for plain loaders, newest and best plain CFG


@dataclass(frozen=True)
class CalibrationCost:
    """Upper bounds; a chain that ends early and products that copy at once make it less.

    Attributes:
        searched, ranked, proven: products.
        samples: of all of them.
        evaluations: of the network.
    """

    searched: int
    ranked: int
    proven: int
    samples: int
    evaluations: int

    def __str__(self) -> str:
        return (
            f"searching at most {self.searched} products, ranking {self.ranked}, then proving {self.proven}: at most "
            f"{self.samples:,} samples, {self.evaluations:,} evaluations of the network"
        )


def most_products(terms: CalibrationTerms, *, scale: float, epochs: int, graded: bool) -> tuple[int, int, int]:
    """How many products the search, the ranking and the proof can meet.

    Args:
        terms: the grid.
        scale: the user's own guidance scale.
        epochs: how many there are.
        graded: whether shares of the fine-tune can be had.

    Example:
        >>> most_products(CalibrationTerms(before=()), scale=3.0, epochs=6, graded=True)
        (25, 7, 9)
        >>> most_products(CalibrationTerms(), scale=3.0, epochs=6, graded=True)
        (47, 13, 15)
    """
    strengths = len(terms.strengths) if graded else 1
    other_scales = (len(terms.plain_scales(scale)) - 1) * min(AROUND, strengths)
    shares = min(epochs, SHARED) * (strengths - 1)
    plain = epochs + shares + int(graded) + other_scales
    plain += len(terms.update_filters) * epochs
    kinds, ruled = terms.chains, _most_rules(terms, epochs) + _most_schedules(terms, epochs)
    return plain + ruled, kinds * 2 * CONTENDERS + 1, terms.chain * kinds + 1 + BESIDE


def _most_schedules(terms: CalibrationTerms, epochs: int) -> int:
    """Each with plain CFG at every epoch, and once with a rule."""
    return len(terms.strength_schedules) * (epochs + bool(terms.settings))


def _most_rules(terms: CalibrationTerms, epochs: int) -> int:
    """Of each setting the earliest at every epoch, the others at one, and those between."""
    settings = len(terms.settings)
    between = 2 * HALVINGS if settings and not terms.transitions else 0
    return settings * (epochs - 1 + (len(terms.transitions) or COARSE)) + between


def cost(products: tuple[int, int, int], each: Sequence[int], beside: int, evals_per_sample: int) -> CalibrationCost:
    """Samples and evaluations.

    Args:
        products: of search, ranking and proof.
        each: samples of each of them, likewise.
        beside: for what was taught alone: the base model's samples, and those of held-out prompts.
        evals_per_sample: of plain CFG.

    Example:
        >>> cost((10, 0, 2), (32, 96, 144), 96, 32).evaluations
        22528
    """
    samples = sum(number * of_each for number, of_each in zip(products, each, strict=True)) + beside
    return CalibrationCost(*products, samples, samples * evals_per_sample)
