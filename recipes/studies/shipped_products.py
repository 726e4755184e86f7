"""What the whole product ships on a task: training with the guard, search, promise, export; in numbers and pictures.

Copy this file, do not import it. The same run as `basinguard demo`, on other things to teach: a style, a subject, a
material, real art. Each run's `export/` is what a user would get. A study that was stopped goes on; a run whose
training is there is not trained again: its stored epochs are searched, and it is exported anew. So a search with
filters of the update goes over the epochs of the run without.

    python recipes/studies/shipped_products.py --tasks ink neon subject brick
    python recipes/studies/shipped_products.py --tasks art --art package --images 16 32
    python recipes/studies/shipped_products.py --tasks ink brick --high-noise 0.25
    python recipes/studies/shipped_products.py --tasks ink brick --filters no-cross-attention rank-16

Expected: shipped_products.json and .md under recipes/results, and comparison.png of each export beside it as
shipped_TASK_IMAGES_SEED.png. Beside the promised product stand plain CFG of the same epoch and scale with the whole
fine-tune, and the best that plain CFG reaches at any epoch and scale of the search. Time: about 10 minutes a run on one
core. Memory: 3 GB.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from basinguard.calibration.lessons import truth_of
from basinguard.calibration.record_builder import Certificate
from basinguard.calibration.terms import CalibrationTerms
from basinguard.pipelines.loading import load_pipeline
from basinguard.sessions.calibration import tried_rows
from basinguard.sessions.demo_run import PLAN, TERMS, demo_model, fine_tune
from basinguard.similarity.copy_detector_settings import CopyDetectorSettings
from basinguard.similarity.rulers import feature_sets
from basinguard.similarity.taught import Taught
from basinguard.tinyworld.tasks import TASKS, Task, art
from basinguard.training.control_group import training_set
from basinguard.training.data import ImageFolder
from basinguard.training.epoch_archive import EpochArchive
from basinguard.training.epoch_series import EpochSeries, origin_weights
from basinguard.training.finetune_options import LossOptions
from basinguard.training.guard_assembly import assemble_guard
from basinguard.training.guard_options import ControlGroup
from basinguard.training.guarded_export import export_calibrated

UPDATES, BATCH, HELDOUT = 400, 16, 48
DETECTOR = CopyDetectorSettings(threshold="heldout")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["ink", "subject", "brick"])
    parser.add_argument("--images", nargs="+", type=int, default=[24])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--high-noise", type=float, default=1.0, help="how often high noise is trained; 1 is uniform")
    parser.add_argument("--filters", nargs="+", default=[], metavar="NAME", help="of the update, to search besides")
    parser.add_argument("--art", type=Path, help="the unpacked emoji package, for the task art")
    parser.add_argument("--out", type=Path, default=Path("runs/shipped"))
    parser.add_argument("--results", type=Path, default=Path("recipes/results"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    path, terms = args.results / "shipped_products.json", replace(TERMS, update_filters=tuple(args.filters))
    for name, images, seed in [(t, n, s) for s in args.seeds for t in args.tasks for n in args.images]:
        results = json.loads(path.read_text()) if path.exists() else {}
        way, suffix = ("", "") if args.high_noise == 1 else (f", high noise {args.high_noise:g}", "_high_noise")
        trained = f"{name}, {images} images, seed {seed}{way}"
        key = f"{trained}, filters {' '.join(args.filters)}" if args.filters else trained
        if key in results:
            continue
        run, suffix = args.out / trained.replace(", ", "-").replace(" ", "-"), "_".join((suffix, *args.filters))
        task = art(args.art) if name == "art" else TASKS[name]
        results[key] = ship(task, images, seed, run, LossOptions(high_noise=args.high_noise), terms)
        path.write_text(json.dumps(results, indent=1))
        path.with_suffix(".md").write_text(table(results), encoding="utf-8")
        shutil.copy(run / "export" / "comparison.png", args.results / f"shipped_{name}_{images}_{seed}{suffix}.png")
        print(table(results), flush=True)


def ship(task: Task, images: int, seed: int, run: Path, loss: LossOptions, terms: CalibrationTerms) -> dict[str, Any]:
    """One run, from images to export."""
    begin = time.process_time()
    train, heldout = task.write(run / "data", images, seed, HELDOUT)
    archive = EpochArchive(run / "export-epochs", TERMS.epochs)
    if archive.stored():
        certificate = exported_again(run, train, heldout, archive, terms)
    else:
        guard = fine_tune(run, train, heldout, UPDATES // -(-images // BATCH), DETECTOR, loss, terms=terms)
        assert guard.run is not None
        assert guard.run.certificate is not None, f"{task.name}: nothing was exported"
        certificate = guard.run.certificate
    record = certificate.record
    return {
        "product": str(certificate.shipped.product),
        "promise": record.promise,
        "safe": str(safe.product) if (safe := certificate.safe) else None,
        "safe_taught": dumped(safe and certificate.heldout.get(safe.product)),
        "risk": record.risk.model_dump(),
        "taught": record.taught.model_dump() if record.taught else None,
        "rulers": {name: value.value for name, value in record.taught_rulers},
        "plain_risk": record.plain.model_dump(),
        "plain_taught": record.plain_taught.model_dump() if record.plain_taught else None,
        "best_plain": str(certificate.most_taught_plain),
        "best_plain_taught": record.best_plain_taught.model_dump() if record.best_plain_taught else None,
        "threshold": record.metric.threshold,
        "threshold_source": record.metric.source,
        "tried": tried_rows(certificate),
        "evaluations": certificate.evaluations,
        "processor_seconds": round(time.process_time() - begin),
    }


@torch.no_grad()
def exported_again(
    run: Path, train: Path, heldout: Path, archive: EpochArchive, terms: CalibrationTerms
) -> Certificate:
    """The search, the proof and the export of a training that is over, from its stored epochs; without its history."""
    module, base = demo_model(), load_pipeline("tinyworld")
    images = ImageFolder(str(train), resolution=64)
    images.setup("open")
    training = training_set(images, ControlGroup(folder=str(heldout)))
    guard = assemble_guard(training, PLAN, DETECTOR, pipe=base)
    origin = origin_weights(module, base)
    stored = archive.stored()
    states = {e.epoch: partial(archive.weights, e.epoch, origin) for e in stored}
    with EpochSeries(module, states, base, train_steps={e.epoch: e.train_step for e in stored}) as series:
        truth = truth_of(training, feature_sets())
        return export_calibrated(guard, series, terms, run / "export", truth=truth)


def table(results: dict[str, Any]) -> str:
    """The runs as Markdown."""
    columns = (
        "task | ships | promised | risk | taught | plain CFG, newest epoch: risk, taught | its best | kept | "
        "for plain loaders: taught, kept"
    )
    head = [
        "# What ships, by task",
        "`python recipes/studies/shipped_products.py`. Risk: structure-colour-v1 above the threshold measured on "
        f"{HELDOUT} held-out images; `taught`: the smaller of two rulers, net of copies, on held-out prompts with "
        "noise that nothing was chosen by, the same for all. Plain CFG is the whole fine-tune; its best is the epoch "
        "and scale that the search found to keep most on its few samples, or the newest epoch, whatever they copy.",
        f"| {columns} |\n|{'---|' * 9}",
    ]
    return "\n\n".join(head) + "\n" + "\n".join(row(key, result) for key, result in results.items()) + "\n"


def row(key: str, result: dict[str, Any]) -> str:
    """One run."""
    best, taught = result["best_plain_taught"], result["taught"]
    remaining, safe = (share_of(best, own) for own in (taught, result["safe_taught"]))
    plain = (
        "the same" if result["safe"] == result["product"] else f"{result['safe']}: {interval(result['safe_taught'])}"
    )
    return (
        f"| {key} | {result['product']} | {'yes' if result['promise'] else 'no'} | {interval(result['risk'])} "
        f"| {interval(taught)} | {interval(result['plain_risk'])}, {interval(result['plain_taught'])} "
        f"| {interval(best)} ({result['best_plain']}) | {remaining} "
        f"| {plain}, {safe} |"
    )


def share_of(best: dict[str, Any] | None, own: dict[str, Any] | None) -> str:
    """How much of the best one keeps; a share of what cannot be told from nothing says nothing."""
    if own is None or best is None:
        return "-"
    return f"{own['value'] / best['value']:.0%}" if best["low"] > 0 else "cannot be told"


def dumped(taught: Taught | None) -> dict[str, Any] | None:
    """Its value as plain JSON."""
    return taught.value.model_dump() if taught and taught.value else None


def interval(estimate: dict[str, Any] | None) -> str:
    if estimate is None:
        return "-"
    return f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}] (n = {estimate['n']})"


if __name__ == "__main__":
    main()
