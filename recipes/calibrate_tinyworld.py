"""Calibrates and audits fine-tunes of TinyWorld, and publishes what was found.

Copy this file, do not import it. It fine-tunes TinyWorld on the demo's 32 images (`--method full` or `lora`), then
runs the two verbs on the result as anybody would on a model of theirs, and checks the promise on fresh seeds.

    python recipes/calibrate_tinyworld.py --method full --updates 520 --run runs/full --out recipes/results

Writes calibration_full.json, frontier_full.png and strength_full.png to `--out`, the audit's page to `--run`.
Expected: risk on fresh seeds within the promise (alpha 0.1, delta 0.05). Time: about 25 minutes on one idle CPU core,
of which 6 are training. Memory: 2 GB.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import time
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch

from basinguard import FineTune, ImageFolder
from basinguard.adapters.auditing import Audited, audit
from basinguard.adapters.calibration import EVERYTHING, calibrate
from basinguard.adapters.evaluate import evaluate
from basinguard.adapters.opening import open_model
from basinguard.certify import Terms, versions
from basinguard.guidance import from_record
from basinguard.records import Record
from basinguard.tinyworld.folder import write_demo_folder

SCALE, TIMESTEPS = 3.0, 16
SAMPLER = {"scale": SCALE, "timesteps": TIMESTEPS}
METHODS = {"full": {"learning_rate": 8e-4}, "lora": {"learning_rate": 3e-3, "rank": 32}}
TERMS = Terms(
    alpha=0.1,
    delta=0.05,
    pairs=128,
    before=(0.0, -1.0, -2.0),
    after=(3.0, 4.5, 6.0),
    transitions=(560.0, 690.0, 750.0, 815.0, 875.0),
    pilot_pairs=32,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=sorted(METHODS), default="full")
    parser.add_argument("--updates", type=int, default=520)
    parser.add_argument("--model", type=Path, help="a fine-tune of these very images, instead of training one")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    start = time.monotonic()
    data, _ = write_demo_folder(args.run / "data")
    model = args.model or fine_tune(args.method, args.updates, data, args.run / "model")
    found = calibrate(
        str(model), data, base="tinyworld", terms=TERMS, transfer=True, out=args.run / "calibration", **SAMPLER
    )
    print(found, flush=True)
    fresh = verified(str(model), data, found.record)
    print("fresh seeds:", fresh["risk"], flush=True)
    page = audit(str(model), data, base="tinyworld", terms=Terms(0.1, pairs=96), out=args.run / "audit", **SAMPLER)
    print(page)
    publish(args, fresh, page, seconds=time.monotonic() - start)


def fine_tune(method: str, updates: int, data: Path, out: Path) -> Path:
    """The demo's fine-tune without the guard."""
    module = FineTune("tinyworld", method=method, keep_unconditional=1.0, cache=True, **METHODS[method])
    trainer = pl.Trainer(
        max_steps=updates, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    trainer.fit(module, datamodule=ImageFolder(str(data), resolution=64, batch_size=16))
    module.export_pipeline().save_pretrained(out)
    return out


@torch.no_grad()
def verified(model: str, data: Path, record: Record) -> dict:
    """The shipped rule on seeds that calibration never saw, through the stock pipeline."""
    opened = open_model(model, data, base="tinyworld", **SAMPLER)
    row, _ = evaluate(opened.pipe, opened.guard, from_record(record.model_dump()), timesteps=TIMESTEPS)
    return json.loads(row.to_json())


def publish(args: argparse.Namespace, fresh: dict, found: Audited, seconds: float) -> None:
    """Numbers and plots, with how they were made."""
    args.out.mkdir(parents=True, exist_ok=True)
    result = json.loads((args.run / "calibration" / EVERYTHING).read_text()) | {
        "fresh_seeds": fresh,
        "audit": {name: json.loads(found.audit.to_json())[name] for name in ("plain", "uncond", "base", "advice")},
        "command": f"python recipes/calibrate_tinyworld.py --method {args.method} --updates {args.updates}",
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
        "versions": versions(),
        "seconds": round(seconds),
    }
    (args.out / f"calibration_{args.method}.json").write_text(json.dumps(result, indent=2) + "\n")
    for plot in ("frontier", "strength"):
        shutil.copy(args.run / "calibration" / f"{plot}.png", args.out / f"{plot}_{args.method}.png")


if __name__ == "__main__":
    main()
