"""`basinguard triage EXPORT DIR PROMPTS OUT`: which prompts need the rule at all, measured on the exported files."""

from __future__ import annotations

from pathlib import Path

from ..core.record import TriageResult, read_record
from ..exports.layout import RECORD_FILE
from ..exports.sentences import triage_line
from ..pipelines.triage_sampling import calibrate_by_sampling
from .session import open_model, require_same
from .verify import read_prompts


def triage(
    export: Path, data: Path, heldout: Path, out: Path, per_prompt: int = 4, wanted_miss: float = 0.05
) -> TriageResult:
    """Finds the gap below which a prompt keeps ordinary guidance; writes the export's record with it to a new file.

    Args:
        export: a directory that basinguard exported.
        data: the training images.
        heldout: text file of prompts, one a line, that were not trained on: the harmless ones.
        out: JSON file to write the record to, as `basinguard export` takes it; nothing is overwritten.
        per_prompt: fresh seeds for each prompt.
        wanted_miss: share of the pulling pairs that may be taken for harmless; they get ordinary guidance.

    Raises:
        FileExistsError: `out` exists.
        FileNotFoundError: no record in the directory, no such data or prompts.
        ValueError: the record belongs to other weights, or fewer than two prompts pull, or do not.
    """
    if out.exists():
        raise FileExistsError(f"{out}: exists already; name another file, nothing is overwritten")
    record, prompts = read_record(export / RECORD_FILE), read_prompts(heldout)
    sampler = record.sampler
    opened = open_model(
        str(export), data, base=record.base, scale=sampler.scale, timesteps=sampler.timesteps, alignment="none"
    )
    require_same(record, opened)
    result = calibrate_by_sampling(
        opened.pipe,
        [*opened.guard.training.captions, *prompts],
        opened.guard.is_copy,
        per_prompt=per_prompt,
        wanted_miss=wanted_miss,
        scale=sampler.scale,
        timesteps=sampler.timesteps,
    )
    record = record.model_copy(update={"triage": result})
    out.write_text(record.to_json() + "\n", encoding="utf-8")
    print(f"{triage_line(record)}\n{out}: export again with this record to ship it")
    return result
