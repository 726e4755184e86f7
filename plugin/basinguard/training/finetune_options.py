"""What `FineTune` accepts, and what its options need: ranges, the optimizer, and contexts to measure in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def require_ranges(asked: Any) -> None:
    """Raises one ValueError for every number that is out of range."""
    problems = [
        f"{name}={asked[name]} ({accepted})"
        for name, good, accepted in (
            ("rank", asked.rank >= 1, "at least 1"),
            ("dropout", 0 <= asked.dropout < 1, "0 to below 1"),
            ("learning_rate", asked.learning_rate > 0, "above 0"),
            ("weight_decay", asked.weight_decay >= 0, "0 or more"),
            ("warmup", asked.warmup >= 0, "0 or more"),
            ("min_snr_gamma", asked.min_snr_gamma is None or asked.min_snr_gamma > 0, "above 0, or null"),
            ("caption_dropout", 0 <= asked.caption_dropout <= 1, "0 to 1"),
            ("keep_unconditional", asked.keep_unconditional >= 0, "0 or more"),
            ("ema_decay", asked.ema_decay is None or 0 < asked.ema_decay < 1, "between 0 and 1, or null"),
            ("seed", 0 <= asked.seed < 2**31, "0 to 2147483647"),
        )
        if not good
    ]
    if problems:
        raise ValueError(f"FineTune: out of range: {', '.join(problems)}")


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
            "optimizer=adamw8bit needs bitsandbytes: pip install 'basinguard[eightbit]', or set optimizer: adamw"
        ) from None
    return AdamW8bit


def checkpoint_activations(module: Any) -> None:
    """Turns gradient checkpointing on, in a diffusers or a transformers model."""
    enable = getattr(module, "enable_gradient_checkpointing", None) or module.gradient_checkpointing_enable
    enable()


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
def parked(held: list[tuple[dict[str, Any], str]], device: str = "cpu") -> Iterator[None]:
    """Inside, these tensors lie in main memory (or on `device`); then they are back where they were, unchanged."""
    homes = [state[name].device for state, name in held]
    for state, name in held:
        state[name] = state[name].to(device)
    try:
        yield
    finally:
        for (state, name), home in zip(held, homes, strict=True):
            state[name] = state[name].to(home)


@contextmanager
def averaged(ema: Any, parameters: list[torch.nn.Parameter]) -> Iterator[None]:
    """Inside, diffusers' moving average stands in for the parameters; without one (None), nothing changes."""
    if ema is None:
        yield
        return
    ema.store(parameters)
    try:
        ema.copy_to(parameters)
        yield
    finally:
        ema.restore(parameters)
