"""A stranger's text on one line: nothing in it can write to a terminal, a page or a card what it likes."""

from __future__ import annotations


def printable(name: str, max_length: int | None = None) -> str:
    r"""A name that stays recognizable: control characters and undecodable bytes are escaped.

    Args:
        name: such as a file name.
        max_length: characters at which it is cut, with an ellipsis.

    Example:
        >>> print(printable("two\nlines"))
        two\nlines
    """
    return _cut("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name), max_length)


def one_line(text: str, max_length: int | None = None) -> str:
    r"""Prose or an error's message: line breaks become spaces, control characters go; cut at `max_length` characters.

    Example:
        >>> one_line("a\n  bell\a rings", 9)
        'a bell r…'
    """
    return _cut(" ".join("".join(c for c in text if c.isprintable() or c.isspace()).split()), max_length)


def _cut(line: str, max_length: int | None) -> str:
    return line if max_length is None or len(line) <= max_length else line[: max_length - 1] + "…"


def interval_text(value: float, low: float, high: float, digits: int) -> str:
    """A number with the ends of its interval: `0.031 [0.010, 0.082]`."""
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def epoch_name(epoch: int | None) -> str:
    """An epoch in words, as people count; reports and files count from 0, -1 is the base model there, None unknown.

    Example:
        >>> epoch_name(-1), epoch_name(0)
        ('the base model', 'epoch 1')
    """
    if epoch is None:
        return "an unknown epoch"
    return "the base model" if epoch < 0 else f"epoch {epoch + 1}"
