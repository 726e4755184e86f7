"""The whole story on TinyWorld and a real image folder, in about a quarter of an hour on two CPU cores.

Fine-tune with the guard watching, calibrate, export, load the export in a fresh process, sample on fresh seeds, and say
what happened: a table, `summary.json` and a contact sheet.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..calibration.terms import CalibrationTerms
from ..core.files import write_text
from ..core.provenance import versions
from ..core.record import Record
from ..exports.sentences import product_line, verdict
from ..guard.plan import ProbePlan
from ..guidance.core import Rule, from_record
from ..guidance.dynamic import LocalMinimum, SwitchAfter
from ..guidance.serialization import rule_to_dict
from ..pipelines.evaluation import Evaluation
from ..pipelines.loading import require_capability
from ..similarity.copy_detector_settings import CopyDetectorSettings
from ..tinyworld.demo_folder import write_demo_folder
from ..training.data import ImageFolder
from ..training.finetune import FineTune
from ..training.finetune_options import LossOptions, MemoryOptions, OptimizerOptions
from ..training.fit_cli import quiet_lightning
from ..training.guard_options import ControlGroup
from ..training.lightning import MemorizationGuard
from .calibration import tried_rows
from .verification import GUARDED, HELDOUT, table

SCALE = 3.0  # TinyWorld's usual CFG: 7.5 saturates images this small
TIMESTEPS = 16
PLAN = ProbePlan(captions=12, seeds=2, timesteps=TIMESTEPS, scale=SCALE)
TERMS = CalibrationTerms(alpha=0.1, pairs=144)
PROBES = 10
PROMPTS = 16  # held-out ones in the final table
METHODS = {
    "base": "base model, plain CFG",
    "cfg": "the weights that ship, plain CFG at the usual scale",
    GUARDED: "the product that ships",
    "dtp": "the weights that ship, dynamic transition, the paper's rule",
    HELDOUT: "the product that ships, on captions that were not trained on",
}


@dataclass(frozen=True)
class DemoRun:
    """What the demo found: the rows of its table, and its summary as plain JSON; both lie in `out`."""

    out: Path
    rows: dict[str, Evaluation]
    summary: dict[str, Any]

    def __str__(self) -> str:
        files = {"exported": "export", "contact sheet": "contact_sheet.png", "summary": "summary.json"}
        places = "   ".join(f"{what}: {self.out / name}" for what, name in files.items())
        return f"{table(self.rows, METHODS)}\n\n{places}"


def run_demo(
    out: Path, epochs: int, per_caption: int, detector: CopyDetectorSettings, base: str = "tinyworld"
) -> DemoRun:
    """Fine-tunes TinyWorld with the guard watching, and proves the export in a process of its own.

    Args:
        out: run directory.
        epochs: passes over the 24 drawings.
        per_caption: fresh seeds for each caption in the final table.
        detector: what decides that a sample is a copy.
        base: name of a packaged model.

    Raises:
        ValueError: the model is of a family that cannot be exported.
    """
    require_capability(base, "exportable")
    start = time.monotonic()
    quiet_lightning()
    train, heldout = write_demo_folder(out / "data")
    guard = fine_tune(out, train, heldout, epochs, detector, base=base)
    if guard.run is None or guard.run.record is None:
        raise RuntimeError("training ended without a report, so there is nothing to calibrate; see the warnings above")
    rules = rules_for(guard.run.record)
    write_text(out / "rules.json", json.dumps({name: rule_to_dict(rule) for name, rule in rules.items()}, indent=2))
    rows = prove(out, train, heldout, per_caption)
    summary = summarize(guard, rules, rows, seconds=time.monotonic() - start)
    summary["command"] = f"basinguard demo --base {base}"
    write_text(out / "summary.json", json.dumps(summary, indent=2))
    return DemoRun(out, rows, summary)


def fine_tune(
    out: Path,
    train: Path,
    heldout_folder: Path,
    epochs: int,
    detector: CopyDetectorSettings = CopyDetectorSettings(),
    loss: LossOptions = LossOptions(),
    base: str = "tinyworld",
    terms: CalibrationTerms = TERMS,
) -> MemorizationGuard:
    """Full fine-tuning on ink drawings with the guard watching; it calibrates and exports when training ends."""
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import TensorBoardLogger

    images = detector.threshold == "heldout"  # which needs more than their captions
    guard = MemorizationGuard(
        PLAN,
        ControlGroup(folder=str(heldout_folder)) if images else ControlGroup(captions_of(heldout_folder)),
        detector,
        terms=terms,
        every_n_epochs=max(1, epochs // PROBES),
        export_to=str(out / "export"),
    )
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=TensorBoardLogger(out, name="tensorboard", version=""),
        callbacks=[guard],
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(
        demo_model(loss, base),
        datamodule=ImageFolder(str(train), resolution=64, batch_size=16),
    )
    return guard


def demo_model(loss: LossOptions = LossOptions(), base: str = "tinyworld") -> FineTune:
    """The demo's fine-tune: every weight of the denoiser of a packaged model."""
    optimizer = OptimizerOptions(learning_rate=4e-4)
    return FineTune(base, "full", optimizer=optimizer, loss=loss, memory=MemoryOptions(cache=True))


