"""Do the packaged models of other shapes learn what is taught, and memorize it? Base x task, early and late.

Copy this file, do not import it.

    OMP_NUM_THREADS=1 python recipes/studies/shapes_taught.py --pictures runs/shapes

Every weight of the denoiser is trained on 24 images of a task, and sampled with plain CFG: training captions for the
copies, held-out captions for what was taught. A copy is structure-colour-v1 above the 99th percentile of 300 fresh true
images to their nearest training image, and not below its published threshold. Truth of the ruler are fresh images. A
study that was stopped goes on.

Expected: shapes_taught.json under recipes/results, and under --pictures held-out samples: true images, the base, then
the updates, a row each. Time: 4 minutes a model and task on one core. Memory: 3 GB.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.utils import make_grid

from basinguard.calibration.rules import plain_cfg
from basinguard.calibration.trial import Trial, calibration_pairs
from basinguard.core import seeds as seed_table
from basinguard.core.provenance import versions
from basinguard.core.stats import rate
from basinguard.guard.measured_model import guided_model
from basinguard.guard.plan import ProbePlan
from basinguard.pipelines.latent_model import LatentModel
from basinguard.plots.contact_sheet import to_image
from basinguard.similarity.copy_detector import CopyDetector
from basinguard.similarity.rulers import feature_sets
from basinguard.similarity.structure import Structure
from basinguard.similarity.taught import TaughtRuler
from basinguard.similarity.thresholds import calibrated
from basinguard.tinyworld.tasks import TASKS, Task
from basinguard.training.finetune import FineTune
from basinguard.training.finetune_options import OptimizerOptions

PLAN = ProbePlan(scale=3.0, timesteps=16, chunk=32)
IMAGES, TRUE_IMAGES, NULL_IMAGES, NULL_SEED = 24, 96, 300, 700
COPY_SAMPLES, HELDOUT_SAMPLES, SHOWN, BATCH = 48, 40, 10, 16
RATE = 4e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", nargs="+", default=["tinyworld-xl", "tinyworld-flow"])
    parser.add_argument("--tasks", nargs="+", default=["brick", "neon", "subject"])
    parser.add_argument("--updates", nargs="+", type=int, default=[120, 400])
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--out", type=Path, default=Path("recipes/results/shapes_taught.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"rows": {}}
    for task, base in ((task, base) for task in args.tasks for base in args.bases):
        key = f"{base}, {task}"
        if key not in results["rows"]:
            results["rows"][key], shown = Training(TASKS[task], base).measured(args.updates)
            results |= {"versions": versions(), "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}
            results |= {"command": "OMP_NUM_THREADS=1 python recipes/studies/shapes_taught.py"}
            args.out.write_text(json.dumps(results, indent=1) + "\n")
            if args.pictures:
                args.pictures.mkdir(parents=True, exist_ok=True)
                to_image(make_grid(shown, nrow=SHOWN, padding=2)).save(args.pictures / f"{base}_{task}.png")
            print(key, json.dumps(results["rows"][key]), flush=True)


class Training:
    """One task taught to one base."""

    def __init__(self, task: Task, base: str) -> None:
        self.module = FineTune(base, "full", optimizer=OptimizerOptions(learning_rate=RATE))
        self.model = LatentModel(self.module.pipe)
        self.drawn, self.truth = task.train(IMAGES, 0), task.truth(TRUE_IMAGES, 0)
        self.prompts = tuple(dict.fromkeys(self.truth.captions))[:HELDOUT_SAMPLES]
        embedder = calibrated(
            Structure(), self.drawn.pixels, fresh=task.truth(NULL_IMAGES, NULL_SEED).pixels, false_positives=0.01
        )
        self.detector = CopyDetector(self.drawn.pixels, self.drawn.captions, embedder)

    def measured(self, updates: list[int]) -> tuple[dict[str, Any], Tensor]:
        """Risk and `taught` after each of the updates, and held-out samples: truth, the base, then these."""
        self.module.eval()
        with torch.no_grad():
            truth = self.model.decode(self.model.encode(self.truth.pixels))
            base, texts = self.sampled(self.prompts, HELDOUT_SAMPLES, seed_table.TAUGHT_BASE)
        ruler, shown, rows = TaughtRuler(truth, base, texts, feature_sets()), [truth[:SHOWN], base[:SHOWN]], {}
        for update in self.trained(max(updates)):
            if update in updates:
                with torch.no_grad():
                    rows[str(update)], samples = self.row(ruler)
                shown.append(samples[:SHOWN])
        return rows, torch.cat(shown)

    def trained(self, updates: int) -> Any:
        """Trains, and yields the number of updates after each."""
        torch.manual_seed(0)
        optimizer = torch.optim.AdamW(self.module.trained().values(), lr=RATE)
        for update in range(1, updates + 1):
            rows = torch.randperm(IMAGES)[:BATCH]
            captions = [self.drawn.captions[k] for k in rows]
            batch = {"pixel_values": self.drawn.pixels[rows] * 2 - 1, "caption": captions, "index": rows}
            self.module.train()
            self.module.loss(batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            self.module.eval()
            yield update

    def row(self, ruler: TaughtRuler) -> tuple[dict[str, Any], Tensor]:
        """What the weights of now copy and keep."""
        captions = tuple(dict.fromkeys(self.drawn.captions))
        images, texts = self.sampled(captions, COPY_SAMPLES, seed_table.CALIBRATION)
        risk = rate(self.detector.is_copy(images).numpy(), [captions.index(text) for text in texts])
        images, texts = self.sampled(self.prompts, HELDOUT_SAMPLES, seed_table.TAUGHT_HELDOUT)
        taught = ruler.measure(images, texts, self.detector.is_copy(images)).value
        return {"risk": risk.model_dump(), "taught": taught and taught.model_dump()}, images

    def sampled(self, prompts: tuple[str, ...], count: int, first_seed: int) -> tuple[Tensor, list[str]]:
        """Pictures [n, 3, H, W], and the prompt of each; every prompt equally often."""
        pairs = calibration_pairs(len(prompts), count, self.model.latent_shape, first_seed)
        trial = Trial(guided_model(self.model, prompts, PLAN), pairs)
        latents, _ = trial.sample(plain_cfg(PLAN.scale, self.model.schedule))
        return self.model.decode(latents), [prompts[k] for k in pairs.prompt.tolist()]


if __name__ == "__main__":
    main()
