"""Every option of a class in one text: its own arguments, then those of the option objects that it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from inspect import getdoc, signature
from typing import Any

SECTIONS = ("Args:", "Attributes:")


def explained_options(build: Callable[..., Any]) -> str:
    """The docstring of a class or function, and below it the options of each frozen object among its defaults.

    Example:
        >>> from basinguard.core.option_docs import explained_options
        >>> explained_options(explained_options).splitlines()[0][:13]
        'The docstring'
    """
    kinds = [type(p.default) for p in signature(build).parameters.values() if is_dataclass(p.default)]
    parts = [f"{kind.__name__}{_defaults(kind)}\n\n" + "\n".join(_options(kind)) for kind in kinds]
    return "\n\n".join([getdoc(build) or "", *parts])


def _defaults(kind: type) -> str:
    return "(" + ", ".join(f"{p.name}={p.default!r}" for p in signature(kind).parameters.values()) + ")"


def _options(kind: type) -> Iterator[str]:
    """The lines of a class' section of options, of its bases' too."""
    for each in reversed(kind.__mro__):
        lines = inspect.cleandoc(each.__doc__ or "").splitlines() if is_dataclass(each) else []
        inside = False
        for line in lines:
            if line in SECTIONS or (line and not line.startswith(" ")):
                inside = line in SECTIONS
            elif inside and line:
                yield line
