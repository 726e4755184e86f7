"""Does a fine-tune fit this machine? Memory and disk that a `basinguard fit` takes, against what is free."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import psutil
import torch

from .finetune_options import LoraOptions, LossOptions, MemoryOptions, OptimizerOptions
from .memory_footprint import MemoryFootprint, ProbeLoad, Workload, footprint_of

BFLOAT16 = {"bf16-mixed", "bf16", "bf16-true", "16-mixed", "16"}


@dataclass(frozen=True)
class FitResources:
    """What a fine-tune takes of a machine.

    Attributes:
        base: the model.
        workload: what decides its memory.
        footprint: that memory.
        checkpoints: most checkpoint files at one time.
        export: whether the guard writes a guarded pipeline, and one for plain CFG.
        root: folder that checkpoints go to.
        on_gpu: whether a GPU is used.
    """

    base: str
    workload: Workload
    footprint: MemoryFootprint
    checkpoints: int
    export: bool
    root: Path
    on_gpu: bool

    @property
    def checkpoint_size(self) -> int:
        """Bytes of one checkpoint: trained weights, their moments, their average."""
        per = 4 if self.workload.method == "lora" or self.workload.memory.weights == "float32" else 2
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
                f"memory: the fine-tune takes {_gb(self.footprint.peak)}, {_gb(self.free_memory)} are free on the "
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
        work, options = self.workload, []
        if not work.memory.gradient_checkpointing:
            options.append("memory.gradient_checkpointing: true")
        if work.method == "full" and work.optimizer.name == "adamw":
            options.append("optimizer.name: adamw8bit")
        if work.memory.weights == "float32" and work.method == "lora":
            options.append("memory.weights: bfloat16")
        if work.batch_size > 1:
            options.append(f"batch_size: {work.batch_size // 2} with trainer.accumulate_grad_batches: 2")
        if work.method == "full":
            options.append("method: lora")
        return f"try {', '.join(options)}" if options else "train at a lower resolution"


def resources_of(config: Any) -> FitResources:
    """Reads the parsed configuration of `basinguard fit`; computes its memory from the base's configuration files.

    Args:
        config: with `model`, `data` and `trainer`, as jsonargparse parsed it.
    """
    trainer, guard = config.trainer, guard_of(config.trainer.callbacks)
    workload = _workload(config, guard)
    base = str(config.model.init_args.base)
    return FitResources(
        base=base,
        workload=workload,
        footprint=footprint_of(base, workload),
        checkpoints=_checkpoints(trainer.callbacks, trainer.max_epochs or 1000),
        export=workload.probe.export,
        root=Path(trainer.default_root_dir or ".").expanduser().absolute(),
        on_gpu=workload.gpu,
    )


def guard_of(callbacks: Any) -> Any:
    """Arguments of the configured guard, with its option objects; None without one."""
    guards = [c.init_args for c in _listed(callbacks) if c.class_path.endswith("MemorizationGuard")]
    return guards[0] if guards else None


def _workload(config: Any, guard: Any) -> Workload:
    model, data, precision = config.model.init_args, config.data.init_args, str(config.trainer.precision)
    memory = MemoryOptions(**model.memory.as_dict())
    return Workload(
        method=model.method,
        lora=LoraOptions(**model.lora.as_dict()),
        optimizer=OptimizerOptions(**model.optimizer.as_dict()),
        loss=LossOptions(**model.loss.as_dict()),
        memory=memory,
        train_text_encoder=model.train_text_encoder,
        precision="bfloat16" if precision in BFLOAT16 or memory.weights == "bfloat16" else "float32",
        resolution=max(data.resolution, *(data.framing.resolutions or [0])),
        batch_size=data.batch_size,
        probe=_probe_load(guard) if guard else ProbeLoad(),
        gpu=torch.cuda.is_available() and config.trainer.accelerator != "cpu",
    )


def _probe_load(guard: Any) -> ProbeLoad:
    return ProbeLoad(
        rows=min(guard.plan.chunk, max(guard.terms.pairs, guard.plan.captions * guard.plan.seeds)),
        precision="bfloat16" if guard.plan.autocast else "float32",
        export=bool(guard.export_to),
    )


def _checkpoints(callbacks: Any, epochs: int) -> int:
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
