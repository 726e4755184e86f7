"""`basinguard verify EXPORT DIR`: does the exported checkpoint keep its promise, sampled as a user would?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from diffusers import StableDiffusionPipeline

from ..core.record import Record, read_record
from ..core.schema import MAX_BYTES
from ..exports.layout import RECORD_FILE
from ..guard.training_set import TrainingSet
from ..guidance.core import Rule, from_record
from ..guidance.serialization import rule_from_dict
from ..pipelines.evaluation import Evaluation, evaluate
from ..pipelines.loading import load_pipeline
from ..plots.contact_sheet import contact_sheet
from .session import Opened, open_model, require_same

SHOWN = 6  # rows of the contact sheet
GUARDED, PARAPHRASED, HELDOUT = "guarded", "guarded, paraphrased", "guarded, held-out"


def verify(
    export: Path,
    data: Path,
    rules: Path | None = None,
    out: Path | None = None,
    per_caption: int = 4,
    paraphrase: bool = False,
    heldout: Path | None = None,
) -> dict[str, Evaluation]:
    """Samples an exported directory on fresh seeds, with and without its rule, beside the base model.

    Args:
        export: a directory that basinguard exported.
        data: the training images it must not reproduce.
        rules: JSON file of named rules to compare; the record's own rule by default.
        out: where `verification.json`, `contact_sheet.png` and, for the record's own rule, the verified `record.json`
            go; the current directory by default.
        per_caption: seeds for each caption.
        paraphrase: also sample reworded captions by the record's rule.
        heldout: text file of prompts, one a line, that were not trained on; also sampled by the record's rule.

    Returns:
        One row for each of base, cfg and every rule.

    Raises:
        FileNotFoundError: no record in the directory, no such data or prompts.
        ValueError: the images cannot be used, the record belongs to other weights, or its embedder is another one.
    """
    record = read_record(export / RECORD_FILE)
    prompts = read_prompts(heldout) if heldout else ()
    opened = open_model(
        str(export), data, base=record.base, scale=record.sampler.scale, timesteps=record.sampler.timesteps
    )
    require_same(record, opened)
    own = from_record(record.model_dump())
    runs = _runs(record, opened, _rules(rules) if rules else {GUARDED: own})
    training, guard, texts = opened.guard.training, opened.guard, list(opened.guard.training.captions)
    rows, marks, shown = {}, {}, {"training image": training.images[_rows(training)]}
    for name, pipe, rule in runs:
        pipe.set_progress_bar_config(desc=f"sampling {name}", leave=False, disable=False)
        rows[name], drawn = evaluate(pipe, guard, rule, per_caption=per_caption, timesteps=record.sampler.timesteps)
        shown[name] = drawn[[row * per_caption for row in _rows(training)]]
        marks[name] = guard.is_copy(shown[name]).tolist()
    for name, others in ((PARAPHRASED, [reword(text) for text in texts] if paraphrase else ()), (HELDOUT, prompts)):
        if others:
            opened.pipe.set_progress_bar_config(desc=f"sampling {name}", leave=False, disable=False)
            rows[name], _ = evaluate(
                opened.pipe, guard, own, per_caption=per_caption, timesteps=record.sampler.timesteps, prompts=others
            )
    target = out or Path()
    target.mkdir(parents=True, exist_ok=True)
    contact_sheet(shown, [texts[row] for row in _rows(training)], marks).save(target / "contact_sheet.png")
    (target / "verification.json").write_text(
        json.dumps({k: json.loads(r.to_json()) for k, r in rows.items()}, indent=2)
    )
    if GUARDED in rows:
        verified = record.model_copy(update={"verified": rows[GUARDED].risk})
        (target / "record.json").write_text(verified.to_json() + "\n", encoding="utf-8")
    return rows


def reword(caption: str) -> str:
    """The caption said otherwise with its own words, so that any tokenizer knows them.

    Example:
        >>> reword("a striped fish with a hat"), reword("a plain moon"), reword("sunset")
        ('with a hat a striped fish', 'plain moon', 'a sunset')
    """
    first, joint, rest = caption.partition(" with ")
    if joint:
        return f"with {rest} {first}"
    article, _, rest = caption.partition(" ")
    return rest if article.lower() in ("a", "an", "the") and rest else f"a {caption}"


def _runs(
    record: Record, opened: Opened, rules: dict[str, Rule]
) -> list[tuple[str, StableDiffusionPipeline, Rule | None]]:
    """What is compared on the training captions: name, pipeline, rule."""
    runs: list[tuple[str, StableDiffusionPipeline, Rule | None]] = [("base", load_pipeline(record.base), None)]
    return [*runs, ("cfg", opened.pipe, None), *((name, opened.pipe, rule) for name, rule in rules.items())]


def _rows(training: TrainingSet) -> list[int]:
    count = len(training.captions)
    return [count * k // SHOWN for k in range(min(SHOWN, count))]


def _rules(path: Path) -> dict[str, Rule]:
    try:
        forms = json.loads(path.read_bytes()[: MAX_BYTES + 1])
    except (ValueError, RecursionError):
        forms = None
    if not isinstance(forms, dict):
        raise ValueError(f"{path}: not a JSON object of at most {MAX_BYTES} bytes; expected a rule by each name")
    return {name: rule_from_dict(form) for name, form in forms.items()}


def read_prompts(path: Path) -> Sequence[str]:
    """Prompts of a text file, one a line.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no prompt in it.
    """
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    found = [line for line in lines if line]
    if not found:
        raise ValueError(f"{path}: no prompt in it; expected one a line")
    return found
