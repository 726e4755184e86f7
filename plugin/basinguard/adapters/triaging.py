"""`basinguard triage EXPORT DIR HELDOUT OUT`: which prompts need the rule at all, measured on the exported files."""

from __future__ import annotations

from pathlib import Path

from ..export.card import triage_text
from ..records import TriageResult
from .loading import load_pipeline
from .triage import calibrate_by_sampling
from .verify import guard_for


def triage(
    export: Path, data: Path, heldout: Path, out: Path, per_prompt: int = 4, wanted_miss: float = 0.05
) -> TriageResult:
    """Finds the gap below which a prompt keeps ordinary guidance; writes the export's record with it to a new file.

    Args:
        export: a directory that basinguard exported.
        data: the training images.
        heldout: captioned images that were not trained on: the harmless prompts.
        out: JSON file to write the record to, as `basinguard export` takes it; nothing is overwritten.
        per_prompt: fresh seeds for each prompt.
        wanted_miss: share of the pulling pairs that may be taken for harmless; they get ordinary guidance.

    Raises:
        FileExistsError: `out` exists.
        ValueError: fewer than two prompts that pull, or that do not.
    """
    if out.exists():
        raise FileExistsError(f"{out}: exists already; name another file, nothing is overwritten")
    record, guard = guard_for(export, data, heldout)
    result = calibrate_by_sampling(
        load_pipeline(export),
        [*guard.training.captions, *guard.training.heldout],
        guard.is_copy,
        per_prompt=per_prompt,
        wanted_miss=wanted_miss,
        num_inference_steps=record.sampler.timesteps,
        guidance_scale=record.sampler.scale,
    )
    record = record.model_copy(update={"triage": result})
    out.write_text(record.to_json() + "\n", encoding="utf-8")
    print(f"{triage_text(record)}\n{out}: export again with this record to ship it")
    return result
