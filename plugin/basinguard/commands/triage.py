"""`basinguard triage EXPORT DIR PROMPTS OUT`: which prompts need the rule at all, measured on the exported files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..similarity.copy_detector_settings import RECORDED, CopyDetectorSettings

if TYPE_CHECKING:
    from ..core.record import Record


def triage(
    export: Path,
    data: Path,
    prompts: Path,
    out: Path,
    per_prompt: int = 4,
    wanted_miss: float = 0.05,
    detector: CopyDetectorSettings = RECORDED,
) -> Record:
    """Finds the gap below which a prompt keeps plain CFG; writes the export's record with it to a new file.

    Args:
        export: a directory that basinguard exported.
        data: the training images.
        prompts: text file of prompts, one a line, that were not trained on: the harmless ones.
        out: JSON file to write the record to, as `basinguard export` takes it; nothing is overwritten.
        per_prompt: fresh seeds for each prompt.
        wanted_miss: share of the pulling pairs that may be taken for harmless; they get plain CFG.
        detector: what decides that a sample is a copy: by default the one that the record names.

    Raises:
        FileExistsError: `out` exists.
        FileNotFoundError: no record in the directory, no such data or prompts.
        ValueError: the record's rule is plain CFG for every prompt, the record belongs to other weights, or fewer than
            two prompts pull, or do not.
    """
    from ..core.files import whole_file
    from ..core.record import read_record
    from ..exports.layout import RECORD_FILE
    from ..pipelines.protect import protect
    from ..pipelines.triage_sampling import calibrate_by_sampling
    from ..sessions.session import open_export
    from ..sessions.verification import read_prompts

    if out.exists():
        raise FileExistsError(f"{out}: exists already; name another file, nothing is overwritten")
    harmless = read_prompts(prompts)
    if read_record(export / RECORD_FILE).guidance.plain:
        raise ValueError(f"{export}: samples every prompt by plain CFG, so there is no rule that some could do without")
    record, session = open_export(export, data, detector, alignment="none")
    result = calibrate_by_sampling(
        protect(session.pipe, record),
        [*session.guard.training.captions, *harmless],
        session.guard.is_copy,
        session.guard.plan,
        per_prompt=per_prompt,
        wanted_miss=wanted_miss,
    )
    record = record.model_copy(update={"triage": result})
    with whole_file(out) as partial:
        partial.write_text(record.to_json() + "\n", encoding="utf-8")
    return record


def show(record: Record, arguments: dict[str, Any]) -> None:
    """Prints the line of the card, and what to do with the file."""
    from ..exports.sentences import triage_line

    print(f"{triage_line(record)}\n{arguments['out']}: export again with this record to ship it")
