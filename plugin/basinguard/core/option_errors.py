"""A parser's complaint about an option in one line, with the nearest option that there is."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import is_dataclass
from inspect import signature
from typing import Any, get_args, get_type_hints

UNKNOWN = re.compile(r"(?:Option|option) '([^']+)'(?: is not accepted)?|unrecognized arguments: -*([^\s=]+)")
NOISE = (
    "Does not validate against",
    "Subtypes:",
    "Errors:",
    "Given value type:",
    "Given value: {",
    "Expected a <class 'NoneType'>",
)
UNION = "Does not validate against any of the Union subtypes"
PLACE = re.compile(r'Parser key "([^"]+)"')
NEAR = 0.6  # likeness of two words that are read as one misspelt, as in difflib.get_close_matches
BEGINNING = 0.9  # likeness of a word that is the beginning of another
CLOSE = 0.5  # likeness below which a word is named without a guess at what was meant
MOST = 400  # characters


def options_of(build: Callable[..., Any], prefix: str) -> Iterator[str]:
    """Dotted names of all options of a class or function; those in a dataclass stand below the argument's name.

    Example:
        >>> from basinguard.core.estimate import Estimate
        >>> next(options_of(Estimate, "risk"))
        'risk.value'
    """
    hints = get_type_hints(build.__init__ if isinstance(build, type) else build)  # type: ignore[misc]
    for name in signature(build).parameters:
        yield f"{prefix}.{name}"
        hint = hints.get(name)
        for kind in (hint, *get_args(hint)):
            if isinstance(kind, type) and is_dataclass(kind):
                yield from options_of(kind, f"{prefix}.{name}")


def option_error(message: str, options: Iterable[str]) -> str:
    """What jsonargparse says in many lines; an option that does not exist comes with the nearest that does.

    Example:
        >>> option_error("Option 'rnak' is not accepted", ["model.rank", "model.seed"])
        "unknown option 'rnak'; the nearest is model.rank"
    """
    if unknown := UNKNOWN.search(message):
        name, place = unknown[1] or unknown[2], PLACE.search(message)
        return f"unknown option {name!r}; the nearest is {nearest_option(name, options, place[1] if place else '')}"
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    text = " ".join(line for line in lines if line and not line.startswith(NOISE))
    return text if len(text) <= MOST else f"{text[:MOST]}..."


def build_error(message: str) -> str:
    """What an object said that could not be built, without jsonargparse's word on every other type of the option.

    The type that is meant stands first in each union of a fit; anything else is told as it is.

    Example:
        >>> build_error("Does not validate against any of the Union subtypes\\nErrors:\\n  - too low\\n  - no None")
        'too low'
    """
    return message.split("\n  - ")[1] if message.startswith(UNION) and "\n  - " in message else message


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """The end of a complaint about a word: the nearest right one, or nothing where none is near.

    Example:
        >>> did_you_mean("calbrate", ["calibrate", "curate"]), did_you_mean("qqq", ["calibrate"])
        (': did you mean calibrate?', '')
    """
    nearest = nearest_option(word, names)
    return f": did you mean {nearest}?" if _likeness(word, nearest) >= CLOSE else ""


def nearest_option(name: str, options: Iterable[str], place: str = "") -> str:
    """The option whose last word is nearest to the name's, then the one whose place is.

    Where the parser says at which place the name stood, what is near it there goes before what is nearer elsewhere.

    Example:
        >>> nearest_option("model.rank", ["model.lora.rank", "model.lora", "data.seed"])
        'model.lora.rank'
        >>> nearest_option("capt", ["data.caption", "trainer.plan.captions"], place="trainer")
        'trainer.plan.captions'
        >>> nearest_option("dir", ["data.draw", "data.directory"])
        'data.directory'
    """

    def likeness(option: str) -> tuple[bool, float, float]:
        word, whole = name.rpartition(".")[2], option.rpartition(".")[2]
        last = BEGINNING if whole.startswith(word) and word not in ("", whole) else _likeness(word, whole)
        here = bool(place) and option.startswith(f"{place}.") and last >= NEAR
        return here, last, _likeness(name, option)

    return max(options, key=likeness)


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()
