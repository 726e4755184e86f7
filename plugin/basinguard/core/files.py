"""Files whole or not at all: one appears under its name only when every byte of it is on disk; and their hashes."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

SUMS = "SHA256SUMS"


@contextmanager
def whole_directory(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary sibling of `out` to write into; it takes `out`'s name when the block ends without an error.

    Whatever goes wrong, nothing half-written stays behind and what stood at `out` before still stands there.

    Raises:
        FileExistsError: `out` exists and `overwrite` is False, or it holds files that no export wrote.
        NotADirectoryError: `out` is a file.
        OSError: the directory above `out` cannot be written, or the disk is full.
    """
    _heal(out)
    _check_free(out, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        yield partial
        for path in sorted(partial.rglob("*"), reverse=True):
            _flush(path)
        partial.chmod(0o755)
        _swap(partial, out)
    except SafetensorError as error:  # what safetensors makes of a full disk
        raise OSError(f"{out}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def whole_file(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary sibling of `out` to write to; see `whole_directory`.

    Raises:
        FileExistsError: `out` exists and `overwrite` is False.
        OSError: the directory above `out` cannot be written, or the disk is full.
    """
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out}: exists already; name another file, or pass overwrite=True")
    if out.is_dir():
        raise IsADirectoryError(f"{out}: is a directory, expected the name of a file")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.partial-", dir=out.parent) as folder:
        partial = Path(folder) / out.name
        try:
            yield partial
        except SafetensorError as error:
            raise OSError(f"{out}: cannot be written ({error})") from error
        _flush(partial)
        partial.replace(out)
        _flush(out.parent)


def write_bytes(out: Path, content: bytes) -> None:
    """Writes a file, or replaces one; see `whole_file`."""
    with whole_file(out, overwrite=True) as partial:
        partial.write_bytes(content)


def write_text(out: Path, content: str) -> None:
    """Writes a text file in UTF-8, or replaces one; see `whole_file`."""
    write_bytes(out, content.encode())


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def joined_sha256(digests: Sequence[str]) -> str:
    """One hash of files in their order, by their own hashes, from which none of them can be looked up; "" of none."""
    return hashlib.sha256("".join(digests).encode()).hexdigest() if digests else ""


def _heal(out: Path) -> None:
    """Gives an export its name back that a process killed between the two renames of `_swap` left without one."""
    left = sorted(out.parent.glob(f".{glob.escape(out.name)}.previous-*/{glob.escape(out.name)}"))
    if left and not out.exists():
        left[-1].rename(out)
        left[-1].parent.rmdir()


def _check_free(out: Path, overwrite: bool) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise NotADirectoryError(f"{out}: is not a directory; name one that does not exist yet")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(f"{out}: exists already; name another directory, or pass overwrite=True")
    foreign = _foreign(out)
    if foreign:
        raise FileExistsError(f"{out}: holds {foreign[0]!r}, which no export wrote; move it elsewhere first")


def _foreign(out: Path) -> list[str]:
    """Files at `out` that its own list of files does not name: somebody else's, never to be deleted."""
    sums = out / SUMS
    listed = [line.partition("  ")[2] for line in sums.read_text("utf-8").splitlines()] if sums.is_file() else []
    there = (path.relative_to(out).as_posix() for path in sorted(out.rglob("*")) if not path.is_dir())
    return [name for name in there if name not in {SUMS, *listed}]


def _swap(partial: Path, out: Path) -> None:
    """Two renames; the previous export comes back if the second one fails."""
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.previous-", dir=out.parent))
    previous = aside / out.name
    try:
        if out.exists():
            out.rename(previous)
        partial.rename(out)
    except OSError:
        if previous.exists():
            previous.rename(out)
        aside.rmdir()
        raise
    _flush(out.parent)
    shutil.rmtree(aside)


def _flush(path: Path) -> None:
    """Waits until a file or directory is on disk; a system that cannot open directories is not asked to."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
