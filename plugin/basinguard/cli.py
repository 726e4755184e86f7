"""The `basinguard` command: one function for each verb; its signature and docstring are the help (jsonargparse)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MISTAKES = (ValueError, TypeError, FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError)


def commands() -> dict[str, Callable[..., Any]]:
    """Verb -> function. Imported here, so that only a verb that is used waits for torch."""
    from .adapters.exporting import export
    from .adapters.verify import verify
    from .demo import demo
    from .export.commands import check, inspect
    from .similarity.commands import metrics

    return {
        "demo": demo,
        "verify": verify,
        "export": export,
        "inspect": inspect,
        "check": check,
        "compare-images": compare_images,
        "metrics": metrics,
    }


def compare_images(a: Path, b: Path, picture: Path | None = None) -> dict[str, Any]:
    """Are these two images the same, and which part of one is in the other?

    Args:
        a: an image, such as a sample.
        b: another, such as the training image it may come from.
        picture: where to write A with the copied part marked (PNG).
    """
    from .similarity.commands import compare_images

    return compare_images(a, b, picture=picture)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one verb; a user's mistake is one line on stderr and exit status 2, Ctrl-C is 130."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = _run(given)
    except MISTAKES as error:
        print(f"basinguard: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    if isinstance(result, dict) and given[0] not in SPEAKS:
        print(json.dumps(result, indent=2, default=str))


SPEAKS = ("demo", "verify", "fit")  # these print for people themselves


def _run(given: list[str]) -> Any:
    if given[:1] == ["fit"]:
        from .adapters.finetune_cli import fit_cli

        return fit_cli(given[1:])
    if given[:1] == ["--version"]:
        from . import __version__

        return print(f"basinguard {__version__}")
    from jsonargparse import auto_cli

    return auto_cli(commands(), args=given, prog="basinguard")


if __name__ == "__main__":
    main()
