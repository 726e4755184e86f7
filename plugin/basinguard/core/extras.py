"""Libraries that only some users need, asked for by name at the moment of use."""

from __future__ import annotations

import importlib
from typing import Any


class MissingExtraError(ImportError):
    """A library that only some users need is not there: a user's mistake, told in one line, and no bug."""


def optional(module: str, *, install: str, gives: str) -> Any:
    """A module that is not among the dependencies.

    Args:
        module: what to import.
        install: what to hand to pip.
        gives: what it is needed for, for the message.

    Raises:
        MissingExtraError: it is not installed; says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingExtraError(f"{gives} needs {module.partition('.')[0]}: pip install '{install}'") from None
