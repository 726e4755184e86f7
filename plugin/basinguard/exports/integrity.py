"""Is an export what it says? Every file against its sum, every copy of the record against the others, the record
against the weights.

This finds damage and mix-ups. It cannot find a forger who rewrites files and sums alike; for that, compare the sum of
`SHA256SUMS` with one that reached you another way.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from ..core.files import SUMS, file_sha256
from ..core.record import Record
from ..core.text import one_line, printable
from .fingerprints import weights_sha256
from .inspect import SHOWN, inspect_file
from .layout import (
    CODE,
    HEADER_LORA_SHA256,
    HEADER_RECORD,
    HEADER_RECORD_SHA256,
    RECORD_FILE,
    SCHEDULER_FILE,
    without_history,
)
from .lora_formats import layers_in, lora_sha256
from .stored_tensors import stored_tensors

OF_THE_HUB = (".gitattributes", ".git/", ".cache/huggingface/")  # what downloading from the Hub leaves behind
LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


@dataclass(frozen=True)
class Check:
    """Outcome of a check.

    Attributes:
        path: what was checked.
        verified: what was found to be right, in words.
        problems: what was found to be wrong; empty when all is right.
    """

    path: Path
    verified: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        lines = [*(f"ok       {text}" for text in self.verified), *(f"PROBLEM  {text}" for text in self.problems)]
        return "\n".join([f"{self.path}: {'all right' if self.ok else 'NOT what it says'}", *lines])


def check(path: str | Path) -> Check:
    """Checks an exported directory or LoRA file; see `check_directory` and `check_lora`."""
    path = Path(path).expanduser()
    return check_directory(path) if path.is_dir() else check_lora(path)


def check_directory(folder: Path) -> Check:
    """Checks every file of an export.

    Raises:
        FileNotFoundError: no record there.
        ValueError: the record cannot be read.
    """
    record = inspect_file(folder).record
    good, bad = [], []
    sums, mistakes = _sums(folder)
    bad += mistakes
    if sums:
        wrong = list(_wrong_files(folder, sums))
        bad += wrong
        good += [] if wrong else [f"{len(sums)} files are those listed in {SUMS}"]
    weights = weights_sha256(folder)
    same = weights == record.weights_sha256
    other = f"the weights are {weights[:12]}..., the record was made for {printable(record.weights_sha256[:12])}..."
    (good if same else bad).append("the record belongs to these weights" if same else other)
    copies = _other_copies(folder, record)
    (bad if copies else good).append(copies or f"{RECORD_FILE} and {SCHEDULER_FILE} tell the same record")
    if _is_our_code(folder):
        good.append("its code is that of this version of basinguard")
    return Check(folder, tuple(good), tuple(bad))


def check_lora(path: Path) -> Check:
    """Checks the tensors and the record of a LoRA file against the sums in its header."""
    found = inspect_file(path)
    if found.kind != "safetensors":
        raise ValueError(f"{path}: a {found.kind}; expected an exported directory or a LoRA file")
    claims = {
        "tensors": (HEADER_LORA_SHA256, _lora_fingerprint(path, found.header)),
        "record": (HEADER_RECORD_SHA256, hashlib.sha256(found.header[HEADER_RECORD].encode()).hexdigest()),
    }
    good = [f"the {what} has its sum" for what, (key, actual) in claims.items() if found.header.get(key) == actual]
    bad = [
        f"the {what} does not have the sum that the header's {key!r} says"
        for what, (key, actual) in claims.items()
        if found.header.get(key) != actual
    ]
    return Check(path, tuple(good), tuple(bad))


def _sums(folder: Path) -> tuple[dict[str, str], list[str]]:
    path = folder / SUMS
    if not path.is_file():
        return {}, [f"{SUMS} is missing: re-saved by another tool, or incomplete"]
    matches = [LINE.fullmatch(line) for line in path.read_text("utf-8", "replace").splitlines()]
    if not all(matches) or not matches:
        return {}, [f"{SUMS} has a line that is not a sum"]
    return {match[2]: match[1] for match in matches if match}, []


def _wrong_files(folder: Path, sums: dict[str, str]) -> Iterator[str]:
    """Only files that are there are opened, never a name that the list brings along; links count by their content."""
    there = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    for name, path in there.items():
        if name in sums and file_sha256(path) != sums[name]:
            yield f"{printable(name, SHOWN)} was changed"
        elif name not in sums and name != SUMS and not name.startswith(OF_THE_HUB):
            yield f"{printable(name, SHOWN)} is not in {SUMS}: somebody added it"
    for name in sorted(set(sums) - set(there)):
        yield f"{printable(name, SHOWN)} is missing"


def _other_copies(folder: Path, record: Record) -> str:
    try:
        inside = inspect_file(folder / SCHEDULER_FILE).record
    except (ValueError, FileNotFoundError) as error:
        return one_line(str(error), SHOWN)
    if (folder / RECORD_FILE).is_file() and inside != without_history(record):
        return f"{SCHEDULER_FILE} tells another record than {RECORD_FILE}"
    return ""


def _is_our_code(folder: Path) -> bool:
    return all(
        (folder / name).is_file() and (folder / name).read_bytes() == files("basinguard").joinpath(source).read_bytes()
        for name, source in CODE.items()
    )


def _lora_fingerprint(path: Path, header: dict[str, str]) -> str:
    try:
        return lora_sha256(layers_in(dict(stored_tensors(path)), header))
    except ValueError as error:
        return one_line(str(error), SHOWN)
