"""What each method costs beside ordinary CFG: time by interleaved runs, memory by counting tensors that are alive."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..core.estimate import Estimate
from ..core.schema import Schema
from .base import Batch, Bench, Method, needs_base, networks, sample

ROUNDS = 3


class Cost(Schema):
    """A method at its default strength, beside ordinary CFG on the same batch.

    Attributes:
        method, strength: which.
        unet_evals: rows the UNets evaluated for each sample.
        time_ratio: wall time over that of ordinary CFG measured directly before it, median and range of the rounds.
        memory_ratio: most bytes of tensors alive at once, weights included, over that of ordinary CFG.
    """

    method: str
    strength: float
    unet_evals: float
    time_ratio: Estimate
    memory_ratio: float


@torch.no_grad()
def costs(
    bench: Bench, methods: Sequence[Method], plain: Method, batch: Batch, report: Callable[[str], object]
) -> list[Cost]:
    """Costs of the methods that apply, measured in turn, each directly after ordinary CFG.

    Args:
        bench: the model under test.
        methods: to measure, each at its default strength.
        plain: ordinary CFG.
        batch: what to sample.
        report: is told each method's name before its turn.
    """
    applying = [method for method in methods if not method.why_not(bench)]
    ratios: dict[str, list[float]] = {method.name: [] for method in applying}
    rows: dict[str, int] = {}
    for turn in range(ROUNDS + 1):
        for method in applying:
            report(method.name)
            reference = _timed(bench, plain, batch)[0] if turn else 1.0  # the first turn is for warming up
            seconds, rows[method.name] = _timed(bench, method, batch)
            if turn:
                ratios[method.name].append(seconds / reference)
    reference_bytes = peak_bytes(bench, plain, batch)
    return [
        Cost(
            method=method.name,
            strength=method.default,
            unet_evals=rows[method.name] / len(batch),
            time_ratio=_range(ratios[method.name]),
            memory_ratio=peak_bytes(bench, method, batch) / reference_bytes,
        )
        for method in applying
    ]


def _timed(bench: Bench, method: Method, batch: Batch) -> tuple[float, int]:
    method.prepare(bench)
    _synchronise(bench)
    start = time.perf_counter()
    _, rows = sample(bench, method, method.default, batch)
    _synchronise(bench)
    return time.perf_counter() - start, rows


def _synchronise(bench: Bench) -> None:
    if bench.pipe.unet.device.type == "cuda":
        torch.cuda.synchronize(bench.pipe.unet.device)


def _range(ratios: list[float]) -> Estimate:
    """Median with the least and the largest: for n rounds the range covers the median with chance 1 - 2^(1 - n).

    Source: Conover, "Practical Nonparametric Statistics" (1999), section 3.2 (interval for a quantile).
    """
    return Estimate(
        value=float(np.median(ratios)),
        low=min(ratios),
        high=max(ratios),
        level=1 - 2 ** (1 - len(ratios)),
        n=len(ratios),
        method="median and range of interleaved rounds",
    )


@torch.no_grad()
def peak_bytes(bench: Bench, method: Method, batch: Batch) -> int:
    """Most bytes held at once while a batch is sampled: by the allocator on an accelerator, else by living tensors."""
    method.prepare(bench)
    device = bench.pipe.unet.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        sample(bench, method, method.default, batch)
        return int(torch.cuda.max_memory_allocated(device))
    used = networks(bench) if method.applies is needs_base else [bench.pipe.unet]
    own = [bench.pipe.vae, bench.pipe.text_encoder]
    with Alive(_weights([*networks(bench), *own])) as alive:
        sample(bench, method, method.default, batch)
    return sum(p.untyped_storage().nbytes() for p in _weights([*used, *own])) + alive.peak


def _weights(modules: Sequence[torch.nn.Module]) -> list[torch.Tensor]:
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]


class Alive(TorchDispatchMode):
    """Adds up the storages that operations make and that are still referenced; `peak` is the most at once, in bytes.

    Args:
        ignored: tensors that were there before, such as weights: views of them add nothing.
    """

    def __init__(self, ignored: Sequence[torch.Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = {tensor.untyped_storage()._cdata for tensor in ignored}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and looks at what it made."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf)
        return out

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
