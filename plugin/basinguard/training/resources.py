"""Does the plan fit this machine? Memory and disk that a `basinguard fit` asks for, against what is free."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import psutil
import torch

from ..pipelines.lora import UNET_TARGETS
from .memory import Footprint, Request, footprint_of

BFLOAT16 = {"bf16-mixed", "bf16", "bf16-true", "16-mixed", "16"}


@dataclass(frozen=True)
class FitPlan:
    """What a configuration asks of a machine.

    Attributes:
        base: the model.
        request: what decides its memory.
        footprint: that memory.
        checkpoints: most checkpoint files at one time.
        export: whether the guard writes a guarded pipeline, and one for plain CFG.
        root: folder that checkpoints go to.
        on_gpu: whether a GPU is used.
    """

    base: str
    request: Request
    footprint: Footprint
    checkpoints: int
    export: bool
    root: Path
    on_gpu: bool

    @property
    def checkpoint_size(self) -> int:
        """Bytes of one checkpoint: trained weights, their moments, their average."""
        per = 4 if self.request.method == "lora" or self.request.weights == "float32" else 2
        return self.footprint.trained * per + self.footprint.optimizer

    @property
    def disk(self) -> int:
        """Bytes that checkpoints and the two exports take, the guarded one and that for plain CFG."""
        return self.checkpoints * self.checkpoint_size + (2 * self.footprint.weights if self.export else 0)

    @property
    def free_memory(self) -> int:
        """Bytes that are free on the GPU, or in main memory without one."""
        return torch.cuda.mem_get_info()[0] if self.on_gpu else psutil.virtual_memory().available

    @property
    def free_disk(self) -> int:
        """Bytes that are free where checkpoints go."""
        existing = next(folder for folder in (self.root, *self.root.parents) if folder.exists())
        return shutil.disk_usage(existing).free

    def problems(self) -> Iterator[str]:
        """One line for each resource that is too small, with what would help."""
        if self.footprint.peak > self.free_memory:
            yield (
                f"memory: the plan takes {_gb(self.footprint.peak)}, {_gb(self.free_memory)} are free on the "
                f"{'GPU' if self.on_gpu else 'CPU'}; {self.advice()} (--anyway starts all the same)"
            )
        if self.disk > self.free_disk:
            yield (
                f"disk: {self.checkpoints} checkpoints of {_gb(self.checkpoint_size)} and the exports take "
                f"{_gb(self.disk)}, {_gb(self.free_disk)} are free at {self.root}; keep fewer (save_top_k), or set "
                "trainer.default_root_dir elsewhere (--anyway starts all the same)"
            )

    def advice(self) -> str:
        """The options that would save memory here, those that cost least first."""
        asked, options = self.request, []
        if not asked.gradient_checkpointing:
            options.append("gradient_checkpointing: true")
        if asked.method == "full" and asked.optimizer == "adamw":
            options.append("optimizer: adamw8bit")
        if asked.weights == "float32" and asked.method == "lora":
            options.append("weights: bfloat16")
        if asked.batch_size > 1:
            options.append(f"batch_size: {asked.batch_size // 2} with trainer.accumulate_grad_batches: 2")
        if asked.method == "full":
            options.append("method: lora")
        return f"try {', '.join(options)}" if options else "train at a lower resolution"


def plan_of(config: Any) -> FitPlan:
    """Reads the parsed configuration of `basinguard fit`; computes its memory from the base's configuration files.

    Args:
        config: with `model`, `data` and `trainer`, as jsonargparse parsed it.
    """
    model, trainer = config.model.init_args, config.trainer
    guard = guard_of(trainer.callbacks)
    gpu = torch.cuda.is_available() and trainer.accelerator != "cpu"
    request = replace(_request(model, config.data.init_args, str(trainer.precision), guard), gpu=gpu)
    root = Path(trainer.default_root_dir or ".").expanduser().absolute()
    saved = _saved(trainer.callbacks, trainer.max_epochs or 1000)
    exported = bool(guard and guard.export_to)
    return FitPlan(str(model.base), request, footprint_of(model.base, request), saved, exported, root, gpu)


def guard_of(callbacks: Any) -> Any:
    """Arguments of the configured guard, with its option objects; None without one."""
    found = [c.init_args for c in _listed(callbacks) if c.class_path.endswith("MemorizationGuard")]
    return found[0] if found else None


def _request(model: Any, data: Any, precision: str, guard: Any) -> Request:
    sampled = guard.plan.captions * guard.plan.seeds if guard else 0
    return Request(
        method=model.method,
        rank=model.rank,
        targets=tuple(model.targets or UNET_TARGETS),
        train_text_encoder=model.train_text_encoder,
        weights=model.weights,
        precision="bfloat16" if precision in BFLOAT16 or model.weights == "bfloat16" else "float32",
        resolution=max(data.resolution, *(data.resolutions or [0])),
        batch_size=data.batch_size,
        gradient_checkpointing=model.gradient_checkpointing,
        cache=model.cache,
        keep_unconditional=model.keep_unconditional > 0,
        ema=model.ema_decay is not None,
        optimizer=model.optimizer,
        offload_in_probes=model.offload_in_probes,
        probe_rows=min(guard.plan.chunk, max(guard.terms.pairs, sampled)) if guard else 0,
        export=bool(guard and guard.export_to),
        probe_precision="bfloat16" if guard and guard.precision == "bf16" else "float32",
    )


def _saved(callbacks: Any, epochs: int) -> int:
    """Most checkpoints at one time; Lightning keeps one if nothing is configured."""
    counts = []
    for callback in _listed(callbacks):
        if callback.class_path.endswith("ModelCheckpoint"):
            every, top = callback.init_args.get("every_n_epochs") or 1, callback.init_args.get("save_top_k", 1)
            counts.append((ceil(epochs / every) if top < 0 else top) + bool(callback.init_args.get("save_last")))
    return sum(counts) if counts else 1


def _listed(callbacks: Any) -> list[Any]:
    return callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
