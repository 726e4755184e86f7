"""Prompts other than the training captions: reworded, truncated, none, and the captions themselves with more guidance.

Source: Somepalli et al., arXiv 2305.20086 (captions that are changed); unconditional copies: Jain et al., arXiv
2411.16738, section 5; a scale above the usual one: Carlini et al., arXiv 2301.13188, section 4 (many seeds).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..basin.trajectories import Pairs
from ..diffusion.sampling import EMPTY
from .attack import Attack
from .target import Attacker

HIGH = 2.0  # times the usual guidance scale


def reword(caption: str) -> str:
    """The caption said otherwise with its own words, so that any tokenizer knows them.

    Example:
        >>> reword("a striped fish with a hat"), reword("a plain moon"), reword("sunset")
        ('with a hat a striped fish', 'plain moon', 'a sunset')
    """
    first, joint, rest = caption.partition(" with ")
    if joint:
        return f"with {rest} {first}"
    article, _, rest = caption.partition(" ")
    return rest if article.lower() in ("a", "an", "the") and rest else f"a {caption}"


def truncate(caption: str) -> str:
    """The first half of a caption's words, at least one.

    Example:
        >>> truncate("a striped fish with a hat"), truncate("sunset")
        ('a striped fish', 'sunset')
    """
    words = caption.split()
    return " ".join(words[: max(1, len(words) // 2)])


def of_captions(change: Callable[[str], str]) -> Callable[[Attacker, Pairs], Tensor]:
    """Samples of the training captions, each changed."""

    def sample(attacker: Attacker, pairs: Pairs) -> Tensor:
        return attacker.sample([change(text) for text in attacker.captions], pairs.prompt, pairs.noise)

    return sample


def sample_high(attacker: Attacker, pairs: Pairs) -> Tensor:
    """The training captions with more guidance than is usual."""
    return attacker.sample(attacker.captions, pairs.prompt, pairs.noise, scale=HIGH * attacker.scale)


def sample_empty(attacker: Attacker, pairs: Pairs) -> Tensor:
    """No prompt at all; guidance has nothing to amplify then, so no rule plays a part either."""
    nothing = torch.full_like(pairs.prompt, EMPTY)
    return attacker.sample((), nothing, pairs.noise, scale=1.0)


def guided_cost(steps: int) -> int:
    """Evaluations of a sample with guidance."""
    return 2 * steps


CAPTIONS = (
    Attack("training captions", "usual scale", "the promise", of_captions(str), guided_cost),
    Attack("reworded captions", "their own words in another order", "2305.20086", of_captions(reword), guided_cost),
    Attack("truncated captions", "the first half of their words", "2305.20086", of_captions(truncate), guided_cost),
    Attack("empty prompt", "no guidance", "2411.16738", sample_empty, guided_cost),
    Attack("high scale", f"{HIGH:g} times the usual scale", "2301.13188", sample_high, guided_cost, weights=True),
)
