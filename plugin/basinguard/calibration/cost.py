"""What a calibration takes at most, said before it begins: products, samples, evaluations of the network."""

from __future__ import annotations

from dataclasses import dataclass

from .terms import CalibrationTerms

AROUND = 3  # strengths that another guidance scale is tried at: the leader's and its neighbours
BESIDE = 2  # products that are measured beside those on trial: whole plain CFG, and the shipped weights without a rule
SHARED = 3  # epochs of which shares are tried: the best two and the one after
TOLD = 4  # products that are sampled for held-out prompts: what ships, for plain loaders, newest and best plain CFG


@dataclass(frozen=True)
class CalibrationCost:
    """Upper bounds; a chain that ends early and products that copy at once make it less.

    Attributes:
        searched, proven: products.
        samples: of all of them.
        evaluations: of the network.
    """

    searched: int
    proven: int
    samples: int
    evaluations: int

    def __str__(self) -> str:
        return (
            f"searching at most {self.searched} products, then proving at most {self.proven}: at most "
            f"{self.samples:,} samples, {self.evaluations:,} evaluations of the network"
        )


def most_products(terms: CalibrationTerms, *, scale: float, epochs: int, graded: bool, rules: int) -> tuple[int, int]:
    """How many products the search and the proof can meet.

    Args:
        terms: the grid.
        scale: the user's own guidance scale.
        epochs: how many there are.
        graded: whether shares of the fine-tune can be had.
        rules: how many are searched.

    Example:
        >>> most_products(CalibrationTerms(before=()), scale=3.0, epochs=6, graded=True, rules=0)
        (25, 9)
    """
    strengths = len(terms.strengths) if graded else 1
    other_scales = (len(terms.plain_scales(scale)) - 1) * min(AROUND, strengths)
    shares = min(epochs, SHARED) * (strengths - 1)
    searched = epochs + shares + int(graded) + other_scales + rules
    return searched, terms.chain * (2 if rules else 1) + 1 + BESIDE


def cost(
    products: tuple[int, int], search_samples: int, proof_samples: int, beside: int, evals_per_sample: int
) -> CalibrationCost:
    """Samples and evaluations.

    Args:
        products: of search and proof.
        search_samples, proof_samples: of each product.
        beside: for what was taught alone: the base model's samples, and those of held-out prompts.
        evals_per_sample: of plain CFG.

    Example:
        >>> cost((10, 2), 32, 144, 96, 32).evaluations
        22528
    """
    samples = products[0] * search_samples + products[1] * proof_samples + beside
    return CalibrationCost(*products, samples, samples * evals_per_sample)
