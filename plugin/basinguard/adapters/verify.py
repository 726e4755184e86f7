"""`basinguard verify EXPORT DIR`: does the exported checkpoint keep its promise, sampled as a user would?"""

from __future__ import annotations

import json
from pathlib import Path

from diffusers import StableDiffusionPipeline

from ..guard import Guard, Plan, TrainingSet
from ..guidance import Rule, from_dict, from_record
from ..plots import contact_sheet
from ..records import MAX_BYTES, read_record
from ..similarity.structure import Structure
from .evaluate import Row, evaluate
from .images import ImageFolder
from .loading import load_pipeline
from .shipping import alignment_for

SHOWN = 6  # rows of the contact sheet


def verify(
    export: Path, data: Path, rules: Path | None = None, out: Path | None = None, per_caption: int = 4
) -> dict[str, Row]:
    """Samples an exported directory on fresh seeds, with and without its rule, beside the base model.

    Args:
        export: a directory that basinguard exported.
        data: the training images it must not reproduce.
        rules: JSON file of named rules to compare; the record's own rule by default.
        out: where `verification.json` and `contact_sheet.png` go; the current directory by default.
        per_caption: seeds for each caption.

    Returns:
        One row for each of base, cfg and every rule.

    Raises:
        FileNotFoundError: no record in the directory, no such data.
        ValueError: the images cannot be used, or the embedder of the record is another one.
    """
    record = read_record(export / "basinguard.json")
    images = ImageFolder(str(data), resolution=record.sampler.resolution)
    images.setup("verify")
    eye = Structure()
    if eye.metric.embedder != record.metric.embedder:
        raise ValueError(f"the record was measured with {record.metric.embedder!r}, this is {eye.metric.embedder!r}")
    training = TrainingSet(images.all_pixels(), tuple(caption for _, caption in images.items))
    plan = Plan(captions=1, timesteps=record.sampler.timesteps, scale=record.sampler.scale)
    guard = Guard(training, eye, plan, alignment_for(record.base))
    named = _rules(rules) if rules else {"guarded": from_record(record.model_dump())}
    pipes: list[tuple[str, StableDiffusionPipeline, Rule | None]] = [("base", load_pipeline(record.base), None)]
    tuned = load_pipeline(export)
    pipes += [("cfg", tuned, None), *((name, tuned, rule) for name, rule in named.items())]
    rows, shown = {}, {"training image": training.images[_rows(training)]}
    marks = {}
    for name, pipe, rule in pipes:
        pipe.set_progress_bar_config(desc=f"sampling {name}", leave=False)
        rows[name], drawn = evaluate(pipe, guard, rule, per_caption=per_caption, timesteps=plan.timesteps)
        shown[name] = drawn[[row * per_caption for row in _rows(training)]]
        marks[name] = guard.is_copy(shown[name]).tolist()
    target = out or Path()
    target.mkdir(parents=True, exist_ok=True)
    texts = [training.captions[row] for row in _rows(training)]
    contact_sheet(shown, texts, marks).save(target / "contact_sheet.png")
    (target / "verification.json").write_text(
        json.dumps({k: json.loads(r.to_json()) for k, r in rows.items()}, indent=2)
    )
    return rows


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
    return {name: from_dict(form) for name, form in forms.items()}
