"""The training of one run of `acting_study.py`, measured before it and after the probed epochs."""

from __future__ import annotations

import json
import time
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from acting_runs import PROBED, Run, folders, guard_for, images_of
from safetensors.torch import save_file

from basinguard.basin.critical_scale import critical_scale
from basinguard.basin.heldout_contrast import contrast_with_heldout
from basinguard.core.report import Report
from basinguard.core.report_parts import CriticalScales
from basinguard.guard.guard import Guard
from basinguard.pipelines.latent_model import LatentModel
from basinguard.training.data import ImageFolder
from basinguard.training.finetune import FineTune
from basinguard.training.isolation import trained_weights, untouched

HELD_AGAINST = 4  # training images, and control images, whose critical scale is measured
COARSE = 64  # timesteps by which a critical scale is left open
VALIDATION = (50, 200, 350, 500, 650, 800)  # timesteps of the validation loss


def evenly(count: int, most: int) -> list[int]:
    return np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()


@torch.no_grad()
def critical_scales(guard: Guard, model: LatentModel) -> tuple[list[float], list[float], int]:
    """log sigma_c of a few training and control images; `ProbePlan.critical_scales` takes every timestep and more."""
    training = guard.training
    assert training.heldout_images is not None
    own, held = (evenly(n, HELD_AGAINST) for n in (len(training.captions), len(training.heldout)))
    texts = [training.captions[i] for i in own] + [training.heldout[i] for i in held]
    images = torch.cat([training.images[own], training.heldout_images[held]])
    rows = torch.arange(len(texts))
    guided = guard.guided_model(model, texts)
    logs = critical_scale(guided, model.encode(images), rows, resolution=COARSE).with_caption.log().tolist()
    return logs[: len(own)], logs[len(own) :], guided.count.total


class Study(pl.Callback):
    """Measures the base model and then after the probed epochs; keeps the weights of each."""

    def __init__(self, guard: Guard, controls: ImageFolder, probed: tuple[int, ...], out: Path, base: Path) -> None:
        self.guard, self.controls, self.probed, self.out, self.base = guard, controls, probed, out, base
        self.scales: list[tuple[list[float], list[float]]] = []
        self.losses: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: FineTune) -> None:
        """The base model, once for each training set."""
        if self.base.exists():
            state = json.loads(self.base.read_text())
            self.guard.load_state_dict(state["guard"])
            self.scales, self.losses = [tuple(state["scales"])], [state["loss"]]
            return
        self.look(pl_module, -1, 0)
        state = {"guard": self.guard.state_dict(), "scales": self.scales[0], "loss": self.losses[0]}
        self.base.write_text(json.dumps(state))

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
            self.losses.append(validation_loss(pl_module, self.controls))
        if epoch >= 0:
            arrays = (own, self.scales[0][0], held, self.scales[0][1])
            alarm = contrast_with_heldout(*(torch.tensor(values) for values in arrays))
            critical = CriticalScales(excess=alarm.excess, since_base=alarm.since_base)
            report = report.model_copy(update={"critical_scales": critical, "unet_evals": report.unet_evals + evals})
            self.guard.history[-1] = report
        print(line(report), f"validation {self.losses[-1]:.4f}", flush=True)


@torch.no_grad()
def validation_loss(pl_module: FineTune, controls: ImageFolder) -> float:
    """Denoising loss on the control images, the same noise at six timesteps each time."""
    pixels = controls.all_pixels() * 2 - 1
    latents = pl_module.pipe.vae.encode(pixels).latent_dist.mean * pl_module.pipe.vae.config.scaling_factor
    embeddings = pl_module.encode_captions([text for _, text in controls.items])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    times = (torch.full((len(latents),), t) for t in VALIDATION)
    return float(np.mean([float(pl_module.denoising_loss(latents, embeddings, noise, t)) for t in times]))


def line(report: Report) -> str:
    names = ("risk", "width", "gap_excess", "sigma_c_excess", "risk_uncond", "alignment_heldout", "taught")
    values = "  ".join(f"{name} {report.estimates.get(name)}" for name in names)
    cost = f"{report.unet_evals} evals  {report.seconds:.0f} s"
    return f"epoch {report.epoch:4d}  {values}  t {report.basin.transition}  {cost}"


def train(run: Run, out: Path) -> None:
    """One run, unless its JSON is there."""
    target = out / f"{run.name}.json"
    if target.exists():
        return
    started = time.process_time()
    own, held = folders(out / "data", run.size)
    data, controls = images_of(own), images_of(held)
    (out / run.name).mkdir(parents=True, exist_ok=True)
    study = Study(
        guard_for(data, controls), controls, PROBED[run.method][run.size], out / run.name, out / f"base-{run.size}.json"
    )
    fitted(run, data, study)
    target.write_text(
        json.dumps(
            {
                "run": vars(run) | {"name": run.name},
                "history": [json.loads(report.to_json()) for report in study.guard.history],
                "validation": study.losses,
                "scales": study.scales,
                "metric": study.guard.embedder.metric.model_dump(),
                "cpu_seconds": round(time.process_time() - started),
            },
            indent=1,
        )
    )


def fitted(run: Run, data: ImageFolder, *callbacks: pl.Callback) -> FineTune:
    """The fine-tune, with whatever watches it."""
    module = FineTune("tinyworld", **run.settings)
    pl.Trainer(
        max_epochs=PROBED[run.method][run.size][-1], accelerator="cpu", logger=False, callbacks=list(callbacks),
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
    ).fit(module, datamodule=data)  # fmt: skip
    return module
