"""Training that does not put the images in: which variant keeps most of what is taught at which risk, as plain weights?

Copy this file, do not import it. It takes the images that `basinguard demo` and `shipped_products.py` leave behind and
trains on them anew, with another density of timesteps, a held unconditional branch, or noisy images at high noise;
every weight, one seed of noise, equal updates. At several updates the weights are sampled with plain CFG, on training
captions for the copies, and on held-out captions for what was taught: the same captions and noise for all. Nothing is
searched or proven. A study that was stopped goes on.

    python recipes/studies/training_variants.py ink=runs/demo emoji=runs/emoji brick=runs/brick --variants uniform \\
        "quarter above 600"

A copy is structure-colour-v1 above the 99th percentile of the held-out images to their nearest training image, and not
below its published threshold. Truth of the ruler are the training images.

Source of the ambient variant: arXiv 2502.21278, its loss above a noise level, with one noisy image for each image.

Expected: training_variants.json and .md under recipes/results. Time: 5 minutes a variant and run on one core. Memory:
2 GB.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from basinguard.calibration.rules import plain_cfg
from basinguard.calibration.trial import Trial, calibration_pairs
from basinguard.core import seeds as seed_table
from basinguard.core.stats import rate
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
from basinguard.training.encoding import CaptionStates
from basinguard.training.finetune import FineTune
from basinguard.training.finetune_options import LossOptions, MemoryOptions, OptimizerOptions
from basinguard.training.trained_weights import Method

PLAN = ProbePlan(scale=3.0, timesteps=16, chunk=64)
UPDATES = (80, 120, 160, 200, 280, 400)
COPY_SAMPLES, HELDOUT_SAMPLES, PROMPTS = 96, 40, 20
AMBIENT_FROM = 700
RATES: Mapping[Method, float] = {"full": 4e-4, "lora": 2e-3}
Density = tuple[int, int, float]  # from, to, how often beside the rest


class Denser(FineTune):
    """Timesteps in a range are drawn more or less often."""

    density: Density = (0, 1000, 1.0)

    def draw_timesteps(self, count: int) -> Tensor:
        """By the density, [count]."""
        begin, end, weight = self.density
        density = torch.ones(1000)
        density[begin:end] = weight
        return torch.multinomial(density, count, replacement=True)


class Ambient(FineTune):
    """Above a noise level the images are known only with that much noise on them, always the same for an image."""

    def denoising_loss(self, latents: Tensor, states: CaptionStates, noise: Tensor, timesteps: Tensor) -> Tensor:
        """As of `FineTune`; rows above the level are held against the noisy image, in units of the usual target."""
        bars = self.forward_process.schedule.alphas_cumprod
        signal, spread = bars.sqrt()[timesteps].view(-1, 1, 1, 1), (1 - bars).sqrt()[timesteps].view(-1, 1, 1, 1)
        own_signal, own_spread = bars.sqrt()[AMBIENT_FROM], (1 - bars).sqrt()[AMBIENT_FROM]
        noisy_image = own_signal * latents + own_spread * torch.stack([fixed_noise(x) for x in latents])
        ratio = signal / own_signal
        added = (spread**2 - (ratio * own_spread) ** 2).clamp(min=0).sqrt()
        high = (timesteps > AMBIENT_FROM).view(-1, 1, 1, 1)
        noisy = torch.where(high, ratio * noisy_image + added * noise, signal * latents + spread * noise)
        predicted = self.unet(noisy, timesteps, **states.texts, return_dict=False)[0]
        clean = signal * noisy - spread * predicted  # the base predicts v
        gain = ratio * own_spread**2 / spread**2
        mean = own_signal * clean + gain * (noisy - signal * clean)
        unit = ((own_signal - gain * signal) * spread).clamp(min=1e-3)
        usual = predicted - self.forward_process.target(latents, noise, timesteps)
        errors = torch.where(high, ((mean - noisy_image) / unit).square().clamp(max=100), usual.square())
        return errors.mean()


def fixed_noise(latent: Tensor) -> Tensor:
    """Noise that belongs to an image."""
    seed = int(latent.abs().sum() * 1000) % 2**31
    return torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))


def denser(begin: int, end: int, weight: float, **options: Any) -> FineTune:
    """A fine-tune whose timesteps have this density."""
    module = Denser(**options)
    module.density = (begin, end, weight)
    return module


Variant = Callable[..., FineTune]
VARIANTS: Mapping[str, Variant] = {
    "uniform": FineTune,
    "quarter above 600": partial(denser, 600, 1000, 0.25),
    "tenth above 600": partial(denser, 600, 1000, 0.1),
    "quarter above 800": partial(denser, 800, 1000, 0.25),
    "none above 800": partial(denser, 800, 1000, 0.0),
    "quarter above 400": partial(denser, 400, 1000, 0.25),
    "quarter from 500 to 900": partial(denser, 500, 900, 0.25),
    "quarter below 400": partial(denser, 0, 400, 0.25),
    "unconditional held": partial(FineTune, loss=LossOptions(keep_unconditional=1.0)),
    "ambient above 700": Ambient,
}


@dataclass
class Snapshots(pl.Callback):
    """The UNet's weights after some updates."""

    states: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *batch: Any) -> None:
        """Takes them."""
        step = trainer.global_step
        if step in UPDATES and step not in self.states:
            unet = merged_module(module.unet) if module.hparams["method"] == "lora" else module.unet
            self.states[step] = {name: w.detach().clone() for name, w in unet.state_dict().items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--method", choices=("full", "lora"), default="full", help="a LoRA has rank 16")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--results", type=Path, default=Path("recipes/results"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = args.results / "training_variants.json"
    for name, _, folder in (run.partition("=") for run in args.runs):
        study = Study(Path(folder) / "data")
        for variant, seed in ((v, s) for v in args.variants for s in args.seeds):
            results = json.loads(path.read_text()) if path.exists() else {}
            key = f"{name}{', LoRA' if args.method == 'lora' else ''}, {variant}, seed {seed}"
            if key not in results:
                results[key] = dict(study.rows(variant, args.method, seed))
                path.write_text(json.dumps(results, indent=1))
                path.with_suffix(".md").write_text(table(results), encoding="utf-8")


class Study:
    """One folder of images: the base model's samples, the ruler and the detector."""

    def __init__(self, data: Path) -> None:
        self.data, self.pipe = data, load_pipeline("tinyworld")
        self.model = LatentModel(self.pipe)
        train, heldout = (opened(data / name, self.model.resolution) for name in ("train", "heldout"))
        self.captions, self.prompts = train[1], tuple(dict.fromkeys(heldout[1]))[:PROMPTS]
        embedder = calibrated(Structure(), train[0], fresh=heldout[0], false_positives=0.01)
        self.detector = CopyDetector(train[0], self.captions, embedder)
        with torch.no_grad():
            images, texts = self.sampled(self.prompts, HELDOUT_SAMPLES, seed_table.TAUGHT_BASE)
            truth = self.model.decode(self.model.encode(train[0]))
        self.ruler = TaughtRuler(truth, images, texts, feature_sets())

    def rows(self, variant: str, method: Method, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """One training: what its weights do at each of `UPDATES`."""
        snapshots = Snapshots()
        module = VARIANTS[variant](
            base="tinyworld", method=method, seed=seed,
            optimizer=OptimizerOptions(learning_rate=RATES[method]), memory=MemoryOptions(cache=True),
        )  # fmt: skip
        trainer = pl.Trainer(
            max_steps=max(UPDATES), accelerator="cpu", logger=False, callbacks=[snapshots],
            enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
        )  # fmt: skip
        resolution = self.model.resolution
        trainer.fit(module, datamodule=ImageFolder(str(self.data / "train"), resolution=resolution, batch_size=16))
        for step, state in snapshots.states.items():
            self.pipe.unet.load_state_dict(state)
            with torch.no_grad():
                yield str(step), self.measured()

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
        "`python recipes/studies/training_variants.py`. Full fine-tunes of TinyWorld, plain CFG at scale 3. Risk: "
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
