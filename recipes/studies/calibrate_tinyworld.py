"""Calibrates and audits fine-tunes of TinyWorld, and publishes what was found.

Copy this file, do not import it. It fine-tunes TinyWorld on the demo's 32 images (`--method full` or `lora`), then
calibrates and audits the result as the verbs of those names do, and checks the promise on fresh seeds.

    python recipes/studies/calibrate_tinyworld.py --method full --updates 520 --run runs/full --out recipes/results

Writes calibration_full.json and products_full.png to `--out`, the audit's page to
`--run`; each as soon as it is known, the transfer table last.
Expected: risk on fresh seeds within the promise (alpha 0.1, delta 0.05). Time: about 12 minutes on one idle CPU core,
of which 7 are training. Memory: 2 GB.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import time
import warnings
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import torch

from basinguard import FineTune, ImageFolder
from basinguard.calibration.terms import CalibrationTerms
from basinguard.guidance.core import from_record
from basinguard.pipelines.evaluation import evaluate
from basinguard.pipelines.session_settings import SessionSettings
from basinguard.pipelines.transfer import transfer_table
from basinguard.sessions.audit import audit_session
from basinguard.sessions.calibration import Calibration, calibrate_session
from basinguard.sessions.session import open_model
from basinguard.tinyworld.demo_folder import write_demo_folder
from basinguard.tinyworld.tasks import TASKS
from basinguard.training.finetune_options import LoraOptions, LossOptions, MemoryOptions, OptimizerOptions

SCALE, TIMESTEPS = 3.0, 16
METHODS = {
    "full": {"optimizer": OptimizerOptions(learning_rate=8e-4)},
    "lora": {"optimizer": OptimizerOptions(learning_rate=3e-3), "lora": LoraOptions(rank=32)},
}
TERMS = CalibrationTerms(
    alpha=0.1,
    delta=0.05,
    pairs=96,
    transitions=(690.0, 750.0, 815.0),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=sorted(METHODS), default="full")
    parser.add_argument("--updates", type=int, default=520)
    parser.add_argument("--pairs", type=int, default=TERMS.pairs)
    parser.add_argument("--model", type=Path, help="a fine-tune of these very images, instead of training one")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_grad_enabled(False)
    start = time.monotonic()
    data, _ = write_demo_folder(args.run / "data", TASKS["scenes"])
    model = args.model or fine_tune(args.method, args.updates, data, args.run / "model")
    session = open_model(str(model), data, SessionSettings("tinyworld", scale=SCALE, timesteps=TIMESTEPS))
    terms = replace(TERMS, pairs=args.pairs)
    calibration = calibrate_session(session, terms)
    if args.method == "lora":  # it is merged into the model by now: a share of the way from the base is its strength
        product = calibration.record.product.model_copy(update={"kind": "lora"})
        calibration = replace(calibration, record=calibration.record.model_copy(update={"product": product}))
    print(calibration, flush=True)
    publish(args, calibration, {}, seconds=time.monotonic() - start)
    row, _ = evaluate(session.pipe, session.guard, from_record(calibration.record.model_dump()))
    publish(args, calibration, {"fresh_seeds": row.model_dump()}, seconds=time.monotonic() - start)
    page = audit_session(str(args.method), session, calibration, per_caption=2)
    page.write(args.run / "audit")
    print(page, flush=True)
    more = {"fresh_seeds": row.model_dump(), "audit": page.audit.model_dump(exclude={"record", "images"})}
    publish(args, calibration, more, seconds=time.monotonic() - start)
    table = tuple(transfer_table(session.guard, session.pipe, calibration.record, per_caption=1))
    calibration = replace(calibration, record=calibration.record.model_copy(update={"transfer": table}))
    publish(args, calibration, more, seconds=time.monotonic() - start)


def fine_tune(method: str, updates: int, data: Path, out: Path) -> Path:
    """The demo's fine-tune without the guard."""
    module = FineTune(
        "tinyworld",
        method,
        loss=LossOptions(keep_unconditional=1.0),
        memory=MemoryOptions(cache=True),
        **METHODS[method],
    )
    trainer = pl.Trainer(
        max_steps=updates, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    with torch.enable_grad():
        trainer.fit(module, datamodule=ImageFolder(str(data), resolution=64, batch_size=16))
    module.export_pipeline().save_pretrained(out)
    return out


def publish(args: argparse.Namespace, calibration: Calibration, more: dict, seconds: float) -> None:
    """Numbers and plots so far, with how they were made."""
    calibration.write(args.run / "calibration")
    args.out.mkdir(parents=True, exist_ok=True)
    result = calibration.to_dict() | more
    given = " --model (trained apart, with the same settings)" if args.model else ""
    result |= {
        "command": f"python recipes/studies/calibrate_tinyworld.py --method {args.method} --updates {args.updates}"
        f" --pairs {args.pairs}{given}",
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
        "seconds": round(seconds),
    }
    (args.out / f"calibration_{args.method}.json").write_text(json.dumps(result, indent=2) + "\n")
    shutil.copy(args.run / "calibration" / "products.png", args.out / f"products_{args.method}.png")


if __name__ == "__main__":
    main()
