"""Do two captions say different things of what ought to be one picture?"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

from .caption_words import tokens
from .captions import words

SAME_FRAME = 0.5  # share of two captions' words that agree in order, from which a replaced word is a difference
SAYS_NOTHING = frozenset(words("a an the of in on at to and with is are this that its his her image photo picture"))
TELLS_APART = tuple(
    frozenset(words(group))
    for group in (
        "black white grey gray red green blue yellow orange purple violet pink brown beige cyan magenta turquoise teal "
        "gold silver",
        "day night dawn dusk morning noon evening sunset sunrise",
        "left right", "front back side", "open closed", "smiling sad angry neutral laughing crying surprised happy",
        "summer winter spring autumn fall", "man woman boy girl", "on off", "with without", "up down", "old young",
        "one two three four five six seven eight nine ten eleven twelve",
    )
)  # fmt: skip


def contradict(one: Sequence[str], two: Sequence[str]) -> bool:
    """Whether no caption of one image can stand for the other: in every pair of captions something is replaced.

    A missing caption contradicts nothing, nor does one that only adds to the other.

    Example:
        >>> contradict(["a red shirt on white"], ["a blue shirt on white"])
        True
        >>> contradict(["a cat on a sofa"], ["my cat, asleep on a sofa"])
        False
    """
    return bool(one and two) and all(_replaced(tokens(a), tokens(b)) for a in one for b in two)


def _replaced(one: list[str], two: list[str]) -> bool:
    only_one, only_two = set(one) - set(two) - SAYS_NOTHING, set(two) - set(one) - SAYS_NOTHING
    if not only_one or not only_two:
        return False
    if any(only_one & group and only_two & group for group in TELLS_APART):
        return True
    if any(map(str.isdigit, only_one)) and any(map(str.isdigit, only_two)):
        return True
    match = SequenceMatcher(None, one, two, autojunk=False)
    return match.ratio() >= SAME_FRAME and any(op[0] == "replace" for op in match.get_opcodes())
