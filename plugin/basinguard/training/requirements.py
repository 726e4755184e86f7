"""What a guard cannot work with, refused before training starts."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from ..pipelines.families.registry import family_of
from .isolation import same_streams
from .loader_images import LoaderImages

WHOLE = ("SingleDevice", "DDP")  # Lightning's strategies that keep every weight in every process
SPLIT = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "TP")  # accelerate's ways of keeping a part of them in each


def require_whole_weights(strategy: Any) -> None:
    """Refuses a strategy that keeps a part of the weights in each process.

    Raises:
        ValueError: names the strategy and what to use.
    """
    kinds = [kind.__name__ for kind in type(strategy).__mro__]
    if not any(name.startswith(WHOLE) for name in kinds):
        raise ValueError(
            f"MemorizationGuard cannot probe under {kinds[0]}, which may keep only a part of the weights in each "
            'process; use strategy="ddp" (a LoRA of Stable Diffusion fits one device), or measure saved checkpoints '
            "with basinguard.LoopGuard"
        )


def require_whole_weights_of(accelerator: Any) -> None:
    """Refuses an accelerator that keeps a part of the weights in each process.

    Raises:
        ValueError: names the way it distributes, and what to use.
    """
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    if kind in SPLIT:
        raise ValueError(
            f"LoopGuard cannot probe under {kind}, which keeps only a part of the weights in each process; train with "
            "plain data parallelism (a LoRA of Stable Diffusion fits one device), or measure saved checkpoints with a "
            "LoopGuard that has no accelerator"
        )


def captioned_images(trainer: Any, module: Any) -> Any:
    """What a fit trains on: its datamodule, or the images of its DataLoader where it has no datamodule of ours.

    Raises:
        ValueError: a DataLoader whose images cannot be read; says why.
    """
    data, source = trainer.datamodule, getattr(trainer.fit_loop, "_data_source", None)
    if hasattr(data, "all_pixels") or source is None or not source.is_defined():
        return data
    with same_streams():
        loader = source.dataloader()
    tokenizer = getattr(getattr(module, "pipe", None), "tokenizer", None)
    return LoaderImages(loader, tokenizer) if isinstance(loader, DataLoader) else data


def require_exportable(pipe: Any) -> None:
    """Refuses a guarded export of a family that has none, before anything is trained.

    Raises:
        ValueError: names its class, and what to do.
    """
    name, capabilities = family_of(pipe).class_name, family_of(pipe).capabilities
    if not capabilities.exportable:
        raise ValueError(
            f"export_to: a {name} is trained and probed, but no guarded directory of one can be written; set export_to "
            "to null, and save what FineTune.export_pipeline() returns"
        )


def require_parts(datamodule: Any, module: Any, *, exported: bool = False) -> None:
    """Refuses what the guard cannot measure, or cannot export where that is asked for.

    Raises:
        TypeError: names every part that is missing.
    """
    own = ("pipe", "base_id", "export_pipeline") if exported else ("pipe",)
    needed = ((datamodule, ("items", "all_pixels"), "the datamodule"), (module, own, "the LightningModule"))
    lacking = [f"{what} has no {name}" for part, names, what in needed for name in names if not hasattr(part, name)]
    if lacking:
        raise TypeError(
            f"MemorizationGuard: {', '.join(lacking)}; train FineTune on an ImageFolder, or give yours these parts "
            "(see basinguard.training.protocols)"
        )
