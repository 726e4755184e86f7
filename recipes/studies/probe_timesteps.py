"""Do fewer sampling timesteps find the same copies? The same pairs and noise on two grids, at the kept epochs of runs.

Copy this file, do not import it. It takes what `basinguard demo` and `shipped_products.py` leave behind: training
images, held-out images, and the change of the weights at the epochs that were kept. Nothing is trained.

    python recipes/studies/probe_timesteps.py ink=runs/demo brick=runs/brick neon=runs/neon --timesteps 16 8

Every pair is one (caption, seed) of the guard's own probe. A copy is structure-colour-v1 above the 99th percentile of
the held-out images to their nearest training image, and not below its published threshold.

Expected: probe_timesteps.json under recipes/results: how often both grids agree, the difference of their risks, and the
copies of each grid by run and epoch, one 0 or 1 a pair.
Time: 20 s an epoch on one core. Memory: 2 GB.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from basinguard.basin.plain_run import run_plain
from basinguard.basin.trajectories import pairs_of
from basinguard.core import seeds as seed_table
from basinguard.core.spread import spread
from basinguard.core.stats import cluster_bootstrap, wilson
from basinguard.guard.measured_model import guided_model
from basinguard.guard.plan import ProbePlan
from basinguard.pipelines.latent_model import LatentModel
from basinguard.pipelines.loading import load_pipeline
from basinguard.similarity.copy_detector import CopyDetector
from basinguard.similarity.structure import Structure
from basinguard.similarity.thresholds import calibrated
from basinguard.training.data import ImageFolder
from basinguard.training.epoch_archive import EpochArchive

CAPTIONS, SEEDS, SCALE = 12, 2, 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--base", default="tinyworld")
    parser.add_argument("--timesteps", type=int, nargs="+", default=[16, 8])
    parser.add_argument("--last", type=int, default=4, help="of the kept epochs, the last so many")
    parser.add_argument("--out", type=Path, default=Path("recipes/results/probe_timesteps.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(args.out.read_text())["copies"] if args.out.exists() else {}
    for name, _, path in (run.partition("=") for run in args.runs):
        for epoch, copies in measured(Path(path), args.base, args.timesteps, args.last):
            print(name, epoch, {grid: sum(hits) for grid, hits in copies.items()}, flush=True)
            rows.setdefault(name, {})[str(epoch)] = copies
            args.out.write_text(json.dumps(compared(rows, *map(str, args.timesteps[:2])) | {"copies": rows}) + "\n")


def compared(rows: dict[str, dict[str, dict[str, list[int]]]], usual: str, fewer: str) -> dict[str, Any]:
    """How often both grids agree on a pair, and how far apart their risks are, runs drawn anew as clusters."""
    pairs = [
        (name, a, b)
        for name, epochs in rows.items()
        for hits in epochs.values()
        for a, b in zip(hits[usual], hits[fewer], strict=True)
    ]
    same, apart = sum(a == b for _, a, b in pairs), [b - a for _, a, b in pairs]
    return {
        "timesteps": [usual, fewer],
        "epochs": sum(map(len, rows.values())),
        "risk": [sum(hits) / len(pairs) for hits in zip(*((a, b) for _, a, b in pairs), strict=True)],
        "found by one alone": [apart.count(-1), apart.count(1)],
        "agreement": wilson(same, len(pairs)).model_dump(),
        "difference of risks": cluster_bootstrap(apart, [name for name, _, _ in pairs]).model_dump(),
    }


@torch.no_grad()
def measured(run: Path, base: str, grids: list[int], last: int) -> Iterator[tuple[int, dict[str, list[int]]]]:
    """Epoch, from 1, and the copies of each grid."""
    pipe = load_pipeline(base)
    weights = {name: w.clone() for name, w in pipe.unet.state_dict().items()}
    resolution = LatentModel(pipe).resolution
    (images, captions), (fresh, _) = (folder(run / "data" / part, resolution) for part in ("train", "heldout"))
    detector = CopyDetector(images, captions, calibrated(Structure(), images, fresh=fresh, false_positives=0.01))
    sampled = spread(len(captions), CAPTIONS)
    for entry in sorted(EpochArchive(run / "export-epochs", most=100).stored(), key=lambda e: e.epoch)[-last:]:
        change = load_file(entry.path)
        tuned = copy.copy(pipe)
        tuned.unet = copy.deepcopy(pipe.unet)
        tuned.unet.load_state_dict({name: w + change[f"unet.{name}"].float() for name, w in weights.items()})
        model = LatentModel(tuned)
        yield entry.epoch + 1, {str(grid): drawn(model, captions, sampled, grid, detector) for grid in grids}


def drawn(
    model: LatentModel, captions: tuple[str, ...], sampled: list[int], timesteps: int, detector: CopyDetector
) -> list[int]:
    """Whether each of the probe's pairs is a copy."""
    plan = ProbePlan(captions=CAPTIONS, seeds=SEEDS, timesteps=timesteps, scale=SCALE)
    guided = guided_model(model, [captions[i] for i in sampled], plan)
    pairs = pairs_of(sampled, seed_table.RANGES["probe"], SEEDS, model.latent_shape, stride=SEEDS)
    images = model.decode(run_plain(guided, pairs).ends)
    return [int(hit) for hit in detector.is_copy(images)]


def folder(path: Path, resolution: int) -> tuple[Tensor, tuple[str, ...]]:
    """Images [N, 3, H, W] and captions."""
    images = ImageFolder(str(path), resolution=resolution)
    images.setup("open")
    return images.all_pixels(), tuple(caption for _, caption in images.items)


if __name__ == "__main__":
    main()
