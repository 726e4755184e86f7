"""When to stop and which epoch to ship: twelve fine-tunes of TinyWorld, watched from the base model to copying.

Copy this file, do not import it.

    python recipes/acting_study.py train all --out runs/acting     one JSON a run; those that are there are kept
    python recipes/acting_study.py ship all --out runs/acting      fresh seeds on every epoch that somebody would ship
    python recipes/acting_study.py act all --out runs/acting       the options of `Acting`, at equal updates
    python recipes/acting_study.py table --out runs/acting --results recipes/results

TinyWorld learns a style that it cannot draw, dusk, from 8, 32 or 128 captioned scenes, as a LoRA or in full, at two
learning rates, in batches of 4 without any protection: 160, 80 and 32 passes over the images. It is measured before
training and after six epochs: the guard's report, and the loss on held-out scenes with fixed noise (what "lowest
validation loss" goes by). Fidelity is the share of the way from the base model's samples to dusk scenes, in style:
kernel distance of mean and spread of the colours of 4 x 4 thumbnails. Every run is one JSON under `--out`; what is
there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from basinguard import basin
from basinguard.adapters.diffusers import LatentModel
from basinguard.adapters.finetune import FineTune
from basinguard.adapters.finetune_cli import quiet_lightning
from basinguard.adapters.images import ImageFolder
from basinguard.adapters.shipping import clip_for
from basinguard.adapters.watch import trained_weights, untouched
from basinguard.guard import Guard, Plan, TrainingSet
from basinguard.records import Report
from basinguard.similarity.files import to_tensor
from basinguard.similarity.kernel import KernelDistance
from basinguard.similarity.structure import Structure
from basinguard.tinyworld.scenes import all_captions, draw_scene

SCALE, TIMESTEPS, BATCH = 3.0, 10, 4
PLAN = {"seeds": 2, "timesteps": TIMESTEPS, "scale": SCALE, "risk": 0.1}
PROBED = {8: (10, 20, 40, 60, 100, 160), 32: (5, 10, 20, 30, 50, 80), 128: (3, 6, 10, 16, 24, 32)}
RATES = {"full": (3e-4, 8e-4), "lora": (1e-3, 3e-3)}
TWINS, FRESH, FRESH_SEED = 16, 64, 7_000_000
HELD_AGAINST = 4  # training images, and twins, whose critical scale is measured
COARSE = 64  # timesteps by which a critical scale is left open
VALIDATION = (50, 200, 350, 500, 650, 800)  # timesteps of the validation loss


@dataclass(frozen=True)
class Run:
    """One fine-tune."""

    size: int
    method: str
    rate: float

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.size}-{self.method}-{self.rate:g}"

    @property
    def settings(self) -> dict[str, Any]:
        """What `FineTune` is given."""
        return {"method": self.method, "learning_rate": self.rate, "cache": True}


RUNS = {r.name: r for r in (Run(n, m, rate) for n in (32, 8, 128) for m in RATES for rate in reversed(RATES[m]))}


def dusk(scene: Image.Image) -> Image.Image:
    """A scene in less and warmer light."""
    pixels = np.asarray(scene, np.float32)
    grey = pixels.mean(-1, keepdims=True)
    warm = (0.6 * pixels + 0.4 * grey) * np.array([0.95, 0.75, 0.6], np.float32)
    return Image.fromarray(warm.clip(0, 255).round().astype(np.uint8))


def folders(data: Path, size: int) -> tuple[Path, Path]:
    """Training scenes, the first of one fixed order, and twins that no run trains on."""
    order = random.Random(0).sample(all_captions(), 128 + TWINS)
    parts = {f"train-{size}": range(size), "twins": range(128, 128 + TWINS)}
    for name, numbers in parts.items():
        if (data / name / "metadata.jsonl").exists():
            continue
        (data / name).mkdir(parents=True, exist_ok=True)
        for n in numbers:
            dusk(draw_scene(order[n], seed=n)).save(data / name / f"{n:03d}.png")
        lines = [json.dumps({"file_name": f"{n:03d}.png", "text": str(order[n])}) for n in numbers]
        (data / name / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return data / f"train-{size}", data / "twins"


def tones(images: torch.Tensor) -> torch.Tensor:
    """Mean and spread of each colour over a 4 x 4 thumbnail, as unit vectors [B, 6]."""
    small = F.interpolate(images, (4, 4), mode="area").flatten(2)
    return F.normalize(torch.cat([small.mean(2) - 0.5, small.std(2)], 1), dim=1)


def style() -> KernelDistance:
    """The distance to fresh dusk scenes; 0 for dusk scenes."""
    chosen = random.Random(2).choices(all_captions(), k=FRESH)
    scenes = torch.stack([to_tensor(dusk(draw_scene(c, FRESH_SEED + n))) for n, c in enumerate(chosen)])
    return KernelDistance.to_images(tones, scenes, eye="tones of 4 x 4 thumbnails", what="fresh dusk scenes")


def guard_for(data: ImageFolder, twins: ImageFolder) -> Guard:
    """The guard of a run: 24 samples (16 of the smallest set), twins as the control group."""
    training = TrainingSet(
        data.all_pixels(), tuple(text for _, text in data.items),
        tuple(text for _, text in twins.items), twins.all_pixels(),
    )  # fmt: skip
    distance, clip = style(), clip_for("tinyworld")
    plan = Plan(min(12, len(data.items)), **PLAN)
    return Guard(training, Structure(), plan, clip.score, faithful=lambda images: -distance(images))


def evenly(count: int, most: int) -> list[int]:
    return np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()


@torch.no_grad()
def critical_scales(guard: Guard, model: LatentModel) -> tuple[list[float], list[float], int]:
    """log sigma_c of a few training images and twins; `Plan.retention` does the same on every timestep, for more."""
    training = guard.training
    assert training.heldout_images is not None
    own, held = (evenly(n, HELD_AGAINST) for n in (len(training.captions), len(training.heldout)))
    texts = [training.captions[i] for i in own] + [training.heldout[i] for i in held]
    images = torch.cat([training.images[own], training.heldout_images[held]])
    rows = torch.arange(len(texts))
    found = basin.critical_scale(guard.probe(model, texts), model.encode(images), rows, resolution=COARSE)
    logs = found.with_caption.log().tolist()
    return logs[: len(own)], logs[len(own) :], found.evals


class Study(pl.Callback):
    """Measures the base model and then after the probed epochs; keeps the weights of each."""

    def __init__(self, guard: Guard, twins: ImageFolder, probed: tuple[int, ...], out: Path, base: Path) -> None:
        self.guard, self.twins, self.probed, self.out, self.base = guard, twins, probed, out, base
        self.scales: list[tuple[list[float], list[float]]] = []
        self.losses: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: FineTune) -> None:
        """The base model, once for each training set."""
        if self.base.exists():
            kept = json.loads(self.base.read_text())
            self.guard.load_state_dict(kept["guard"])
            self.scales, self.losses = [tuple(kept["scales"])], [kept["loss"]]
            return
        self.look(pl_module, -1, 0)
        kept = {"guard": self.guard.state_dict(), "scales": self.scales[0], "loss": self.losses[0]}
        self.base.write_text(json.dumps(kept))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: FineTune) -> None:
        """The model as this epoch left it."""
        epoch = trainer.current_epoch + 1
        if epoch in self.probed:
            self.look(pl_module, epoch - 1, trainer.global_step)
            weights = {name: value.contiguous() for name, value in trained_weights(pl_module).items()}
            save_file(weights, self.out / f"epoch-{epoch - 1}.safetensors")

    def look(self, pl_module: FineTune, epoch: int, train_step: int) -> None:
        """Report, critical scales and validation loss; nothing of the training changes."""
        with untouched(pl_module):
            model = LatentModel(pl_module.pipe)
            report = self.guard.measure(model, epoch=epoch, train_step=train_step)
            assert report is not None
            own, held, evals = critical_scales(self.guard, model)
            self.scales.append((own, held))
            self.losses.append(validation_loss(pl_module, self.twins))
        if epoch >= 0:
            arrays = (own, self.scales[0][0], held, self.scales[0][1])
            alarm = basin.raise_alarm(*(torch.tensor(values) for values in arrays))
            found = {"sigma_c_excess": alarm.excess, "sigma_c_since_base": alarm.since_base}
            report = report.model_copy(update={**found, "unet_evals": report.unet_evals + evals})
            self.guard.history[-1] = report
        print(line(report), f"validation {self.losses[-1]:.4f}", flush=True)


@torch.no_grad()
def validation_loss(pl_module: FineTune, twins: ImageFolder) -> float:
    """Denoising loss on the twins, the same noise at six timesteps each time."""
    pixels = twins.all_pixels() * 2 - 1
    latents = pl_module.pipe.vae.encode(pixels).latent_dist.mean * pl_module.pipe.vae.config.scaling_factor
    embeddings = pl_module.encode_captions([text for _, text in twins.items])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    times = (torch.full((len(latents),), t) for t in VALIDATION)
    return float(np.mean([float(pl_module.denoising_loss(latents, embeddings, noise, t)) for t in times]))


def line(report: Report) -> str:
    names = ("risk", "width", "gap_excess", "sigma_c_excess", "risk_uncond", "alignment_heldout", "fidelity")
    told = "  ".join(f"{name} {getattr(report, name)}" for name in names)
    return f"epoch {report.epoch:4d}  {told}  t {report.transition}  {report.unet_evals} evals  {report.seconds:.0f} s"


def images_of(folder: Path) -> ImageFolder:
    data = ImageFolder(str(folder), resolution=64, batch_size=BATCH, keep_in_memory=True)
    data.setup("fit")
    return data


def train(run: Run, out: Path) -> None:
    """One run, unless its JSON is there."""
    target = out / f"{run.name}.json"
    if target.exists():
        return
    begun = time.process_time()
    own, held = folders(out / "data", run.size)
    data, twins = images_of(own), images_of(held)
    (out / run.name).mkdir(parents=True, exist_ok=True)
    study = Study(guard_for(data, twins), twins, PROBED[run.size], out / run.name, out / f"base-{run.size}.json")
    fitted(run, data, study)
    target.write_text(
        json.dumps(
            {
                "run": vars(run) | {"name": run.name},
                "history": [json.loads(report.to_json()) for report in study.guard.history],
                "validation": study.losses,
                "scales": study.scales,
                "metric": study.guard.embedder.metric.model_dump(),
                "cpu_seconds": round(time.process_time() - begun),
            },
            indent=1,
        )
    )


def fitted(run: Run, data: ImageFolder, *callbacks: pl.Callback) -> FineTune:
    """The fine-tune, with whatever watches it."""
    module = FineTune("tinyworld", **run.settings)
    pl.Trainer(
        max_epochs=PROBED[run.size][-1], accelerator="cpu", logger=False, callbacks=list(callbacks),
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
    ).fit(module, datamodule=data)  # fmt: skip
    return module


def chosen(names: list[str], table: dict[str, Any]) -> Iterator[Any]:
    for name in table if names == ["all"] else names:
        if name not in table:
            raise SystemExit(f"{name!r} given; runs are {', '.join(table)} or all")
        yield table[name]


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("what", choices=["train"])
    ask.add_argument("names", nargs="*", default=["all"])
    ask.add_argument("--out", type=Path, default=Path("runs/acting"))
    told = ask.parse_args()
    quiet_lightning()
    told.out.mkdir(parents=True, exist_ok=True)
    for run in chosen(told.names, RUNS):
        train(run, told.out)


if __name__ == "__main__":
    main()
