"""What fine-tunes keep and what they copy: task x training x epoch x share x guidance scale, by both rulers.

Copy this file, do not import it. Every training is a fresh draw of images and of noise. Each product is sampled on
training captions, for the copies, and on held-out captions, for what was taught; the same samples are held against
fresh truth and against the training images, which is what a user has. "captions" is the samples of training captions,
net of copies, against the training images: what the risk is measured on anyway. A study that was stopped goes on.

    python recipes/studies/taught_study.py --tasks ink neon subject brick --seeds 0 1 2 3 4
    python recipes/studies/taught_study.py --tasks art --art package     # `npm pack emoji-datasource-google@16`
    python recipes/studies/taught_study.py --method lora --rate 2e-3 --rank 4

Copies: structure-colour-v1, above the 99th percentile of 300 fresh true images to their nearest training image.

Expected: taught_study.json under recipes/results, and under --pictures a sheet for each training whose rows are in
shuffled order, lettered: to be ranked by eye before the key beside it is read. `taught_study_table.py` makes the table.
Time: 6 to 10 minutes a training on one core. Memory: 3 GB.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.utils import make_grid

from basinguard.calibration.candidate import Product
from basinguard.calibration.rules import plain_cfg, rule
from basinguard.calibration.terms import Setting
from basinguard.calibration.trial import Trial, calibration_pairs
from basinguard.core import seeds as seed_table
from basinguard.core.metric import Metric
from basinguard.guard.measured_model import guided_model
from basinguard.guard.plan import ProbePlan
from basinguard.pipelines.latent_model import LatentModel
from basinguard.pipelines.loading import load_pipeline
from basinguard.plots.contact_sheet import to_image
from basinguard.similarity.copy_detector import CopyDetector
from basinguard.similarity.embedder import WithThreshold
from basinguard.similarity.feature_sets import FeatureSet
from basinguard.similarity.rulers import feature_sets
from basinguard.similarity.structure import Structure
from basinguard.similarity.taught import Taught, TaughtRuler
from basinguard.tinyworld.tasks import TASKS, Task, art, few_among_many
from basinguard.training.epoch_series import EpochSeries
from basinguard.training.finetune import FineTune
from basinguard.training.finetune_options import LoraOptions, LossOptions, MemoryOptions, OptimizerOptions
from basinguard.training.isolation import trained_weights

PLAN = ProbePlan(scale=3.0, timesteps=16, chunk=32)
WAYS = ((0.6, 3.0), (0.8, 3.0), (1.0, 3.0), (1.0, 1.5))  # strength, guidance scale
RULES = ((0.0, 874.0), (0.0, 749.0), (-1.0, 874.0), (-1.0, 749.0))  # scale above a timestep, for --rules
BATCH = 16
COPY_SAMPLES, HELDOUT_SAMPLES, TRUE_IMAGES, NULL_IMAGES = 24, 40, 96, 300
FALSE_POSITIVES = 0.01
NULL_SEED, SHOWN = 700, 10
RANK = 16
RATES = {"art": 2.0}  # times --rate; with 4e-4 emoji are barely learnt in so many updates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["ink", "subject"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--updates", nargs="+", type=int, default=[200, 400, 600], help="the epochs that are looked at")
    parser.add_argument("--method", choices=["full", "lora"], default="full")
    parser.add_argument("--rank", type=int, default=RANK, help="of the LoRA")
    parser.add_argument("--rate", type=float, default=4e-4)
    parser.add_argument("--keep_unconditional", type=float, default=0.0)
    parser.add_argument("--few", type=int, default=0, help="images that are there many times, beside --images of one")
    parser.add_argument("--repeats", type=int, default=12, help="of the few")
    parser.add_argument("--rules", action="store_true", help="also rules in guidance, on the whole fine-tune")
    parser.add_argument("--art", type=Path, help="the unpacked emoji package, for the task art")
    parser.add_argument("--results", type=Path, default=Path("recipes/results"))
    parser.add_argument("--pictures", type=Path, default=Path("runs/taught_study"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = args.results / "taught_study.json"
    for seed in args.seeds:
        for name in args.tasks:
            done = json.loads(path.read_text()) if path.exists() else {}
            rate = RATES.get(name, 1.0) * args.rate
            few = f" and {args.few} x {args.repeats}" if args.few else ""
            method = args.method if args.rank == RANK else f"{args.method} of rank {args.rank}"
            key = f"{name}, {method}, {args.images}{few} images, {rate:g}, {args.keep_unconditional:g}, {seed}"
            if key not in done:
                task = art(args.art) if name == "art" else TASKS[name]
                training = Training(
                    task, args.method, args.images, rate, args.keep_unconditional, seed, args.few, args.repeats,
                    args.rules, tuple(args.updates), args.rank,
                )  # fmt: skip
                result = training.study(args.pictures / key.replace(", ", "-").replace(" ", "-"))
                done = json.loads(path.read_text()) if path.exists() else {}
                path.write_text(json.dumps({**done, key: result}, indent=1))


@dataclass(frozen=True)
class Training:
    """One fine-tune, and what is asked of it."""

    task: Task
    method: str
    images: int
    rate: float
    keep_unconditional: float
    seed: int
    few: int = 0
    repeats: int = 1
    rules: bool = False
    updates: tuple[int, ...] = (200, 400, 600)
    rank: int = RANK

    def study(self, pictures: Path) -> dict[str, Any]:
        """Trains, samples every product, and measures the samples."""
        begin, drawn = time.process_time(), self.task.train(self.images, self.seed)
        feared = drawn  # whose captions are sampled for copies
        if self.few:
            drawn, feared = few_among_many(self.task, self.images, self.few, self.repeats, self.seed)
        module = FineTune(
            "tinyworld", self.method, LoraOptions(self.rank), OptimizerOptions(learning_rate=self.rate),
            loss=LossOptions(keep_unconditional=self.keep_unconditional), memory=MemoryOptions(cache=True),
            seed=self.seed,
        )  # fmt: skip
        states = train(module, drawn.pixels, drawn.captions, self.updates, self.seed)
        trained = time.process_time() - begin
        with torch.no_grad(), EpochSeries(module, states, load_pipeline("tinyworld")) as series:
            rows, shown = self._rows(series, feared.pixels, feared.captions, drawn.pixels)
        shuffled_sheet(shown, pictures, self.seed)
        return {
            **asdict(self), "task": self.task.name, "rows": rows, "threshold": self._threshold(feared.pixels),
            "training_seconds": round(trained), "seconds": round(time.process_time() - begin),
            "samples": [COPY_SAMPLES, HELDOUT_SAMPLES], "truth": TRUE_IMAGES,
        }  # fmt: skip

    def _rows(
        self, series: EpochSeries, images: Tensor, captions: Sequence[str], trained: Tensor
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        metric = Metric(embedder=Structure().name, threshold=self._threshold(images), source="fresh true images")
        detector = CopyDetector(images, captions, WithThreshold(Structure(), metric))
        truth = self.task.truth(TRUE_IMAGES, self.seed)
        prompts = tuple(dict.fromkeys(truth.captions))[:HELDOUT_SAMPLES]
        rulers, rows, shown = {}, {}, {}
        for product in products(series, rules=self.rules):
            with series.at(product.epoch, product.strength) as opened:
                model = opened.model
                heldout, asked = sampled(model, product, prompts, HELDOUT_SAMPLES, seed_table.TAUGHT_HELDOUT)
                if not rulers:
                    base, its = sampled(model, product, prompts, HELDOUT_SAMPLES, seed_table.TAUGHT_BASE)
                    rulers = self._rulers(model, truth.pixels, trained[: self.images], base, its)
                    base, its = sampled(model, product, captions, COPY_SAMPLES, seed_table.SEARCH)
                    rulers |= {"captions": self._ruler(model, trained[: self.images], base, its)}
                copied, captioned = sampled(model, product, captions, COPY_SAMPLES, seed_table.CALIBRATION)
            copies, risky = detector.is_copy(heldout), detector.is_copy(copied)
            samples = dict.fromkeys(("fresh", "training"), (heldout, asked, copies))
            samples["captions"] = (copied, captioned, risky)
            measured = {what: numbers(rulers[what].measure(*samples[what])) for what in samples}
            rows[str(product)] = {"risk": float(risky.double().mean()), **measured}
            shown[str(product)] = heldout
            print(self.task.name, self.seed, product, rows[str(product)]["risk"], flush=True)
        return rows, shown

    def _rulers(
        self, model: LatentModel, truth: Tensor, training: Tensor, base: Tensor, prompts: Sequence[str]
    ) -> dict[str, TaughtRuler]:
        """Of held-out prompts, against fresh truth and against the training images."""
        truths = {"fresh": truth, "training": training}
        return {what: self._ruler(model, images, base, prompts) for what, images in truths.items()}

    def _ruler(self, model: LatentModel, truth: Tensor, base: Tensor, prompts: Sequence[str]) -> TaughtRuler:
        return TaughtRuler(model.decode(model.encode(truth)), base, prompts, self.feature_sets)

    @cached_property
    def feature_sets(self) -> list[FeatureSet]:
        """The rulers' features, which describe a batch once."""
        return [Remembering(f) for f in feature_sets()]

    def _threshold(self, images: Tensor) -> float:
        """What so many fresh true images exceed to their nearest training image."""
        count = min(NULL_IMAGES, len(self.task.heldout)) if self.task.drawn_once else NULL_IMAGES
        fresh = self.task.truth(count, NULL_SEED + self.seed).pixels
        nearest = (Structure()(fresh) @ Structure()(images).T).max(1).values
        return float(nearest.quantile(1 - FALSE_POSITIVES))


