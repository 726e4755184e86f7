"""Is an export what it says? Every file against its sum, every copy of the record against the others, the record
against the weights.

This finds damage and mix-ups. It cannot find a forger who rewrites files and sums alike; for that, compare the sum of
`SHA256SUMS` with one that reached you another way.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..core.files import SUMS, file_sha256
from ..core.record import Record
from ..core.safetensors_header import read_header
from ..core.text import one_line, printable
from .fingerprints import weights_sha256
from .inspect import SHOWN, inspect_file
from .layout import (
    CODE,
    HEADER_LORA_SHA256,
    HEADER_RECORD,
    HEADER_RECORD_SHA256,
    HEADER_TENSORS_SHA256,
    LORA_FILE,
    RECORD_FILE,
    SCHEDULED_CODE,
    SCHEDULER_FILE,
    code_for,
    without_history,
)
from .lora_formats import layers_in, lora_sha256
from .model_kind import kind_at
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
        notes: what could not be checked.
    """

    path: Path
    verified: tuple[str, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        marked = {"ok": self.verified, "note": self.notes, "PROBLEM": self.problems}
        lines = [f"{mark:<7}  {text}" for mark, texts in marked.items() for text in texts]
        return "\n".join([f"{self.path}: {'all right' if self.ok else 'NOT what it says'}", *lines])


def check_export(path: str | Path) -> Check:
    """Checks an exported directory, LoRA or single file; see `check_directory` and `check_file`."""
    path = Path(path).expanduser()
    return check_directory(path) if path.is_dir() else check_file(path)


def check_directory(folder: Path) -> Check:
    """Checks every file of an export.

    Raises:
        FileNotFoundError: no record there.
        ValueError: the record cannot be read.
    """
    record = inspect_file(folder).record
    scheduled = record.product.strength_schedule is not None
    code = _is_of_this_version(folder, scheduled=scheduled)
    rows = [*_files(folder), _weights(folder, record), _copies_of_record(folder, record)]
    rows += [(True, "its code is that of this version of basinguard")] if code else []
    names = ", ".join(SCHEDULED_CODE) if scheduled else " and ".join(CODE)
    notes = [f"{names} are not those of this version of basinguard: read them before you run them"]
    return _sorted(folder, rows, notes if code is False else ())


def check_file(path: Path) -> Check:
    """Checks the tensors and the record of a LoRA or single file against the sums in its header."""
    inspection = inspect_file(path)
    if inspection.kind != "safetensors":
        raise ValueError(f"{path}: a {inspection.kind}; expected an exported directory, a LoRA or a single file")
    header = inspection.header
    whole = HEADER_TENSORS_SHA256 in header
    tensors = weights_sha256(path) if whole else _lora_fingerprint(path, header)
    sums = {
        "tensors": (HEADER_TENSORS_SHA256 if whole else HEADER_LORA_SHA256, tensors),
        "record": (HEADER_RECORD_SHA256, hashlib.sha256(header[HEADER_RECORD].encode()).hexdigest()),
    }
    return _sorted(path, [_header_sum(header, what, key, actual) for what, (key, actual) in sums.items()])


CheckedRow = tuple[bool, str]  # whether it is right, and what that is


def _sorted(path: Path, rows: Iterable[CheckedRow], notes: Iterable[str] = ()) -> Check:
    rows = list(rows)
    verified, problems = (tuple(text for right, text in rows if right is want) for want in (True, False))
    return Check(path, verified, problems, tuple(notes))


def _header_sum(header: dict[str, str], what: str, key: str, actual: str) -> CheckedRow:
    if header.get(key) == actual:
        return True, f"the {what} has its sum"
    return False, f"the {what} does not have the sum that the header's {key!r} says"


def _files(folder: Path) -> list[CheckedRow]:
    sums, mistakes = _sums(folder)
    wrong = mistakes or list(_wrong_files(folder, sums))
    return [(False, text) for text in wrong] or [(True, f"{len(sums)} files are those listed in {SUMS}")]


def _weights(folder: Path, record: Record) -> CheckedRow:
    scheduled, recorded = record.product.strength_schedule is not None, record.weights_sha256
    if scheduled and not (folder / LORA_FILE).is_file():
        return False, f"the record is of a LoRA in {LORA_FILE}, which is not here"
    actual = lora_file_sha256(folder / LORA_FILE) if scheduled else weights_sha256(folder)
    if actual == recorded:
        return True, "the record belongs to these weights"
    return False, f"the weights are {actual[:12]}..., the record was made for {printable(recorded[:12])}..."


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


def _copies_of_record(folder: Path, record: Record) -> CheckedRow:
    try:
        inside = inspect_file(folder / SCHEDULER_FILE).record
    except (ValueError, FileNotFoundError) as error:
        return False, one_line(str(error), SHOWN)
    if (folder / RECORD_FILE).is_file() and inside != without_history(record):
        return False, f"{SCHEDULER_FILE} tells another record than {RECORD_FILE}"
    return True, f"{RECORD_FILE} and {SCHEDULER_FILE} tell the same record"


def _is_of_this_version(folder: Path, *, scheduled: bool) -> bool | None:
    """Whether the code that ships with an export is this version's; None where there is none."""
    if not all((folder / name).is_file() for name in CODE):
        return None
    try:
        ours = code_for(kind_at(folder).pipeline, scheduled=scheduled)
    except ValueError:  # no class that is exported here
        return False
    return all((folder / name).is_file() and (folder / name).read_bytes() == code for name, code in ours.items())


def lora_file_sha256(path: Path) -> str:
    """The fingerprint of a LoRA file, `lora_formats.lora_sha256`, or in words why it has none."""
    try:
        return _lora_fingerprint(path, read_header(path).metadata)
    except (FileNotFoundError, ValueError) as error:
        return one_line(str(error), SHOWN)


def _lora_fingerprint(path: Path, header: dict[str, str]) -> str:
    try:
        return lora_sha256(layers_in(dict(stored_tensors(path)), header))
    except ValueError as error:
        return one_line(str(error), SHOWN)
