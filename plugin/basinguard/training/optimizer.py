"""The optimizer of a fine-tune with its schedule, and two contexts to measure in: moments parked, weights averaged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

from .finetune_options import OptimizerOptions


def optimizer_class(name: str) -> Any:
    """AdamW, with its two moments in float32 or in 8 bits.

    Raises:
        ValueError: "adamw8bit" without bitsandbytes.

    Source: Loshchilov and Hutter, arXiv 1711.05101; Dettmers et al., arXiv 2110.02861.
    """
    if name == "adamw":
        return torch.optim.AdamW
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise ValueError(
            "optimizer adamw8bit needs bitsandbytes: pip install 'basinguard[eightbit]', or set optimizer.name: adamw"
        ) from None
    return AdamW8bit


def optimizer_and_schedule(
    parameters: Iterable[torch.nn.Parameter], options: OptimizerOptions, updates: float | None
) -> dict[str, Any]:
    """Both, as Lightning's `configure_optimizers` returns them.

    Args:
        parameters: what is trained.
        options: of both.
        updates: in the whole training; not needed where the learning rate stays constant.
    """
    build = optimizer_class(options.name)
    optimizer = build(parameters, lr=options.learning_rate, weight_decay=options.weight_decay)
    name = "constant_with_warmup" if options.schedule == "constant" else options.schedule
    schedule = get_scheduler(name, optimizer, num_warmup_steps=options.warmup, num_training_steps=updates)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def moments_of(optimizers: Iterable[torch.optim.Optimizer]) -> list[tuple[dict[str, Any], str]]:
    """Where optimizers hold tensors: (state of one parameter, name) for each that is more than a number."""
    return [
        (state, name)
        for optimizer in optimizers
        for state in optimizer.state.values()
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and value.numel() > 1
    ]


@contextmanager
def parked(moments: list[tuple[dict[str, Any], str]], device: str = "cpu") -> Iterator[None]:
    """Inside, these tensors lie in main memory (or on `device`); then they are back where they were, unchanged."""
    homes = [state[name].device for state, name in moments]
    for state, name in moments:
        state[name] = state[name].to(device)
    try:
        yield
    finally:
        for (state, name), home in zip(moments, homes, strict=True):
            state[name] = state[name].to(home)


@contextmanager
def averaged_parameters(ema: EMAModel | None, parameters: list[torch.nn.Parameter]) -> Iterator[None]:
    """Inside, diffusers' moving average stands in for the parameters; without one, nothing changes."""
    if ema is None:
        yield
        return
    ema.store(parameters)
    try:
        ema.copy_to(parameters)
        yield
    finally:
        ema.restore(parameters)
