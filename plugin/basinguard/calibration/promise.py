"""What a promise may be, in numbers and in words; it is proven in `certification`, by `fixed_sequence`."""

from __future__ import annotations

from ..core import stats
from .terms import CalibrationTerms


def require_terms(alpha: float, delta: float) -> None:
    """Refuses what cannot be promised.

    Raises:
        ValueError: alpha or delta outside (0, 1).
    """
    for name, value in (("alpha", alpha), ("delta", delta)):
        if not 0 < value < 1:
            raise ValueError(f"{name}={value}: expected a number strictly between 0 and 1")


def require_provable(terms: CalibrationTerms) -> None:
    """Says now what would be a pity to find out after an hour of sampling.

    Raises:
        ValueError: a number out of range, or too few pairs for any promise.
    """
    require_terms(terms.alpha, terms.delta)
    if few := shortfall(terms.alpha, terms.share, terms.pairs):
        raise ValueError(f"pairs={terms.pairs}, delta shared by {round(terms.delta / terms.share)} settings: {few}")


def promise(alpha: float, delta: float) -> str:
    """The promise in words."""
    return f"the risk is at most {alpha:.0%}, and this sentence is wrong with probability at most {delta:.0%}"


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


def no_promise(alpha: float, delta: float, pairs: int) -> str:
    """Why nothing that was tried could be proven."""
    few = shortfall(alpha, delta, pairs)
    return few or f"no promise: of nothing that was tried could a risk of at most {alpha:.0%} be proven"


def population(captions: int, pairs: int) -> str:
    """What the promise covers, and how it was sampled.

    Example:
        >>> population(32, 96)
        'all 32 training captions x random seeds, each with 3 of them'
    """
    drawn = f"each with {pairs // captions} of them" if pairs >= captions else f"{pairs} pairs of them drawn at random"
    return f"all {captions} training captions x random seeds, {drawn}"
