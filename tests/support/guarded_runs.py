"""Small guarded runs and what they leave behind, for the tests of this folder."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from PIL import Image

from basinguard.calibration.terms import CalibrationTerms
from basinguard.guard.plan import ProbePlan
from basinguard.training.data import ImageFolder
from basinguard.training.guard_options import ControlGroup
from basinguard.training.lightning import MemorizationGuard

from .fine_tunes import fine_tune

PLAN = ProbePlan(captions=2, seeds=1, timesteps=2, scale=3.0, taught=False)
CONTROL = ControlGroup(["a blue box"])
TERMS = CalibrationTerms(
    pairs=4, before=(), strengths=(1.0,), scales=(3.0,), alpha=0.5, search_pairs=2, taught_samples=2, chain=1
)


def picture_folder(directory: Path, count: int = 4) -> Path:
    """Pictures of random blocks with captions that fit the tiny tokenizer."""
    directory.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for k in range(count):
        pixels = (torch.rand(8, 8, 3, generator=generator) * 255).byte().numpy()
        Image.fromarray(pixels).resize((32, 32), Image.Resampling.NEAREST).save(directory / f"{k}.png")
        (directory / f"{k}.txt").write_text(f"a ball {k}")
    return directory


def make_guard(kind=MemorizationGuard, plan=None, **settings):
    """A guard of a small probe; `plan` are changes of it."""
    defaults = {"control": CONTROL, "alignment": "none", "on_error": "raise"}
    return kind(replace(PLAN, **(plan or {})), **{**defaults, **settings})


def fit(base, folder, root, *callbacks, epochs=2, ckpt=None, logger=False, model=None, trainer=None):
    """One fit on the CPU; `model` and `trainer` are further arguments of theirs."""
    pl.seed_everything(1, workers=True, verbose=False)
    module = fine_tune(base, **{"method": "lora", "rank": 2, "learning_rate": 1e-3, **(model or {})})
    coach = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", default_root_dir=root, callbacks=list(callbacks), logger=logger,
        enable_model_summary=False, log_every_n_steps=1,
        enable_checkpointing=any(isinstance(c, pl.callbacks.ModelCheckpoint) for c in callbacks),
        **{"enable_progress_bar": False, **(trainer or {})},
    )  # fmt: skip
    coach.fit(module, datamodule=ImageFolder(str(folder), resolution=32, batch_size=2), ckpt_path=ckpt)
    return coach, module


def digest(value) -> str:
    """Fingerprint of tensors, arrays, numbers, texts and containers of them."""
    mark = hashlib.sha256()

    def add(part):
        if isinstance(part, torch.Tensor):
            mark.update(str((part.dtype, tuple(part.shape))).encode())
            flat = part.detach().cpu().flatten().contiguous()
            mark.update(flat.view(torch.uint8).numpy().tobytes())
        elif isinstance(part, np.ndarray):
            mark.update(part.tobytes())
        elif isinstance(part, dict):
            for key in part:
                add(repr(key))
                add(part[key])
        elif isinstance(part, list | tuple):
            for each in part:
                add(each)
        else:
            mark.update(repr(part).encode())

    add(value)
    return mark.hexdigest()


def streams():
    """States of the three global random streams."""
    return {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()}


def state_of(trainer, module):
    """All of a training run that a guard could disturb."""
    ema = getattr(module, "ema", None)
    return {
        "weights": {name: p.detach() for name, p in module.named_parameters()},
        "buffers": dict(module.named_buffers()),
        "gradients": {name: p.grad for name, p in module.named_parameters() if p.grad is not None},
        "trained": [name for name, p in module.named_parameters() if p.requires_grad],
        "modes": {name: part.training for name, part in module.named_modules()},
        "optimizers": [o.state_dict() for o in trainer.optimizers],
        "schedules": [c.scheduler.state_dict() for c in trainer.lr_scheduler_configs],
        "average": None if ema is None else {**ema.state_dict(), "temp_stored_params": None},
        "streams": streams(),
    }


class Spy(pl.Callback):
    """Writes down what a training run sees, and draws from the global streams as users' own code does."""

    def __init__(self):
        self.batches, self.losses, self.end = [], [], {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        drawn = (torch.rand(2).tolist(), np.random.rand(), random.random())
        self.batches.append((batch["index"].tolist(), batch["caption"], digest(batch["pixel_values"]), drawn))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]).hex())

    def on_train_end(self, trainer, pl_module):
        self.end = {name: digest(part) for name, part in state_of(trainer, pl_module).items()}


def untimed(history):
    """A history without the seconds, which differ from run to run."""
    return [report.model_copy(update={"seconds": 0.0}) for report in history]