def train(
    module: FineTune, images: Tensor, captions: Sequence[str], updates: Sequence[int], seed: int
) -> dict[int, Any]:
    """Plain training; the weights at each of these updates."""
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(module.trained().values(), lr=module.optimizer_options.learning_rate)
    states: dict[int, Any] = {}
    for update in range(1, max(updates) + 1):
        rows = torch.randperm(len(images))[:BATCH]
        batch = {"pixel_values": images[rows] * 2 - 1, "caption": [captions[i] for i in rows], "index": rows}
        module.loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        if update in updates:
            weights = trained_weights(module)
            states[update - 1] = lambda weights=weights: weights
    return states


def products(series: EpochSeries, *, rules: bool = False) -> list[Product]:
    """The base model, then every epoch, share and scale, and rules where they are asked for."""
    noise = LatentModel(series.base).schedule
    plain = {scale: plain_cfg(scale, noise) for _, scale in WAYS}
    tuned = [Product(plain[scale], strength, epoch) for epoch in series.epochs for strength, scale in WAYS]
    base = Product(plain[PLAN.scale], 0.0, series.epochs[0])
    if not rules:
        return [base, *tuned]
    switched = [rule(Setting(before), transition, noise, PLAN.scale) for before, transition in RULES]
    return [base, *tuned, *(Product(guidance, 1.0, epoch) for epoch in series.epochs for guidance in switched)]


