"""The `basinguard` command: one function for each verb; signatures and docstrings are the help (jsonargparse)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def commands() -> dict[str, Callable[..., Any]]:
    """Verb -> function. Imported here, so that `basinguard --help` is the only thing that waits for torch."""
    from .adapters.verify import verify
    from .demo import demo

    return {"demo": demo, "verify": verify}


def main(arguments: list[str] | None = None) -> None:
    """Runs one verb; a mistake of the user's is one line on stderr and exit status 2."""
    from jsonargparse import auto_cli

    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        auto_cli(commands(), args=arguments, as_positional=True)
    except (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        sys.exit(f"basinguard: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