def rules_for(record: Record) -> dict[str, Rule]:
    """The rules of the table: the product's own, and the paper's DTP."""
    return {
        GUARDED: from_record(record.model_dump()),
        "dtp": SwitchAfter(LocalMinimum(), before=0.0, after=record.scale),
    }


def captions_of(folder: Path) -> list[str]:
    """The captions of a folder that `write_demo_folder` wrote."""
    return [json.loads(line)["text"] for line in (folder / "metadata.jsonl").read_text("utf-8").splitlines()]


def prove(out: Path, train: Path, heldout: Path, per_caption: int) -> dict[str, Evaluation]:
    """Samples the export in a process that shares nothing with this one but files."""
    prompts = out / "heldout.txt"
    write_text(prompts, "\n".join(captions_of(heldout)[:PROMPTS]) + "\n")
    command = [sys.executable, "-m", "basinguard", "verify", str(out / "export"), str(train)]
    command += ["--rules", str(out / "rules.json"), "--prompts", str(prompts), "--out", str(out)]
    command += ["--per_caption", str(per_caption)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # its table is printed here, with notes
    rows = json.loads((out / "verification.json").read_text())
    return {name: Evaluation.from_json(json.dumps(row)) for name, row in rows.items()}


def summarize(
    guard: MemorizationGuard, rules: dict[str, Rule], rows: dict[str, Evaluation], seconds: float
) -> dict[str, Any]:
    """What the demo found, as plain JSON."""
    assert guard.run is not None
    certificate = guard.run.certificate
    assert certificate is not None
    record = certificate.record
    return {
        **{name: _row(row) for name, row in rows.items()},
        "product": product_line(record),
        "verdict": verdict(record),
        "taught": record.taught.model_dump() if record.taught else None,
        "plain_taught": record.plain_taught.model_dump() if record.plain_taught else None,
        "best_plain_taught": record.best_plain_taught.model_dump() if record.best_plain_taught else None,
        "best_plain": str(certificate.most_taught_plain),
        "plain_risk": record.plain.model_dump(),
        "promise": record.promise,
        "population": record.population,
        "calibrated_risk": record.risk.model_dump(),
        "metric": record.metric.model_dump(),
        "rules": {name: rule_to_dict(rule) for name, rule in rules.items()},
        "tried": tried_rows(certificate),
        "history": [json.loads(report.to_json()) for report in guard.history],
        "seeds": {"probe": "1000..", "calibration": list(record.seeds), "verification": "2000000.."},
        "versions": versions(),
        "seconds": round(seconds, 1),
    }


def _row(row: Evaluation) -> dict[str, Any]:
    return {
        "risk": row.risk.model_dump(),
        "similarity_p95": row.similarity_p95.value,
        "similarity_p95_estimate": row.similarity_p95.model_dump(),
        "alignment": row.alignment.value if row.alignment else None,
        "alignment_estimate": row.alignment.model_dump() if row.alignment else None,
        "unet_evals": row.unet_evals,
        "seconds": row.seconds,
    }