def sampled(
    model: Any, product: Product, prompts: Sequence[str], count: int, first_seed: int
) -> tuple[Tensor, list[str]]:
    """Pictures [n, 3, H, W] of prompts, and the prompt of each; every prompt as often as any other."""
    prompts = [prompts[k * len(prompts) // min(count, len(prompts))] for k in range(min(count, len(prompts)))]
    pairs = calibration_pairs(len(prompts), count, model.latent_shape, first_seed)
    latents, _ = Trial(guided_model(model, prompts, PLAN), pairs).sample(product.guidance)
    return model.decode(latents), [prompts[k] for k in pairs.prompt.tolist()]


def numbers(taught: Taught) -> dict[str, Any]:
    """A result as JSON; values as they are, net of copies."""
    rulers = {name.split()[0]: estimate.value for name, estimate in taught.rulers.items()}
    return {"value": taught.value.model_dump() if taught.value else None, "rulers": rulers, "copies": taught.copies}


class Remembering:
    """A feature set that describes a batch once, since two rulers look at the same samples."""

    def __init__(self, inner: FeatureSet) -> None:
        self.inner, self.name, self.last = inner, inner.name, (0, {})

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """The features, described before or not."""
        key = hash(images.numpy().tobytes())
        if self.last[0] != key:
            self.last = (key, dict(self.inner(images)))
        return self.last[1]


def shuffled_sheet(rows: dict[str, Tensor], path: Path, seed: int) -> None:
    """One row of samples for each product, lettered in an order that says nothing; the key goes beside it."""
    order = random.Random(seed).sample(list(rows), len(rows))
    grid = to_image(make_grid(torch.cat([rows[name][:SHOWN] for name in order]), nrow=SHOWN, padding=2))
    sheet = Image.new("RGB", (grid.width + 24, grid.height), "white")
    sheet.paste(grid, (24, 0))
    for k in range(len(order)):
        ImageDraw.Draw(sheet).text((8, k * (grid.height - 2) // len(order) + 28), chr(ord("A") + k), fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path.with_name(f"{path.name}.png"))
    path.with_name(f"{path.name}.key.json").write_text(
        json.dumps({chr(ord("A") + k): name for k, name in enumerate(order)})
    )


if __name__ == "__main__":
    main()
