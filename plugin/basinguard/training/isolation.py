"""What cannot hurt training: modes, random streams and weights are afterwards as they were before."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from ..pipelines.families.registry import networks_of
from .protocols import TrainedModule


@contextmanager
def untouched(*modules: nn.Module) -> Iterator[None]:
    """Inside, the modules evaluate; afterwards their modes and all random streams are as they were before."""
    modes = {module: module.training for root in modules for module in root.modules()}
    with same_streams():
        try:
            for root in modules:
                root.eval()
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


@contextmanager
def same_streams() -> Iterator[None]:
    """Gives torch, numpy, python their random streams back, after errors too (Lightning's `isolate_rng` does not)."""
    on_cpu, in_numpy, in_python = torch.get_rng_state(), np.random.get_state(), random.getstate()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        torch.set_rng_state(on_cpu)
        torch.cuda.set_rng_state_all(on_gpus)
        np.random.set_state(in_numpy)
        random.setstate(in_python)


def parts_of(module: TrainedModule) -> list[nn.Module]:
    """Everything whose mode a probe or an export changes: the pipeline's modules, and the module around them."""
    parts = networks_of(module.pipe)
    return [module, *parts] if isinstance(module, nn.Module) else parts


def moved(modules: list[nn.Module], device: torch.device | None) -> list[nn.Module]:
    """The modules, on a device; where they are if None."""
    return modules if device is None else [module.to(device) for module in modules]


def averaged(module: TrainedModule) -> AbstractContextManager[None]:
    """Inside, the averaged weights are in place, where the module averages any."""
    context: AbstractContextManager[None] = getattr(module, "averaged_weights", nullcontext)()
    return context


def trained_weights(module: TrainedModule) -> dict[str, Tensor]:
    """Copies of a module's trained parameters, by name, on the CPU."""
    return {name: p.detach().cpu().clone() for name, p in module.named_parameters() if p.requires_grad}


@contextmanager
def holding(module: TrainedModule, weights: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Inside, the module holds these weights, in place of any average; the trained ones come back whatever happens.

    Args:
        module: what is trained.
        weights: by name; None leaves everything as it is.
    """
    if weights is None:
        yield
        return
    trained, average = trained_weights(module), getattr(module, "ema", None)
    try:
        _load(module, weights)
        if average is not None:
            module.ema = None  # type: ignore[attr-defined]
        yield
    finally:
        if average is not None:
            module.ema = average  # type: ignore[attr-defined]
        _load(module, trained)


@torch.no_grad()
def _load(module: TrainedModule, weights: Mapping[str, Tensor]) -> None:
    for name, parameter in module.named_parameters():
        if name in weights:
            parameter.copy_(weights[name])
