"""Training that does not put the images in: which variant keeps most of what is taught at which risk, as plain weights?

Copy this file, do not import it. It takes the images that `basinguard demo` and `shipped_products.py` leave behind and
trains on them anew: with another density of timesteps (among them one that is least where the run's probes measured
exits), a held unconditional branch, noisy images at high noise, pictures of the base model beside them, an adapter that
has fewer channels at high noise, or on two halves of the images, whose weights are averaged; equal updates. At several
updates the weights are sampled with plain CFG, on training captions for the copies, and on held-out captions for what
was taught: the same captions and noise for all. Nothing is searched or proven. A study that was stopped goes on.

    python recipes/studies/training_variants.py ink=runs/demo emoji=runs/emoji brick=runs/brick --variants uniform \\
        "quarter above 600"

A copy is structure-colour-v1 above the 99th percentile of the held-out images to their nearest training image, and not
below its published threshold. Truth of the ruler are the training images.

The trainings are those of `training_variants_modules.py`. T-LoRA (arXiv 2507.05964) masks the adapter when it samples,
too, which no plain loader does: rows for both.

Expected: training_variants.json and .md under recipes/results. Time: 5 minutes a variant and run on one core. Memory:
2 GB.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from training_variants_modules import VARIANTS, Variant, beside_exits, denser

from basinguard.calibration.rules import plain_cfg
from basinguard.calibration.trial import Trial, calibration_pairs
from basinguard.core import seeds as seed_table
from basinguard.core.stats import rate
from basinguard.exports.layout import RECORD_FILE
from basinguard.guard.measured_model import guided_model
from basinguard.guard.plan import ProbePlan
from basinguard.pipelines.latent_model import LatentModel
from basinguard.pipelines.loading import load_pipeline
from basinguard.pipelines.lora import merged_module
from basinguard.similarity.copy_detector import CopyDetector
from basinguard.similarity.rulers import feature_sets
from basinguard.similarity.structure import Structure
from basinguard.similarity.taught import TaughtRuler
from basinguard.similarity.thresholds import calibrated
from basinguard.training.data import ImageFolder
from basinguard.training.finetune import FineTune
from basinguard.training.finetune_options import MemoryOptions, OptimizerOptions
from basinguard.training.rank_mask import RankMask, ranks_at
from basinguard.training.trained_weights import Method

PLAN = ProbePlan(scale=3.0, timesteps=16, chunk=64)
UPDATES = (80, 120, 160, 200, 280, 400)
COPY_SAMPLES, HELDOUT_SAMPLES, PROMPTS = 96, 40, 20
BATCH = 16
RATES: Mapping[Method, float] = {"full": 4e-4, "lora": 2e-3}


HALVES, EXITS = "mean of two halves", "least where the exits lie"
NAMES = [*VARIANTS, HALVES, EXITS]
MASKED = ", masked when sampling"  # behind the name of a training
Rows = dict[str, dict[str, Any]]  # by updates


@dataclass
class Snapshots(pl.Callback):
    """The UNet's weights after some updates, an adapter's merged; and the adapter's own where it is masked."""

    updates: Sequence[int]
    states: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    adapters: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *batch: Any) -> None:
        """Takes them."""
        step = trainer.global_step
        if step in self.updates and step not in self.states:
            unet = merged_module(module.unet) if module.hparams["method"] == "lora" else module.unet
            self.states[step] = {name: w.detach().clone() for name, w in unet.state_dict().items()}
            if module.rank_mask.at_noise < 1:
                self.adapters[step] = {name: w.detach().clone() for name, w in module.trained().items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--variants", nargs="+", default=NAMES, choices=NAMES, metavar="VARIANT")
    parser.add_argument("--method", choices=("full", "lora"), default="full", help="a LoRA has rank 16")
    parser.add_argument("--updates", nargs="+", type=int, default=list(UPDATES), choices=UPDATES, help="to measure at")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--results", type=Path, default=Path("recipes/results"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = args.results / "training_variants.json"
    for name, _, folder in (run.partition("=") for run in args.runs):
        study = Study(Path(folder))
        for variant, seed in ((v, s) for v in args.variants for s in args.seeds):
            results = json.loads(path.read_text()) if path.exists() else {}
            key = f"{name}{', LoRA' if args.method == 'lora' else ''}, {variant}, seed {seed}"
            missing = [step for step in args.updates if str(step) not in results.get(key, {})]
            if missing:
                for sampled, rows in study.trained(variant, args.method, seed, missing).items():
                    results[key + sampled] = results.get(key + sampled, {}) | rows
                path.write_text(json.dumps(results, indent=1))
                path.with_suffix(".md").write_text(table(results), encoding="utf-8")


class Study:
    """One folder of images: the base model's samples, the ruler and the detector."""

    def __init__(self, run: Path) -> None:
        self.run, self.pipe = run, load_pipeline("tinyworld")
        self.model = LatentModel(self.pipe)
        train, heldout = (opened(run / "data" / name, self.model.resolution) for name in ("train", "heldout"))
        self.captions, self.prompts = train[1], tuple(dict.fromkeys(heldout[1]))[:PROMPTS]
        embedder = calibrated(Structure(), train[0], fresh=heldout[0], false_positives=0.01)
        self.detector = CopyDetector(train[0], self.captions, embedder)
        with torch.no_grad():
            images, texts = self.sampled(self.prompts, HELDOUT_SAMPLES, seed_table.TAUGHT_BASE)
            truth = self.model.decode(self.model.encode(train[0]))
        self.ruler = TaughtRuler(truth, images, texts, feature_sets())

    def trained(self, variant: str, method: Method, seed: int, updates: Sequence[int]) -> dict[str, Rows]:
        """One training: what its weights do after some updates, and beside that what a masked adapter does."""
        parts = 2 if variant == HALVES else 1
        make = FineTune if variant == HALVES else VARIANTS.get(variant) or self.least_at_exits()
        fits = [self.fit(make, method, seed, updates, part, parts) for part in range(parts)]
        module, snapshots = fits[-1]
        snapshots.states = mean_states([each.states for _, each in fits])
        rows = {"": dict(self.plain(snapshots))}
        return rows | ({MASKED: dict(self.masked(snapshots, module))} if snapshots.adapters else {})

    def least_at_exits(self) -> Variant:
        """A training whose timesteps are drawn least where the run's probes measured exits."""
        return partial(denser, beside_exits(exits_of(self.run)))

    def fit(
        self, make: Variant, method: Method, seed: int, updates: Sequence[int], part: int, parts: int
    ) -> tuple[FineTune, Snapshots]:
        """A training on one of the parts of the images, every image in one of them."""
        snapshots = Snapshots(updates)
        module = make(
            base="tinyworld", method=method, seed=seed,
            optimizer=OptimizerOptions(learning_rate=RATES[method]), memory=MemoryOptions(cache=True),
        )  # fmt: skip
        with TemporaryDirectory() as folder:
            trainer = pl.Trainer(
                max_steps=max(updates), accelerator="cpu", logger=False, callbacks=[snapshots],
                enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
                default_root_dir=folder,
            )  # fmt: skip
            copy_part(self.run / "data" / "train", Path(folder) / "images", part, parts)
            images = str(Path(folder) / "images")
            own = ImageFolder(images, resolution=self.model.resolution, batch_size=BATCH // parts)
            trainer.fit(module, datamodule=own)
        return module, snapshots

    @torch.no_grad()
    def plain(self, snapshots: Snapshots) -> Iterator[tuple[str, dict[str, Any]]]:
        """What a plain loader gets."""
        for step, state in snapshots.states.items():
            self.pipe.unet.load_state_dict(state)
            yield str(step), self.measured()

    @torch.no_grad()
    def masked(self, snapshots: Snapshots, module: FineTune) -> Iterator[tuple[str, dict[str, Any]]]:
        """What somebody gets who masks the adapter when sampling, as in training."""
        plain, self.model = self.model, LatentModel(module.eval().pipe)
        module.denoiser.register_forward_pre_hook(partial(at_timestep, module.rank_mask))
        for step, state in snapshots.adapters.items():
            module.load_state_dict(state, strict=False)
            yield str(step), self.measured()
        self.model = plain

    def measured(self) -> dict[str, Any]:
        """Copies on training captions, and what is left on held-out ones."""
        images, texts = self.sampled(self.captions, COPY_SAMPLES, seed_table.CALIBRATION)
        risk = rate(self.detector.is_copy(images).numpy(), [self.captions.index(t) for t in texts])
        images, texts = self.sampled(self.prompts, HELDOUT_SAMPLES, seed_table.TAUGHT_HELDOUT)
        taught = self.ruler.measure(images, texts, self.detector.is_copy(images)).value
        return {"risk": risk.model_dump(), "taught": taught and taught.model_dump()}

    def sampled(self, prompts: tuple[str, ...], count: int, first_seed: int) -> tuple[Tensor, list[str]]:
        """Pictures [n, 3, H, W], and the prompt of each; every prompt equally often."""
        pairs = calibration_pairs(len(prompts), count, self.model.latent_shape, first_seed)
        trial = Trial(guided_model(self.model, prompts, PLAN), pairs)
        latents, _ = trial.sample(plain_cfg(PLAN.scale, self.model.schedule))
        return self.model.decode(latents), [prompts[k] for k in pairs.prompt.tolist()]


def copy_part(source: Path, to: Path, part: int, parts: int) -> None:
    """Every `parts`-th image with its row of the manifest, from number `part` on."""
    to.mkdir()
    images = {path.name for path in sorted(source.glob("*.png"))[part::parts]}
    for name in images:
        shutil.copy(source / name, to)
    rows = (source / "metadata.jsonl").read_text().splitlines()
    own = [row for row in rows if json.loads(row)["file_name"] in images]
    (to / "metadata.jsonl").write_text("\n".join(own), encoding="utf-8")


def mean_states(trainings: Sequence[dict[int, dict[str, Tensor]]]) -> dict[int, dict[str, Tensor]]:
    """The mean of several trainings' weights, by updates."""
    steps = trainings[0]
    return {
        step: {name: torch.stack([each[step][name] for each in trainings]).mean(0) for name in steps[step]}
        for step in steps
    }


def exits_of(run: Path) -> Mapping[int, int]:
    """How many copies of the probes of an exported run were decided at which timestep."""
    history = json.loads((run / "export" / RECORD_FILE).read_text())["history"]
    exits = (each["timestep"] for report in history for each in report["exits"])
    return Counter(round(timestep) for timestep in exits if timestep is not None)


def at_timestep(mask: RankMask, network: Any, inputs: tuple[Any, ...]) -> None:
    """Sets a mask by the timesteps that a network is about to be given."""
    mask.ranks = ranks_at(inputs[1], mask.rank, mask.at_noise)


def opened(path: Path, resolution: int) -> tuple[Tensor, tuple[str, ...]]:
    """Images [N, 3, H, W] and captions."""
    images = ImageFolder(str(path), resolution=resolution)
    images.setup("open")
    return images.all_pixels(), tuple(caption for _, caption in images.items)


def table(results: Mapping[str, Any]) -> str:
    """Every training as a row: risk and `taught` at each of `UPDATES`."""
    columns = " | ".join(f"{step} updates: risk, taught" for step in UPDATES)
    lines = [
        "# Training variants, as plain weights",
        "`python recipes/studies/training_variants.py`. Full fine-tunes of TinyWorld, and adapters of rank 16 where it "
        "says LoRA; plain CFG at scale 3, the adapter whole at every timestep unless a row says masked. Risk: "
        f"{COPY_SAMPLES} samples of training captions; `taught`: {HELDOUT_SAMPLES} of held-out ones, net of copies; "
        "intervals in the JSON file. One seed of noise a training unless more are named.",
        f"| training | {columns} |\n|{'---|' * (len(UPDATES) + 1)}",
    ]
    rows = (f"| {key} | {' | '.join(cell(row.get(str(step))) for step in UPDATES)} |" for key, row in results.items())
    return "\n\n".join(lines) + "\n" + "\n".join(rows) + "\n"


def cell(row: Mapping[str, Any] | None) -> str:
    """Risk and `taught`."""
    if row is None:
        return "-"
    taught = row["taught"]
    return f"{row['risk']['value']:.2f}, {taught['value']:.2f}" if taught else f"{row['risk']['value']:.2f}, -"


if __name__ == "__main__":
    main()
