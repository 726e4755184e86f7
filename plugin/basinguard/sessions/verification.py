"""An exported checkpoint sampled as a user would, beside plain CFG and the base model: does it keep its promise?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from ..attacks.captions import reword
from ..core.files import whole_file, write_text
from ..core.progress import say, working
from ..core.record import Record
from ..core.schema import MAX_BYTES
from ..guard.guard import Guard
from ..guard.training_set import TrainingSet
from ..guidance.core import Rule, from_record
from ..guidance.serialization import rule_from_dict
from ..pipelines.evaluation import Evaluation, evaluate
from ..pipelines.loading import load_pipeline
from ..plots.contact_sheet import contact_sheet
from .session import Session

SHOWN, SHOWN_HELDOUT = 6, 4  # rows of the contact sheet: captions that were trained on, and prompts that were not
GUARDED, PARAPHRASED, HELDOUT = "guarded", "guarded, paraphrased", "guarded, held-out"
TITLES = {"base": "base model", "cfg": "plain CFG", "dtp": "dynamic transition"}  # of tables and sheets


Value = TypeVar("Value")


@dataclass(frozen=True)
class Verification:
    """One row for each of base, cfg and every rule, with the pictures, and the record with the risk that was verified.

    Attributes:
        rows: by name.
        sheet: the contact sheet.
        record: the verified record; None when the record's own rule was not among those compared, or another copy
            detector than the record's decided.
    """

    rows: dict[str, Evaluation]
    sheet: Image.Image
    record: Record | None

    def write(self, out: Path) -> None:
        """Writes `contact_sheet.png`, `verification.json` and the verified `record.json`."""
        with whole_file(out / "contact_sheet.png", overwrite=True) as partial:
            self.sheet.save(partial)
        rows = {name: json.loads(row.to_json()) for name, row in self.rows.items()}
        write_text(out / "verification.json", json.dumps(rows, indent=2))
        if self.record is not None:
            write_text(out / "record.json", self.record.to_json() + "\n")


def verify_session(
    record: Record,
    session: Session,
    *,
    rules: dict[str, Rule] | None = None,
    per_caption: int = 4,
    paraphrase: bool = False,
    prompts: Sequence[str] = (),
) -> Verification:
    """Samples the base model, plain CFG and every rule on the training captions; the record's rule on other prompts.

    Args:
        record: of the export.
        session: the export, opened.
        rules: by name; the record's own when None.
        per_caption: seeds for each caption.
        paraphrase: also sample reworded captions.
        prompts: that were not trained on; also sampled, and on the sheet for every way of sampling.
    """
    scheduled = record.product.strength_schedule is not None
    own: Rule | Record = record if scheduled else from_record(record.model_dump())
    guard, pipe = session.guard, session.pipe
    training = guard.training
    texts, shown, unseen = list(training.captions), _shown(training), list(prompts[:SHOWN_HELDOUT])
    blank = torch.ones(len(unseen), *training.images.shape[1:])
    rows, marks, images = {}, {}, {"training image": torch.cat([training.images[shown], blank])}
    ways: Mapping[str, Rule | Record] = rules or {GUARDED: own}
    runs = [("base", _quiet(load_pipeline(record.base)), None), ("cfg", pipe, None)]
    for name, run_pipe, rule in [*runs, *((name, pipe, rule) for name, rule in ways.items())]:
        with working(f"sampling {name}", _evaluations(guard, len(texts) * per_caption)):
            rows[name], samples = evaluate(run_pipe, guard, rule, per_caption=per_caption)
        say(f"{name}: {rows[name].risk} of the samples copy")
        images[name] = samples[[row * per_caption for row in shown]]
        if unseen:
            _, fresh = evaluate(run_pipe, guard, rule, prompts=unseen, per_caption=1)
            images[name] = torch.cat([images[name], fresh])
        marks[name] = guard.is_copy(images[name]).tolist()
    for name, others in ((PARAPHRASED, [reword(text) for text in texts] if paraphrase else ()), (HELDOUT, prompts)):
        if others:
            with working(f"sampling {name}", _evaluations(guard, len(others) * per_caption)):
                rows[name], _ = evaluate(pipe, guard, own, prompts=others, per_caption=per_caption)
    judged_as_recorded = guard.embedder.metric == record.metric
    verified = None
    if GUARDED in rows and judged_as_recorded:
        verified = record.model_copy(update={"verified": rows[GUARDED].risk})
    titles = [*(texts[row] for row in shown), *(f"not trained on: {text}" for text in unseen)]
    return Verification(rows, contact_sheet(_titled(images), titles, _titled(marks)), verified)


def table(rows: dict[str, Evaluation], notes: Mapping[str, str] = MappingProxyType({})) -> str:
    """The rows for a terminal, each with its note."""
    names = _titled({name: name for name in rows})
    width = max(5, *map(len, names))
    lines = [f"{'':{width}} {'risk [95% interval]':24} {'sim p95':>8} {'alignment':>10} {'UNet/img':>9} {'s/img':>6}"]
    for title, name in names.items():
        row = rows[name]
        alignment = f"{row.alignment.value:.3f}" if row.alignment else "-"
        lines.append(
            f"{title:{width}} {row.risk.interval():24} {row.similarity_p95.value:8.3f} {alignment:>10} "
            f"{row.unet_evals:9.1f} {row.seconds:6.2f}   {notes.get(name, '')}".rstrip()
        )
    metrics = {row.metric.definition: None for row in rows.values() if row.metric}
    lines += ["", *metrics] if metrics else []
    return "\n".join(lines)


def _titled(values: Mapping[str, Value]) -> dict[str, Value]:
    """By the words of every table and card instead of the names in files."""
    return {TITLES.get(name, name): value for name, value in values.items()}


def _evaluations(guard: Guard, samples: int) -> int:
    """Of the network, for so many samples by plain CFG, which no rule exceeds."""
    return 2 * guard.plan.timesteps * samples


def _quiet(pipe: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """The pipeline without a bar of its own for each batch: one bar is enough."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _shown(training: TrainingSet) -> list[int]:
    """Captions on the contact sheet, spread evenly."""
    count = len(training.captions)
    return [count * k // SHOWN for k in range(min(SHOWN, count))]


def read_rules(path: Path) -> dict[str, Rule]:
    """Named rules of a JSON file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an object of rules.
    """
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
    prompts = [line for line in lines if line]
    if not prompts:
        raise ValueError(f"{path}: no prompt in it; expected one a line")
    return prompts
