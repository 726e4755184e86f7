"""What each mitigation costs beside plain CFG: time by interleaved runs, memory by counting tensors that are alive."""

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
from .base import Mitigation, needs_base, sample
from .testbed import Batch, Testbed

ROUNDS = 3


class Cost(Schema):
    """A mitigation at its default intensity, beside plain CFG on the same batch.

    Attributes:
        mitigation, intensity: which.
        unet_evals: rows the UNets evaluated for each sample.
        time_ratio: wall time over that of plain CFG measured directly before it, median and range of the rounds.
        memory_ratio: most bytes of tensors alive at once, weights included, over that of plain CFG.
    """

    mitigation: str
    intensity: float
    unet_evals: float
    time_ratio: Estimate
    memory_ratio: float


@torch.no_grad()
def costs(
    testbed: Testbed,
    mitigations: Sequence[Mitigation],
    plain: Mitigation,
    batch: Batch,
    progress: Callable[[str], object],
) -> list[Cost]:
    """Costs of the mitigations that apply, measured in turn, each directly after plain CFG.

    Args:
        testbed: the model under test.
        mitigations: to measure, each at its default intensity.
        plain: plain CFG.
        batch: what to sample.
        progress: called with each mitigation's name before its turn.
    """
    applying = [mitigation for mitigation in mitigations if not mitigation.missing_requirement(testbed)]
    ratios: dict[str, list[float]] = {mitigation.name: [] for mitigation in applying}
    rows: dict[str, int] = {}
    for turn in range(ROUNDS + 1):
        for mitigation in applying:
            progress(mitigation.name)
            reference = _timed(testbed, plain, batch)[0] if turn else 1.0  # the first turn is for warming up
            seconds, rows[mitigation.name] = _timed(testbed, mitigation, batch)
            if turn:
                ratios[mitigation.name].append(seconds / reference)
    reference_bytes = peak_bytes(testbed, plain, batch)
    return [
        Cost(
            mitigation=mitigation.name,
            intensity=mitigation.default,
            unet_evals=rows[mitigation.name] / len(batch),
            time_ratio=_range(ratios[mitigation.name]),
            memory_ratio=peak_bytes(testbed, mitigation, batch) / reference_bytes,
        )
        for mitigation in applying
    ]


def _timed(testbed: Testbed, mitigation: Mitigation, batch: Batch) -> tuple[float, int]:
    mitigation.prepare(testbed)
    _synchronise(testbed)
    start = time.perf_counter()
    _, rows = sample(testbed, mitigation, mitigation.default, batch)
    _synchronise(testbed)
    return time.perf_counter() - start, rows


def _synchronise(testbed: Testbed) -> None:
    if testbed.pipe.unet.device.type == "cuda":
        torch.cuda.synchronize(testbed.pipe.unet.device)


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
def peak_bytes(testbed: Testbed, mitigation: Mitigation, batch: Batch) -> int:
    """Most bytes held at once while a batch is sampled: by the allocator on an accelerator, else by living tensors."""
    mitigation.prepare(testbed)
    device = testbed.pipe.unet.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        sample(testbed, mitigation, mitigation.default, batch)
        return int(torch.cuda.max_memory_allocated(device))
    used = testbed.unets if mitigation.requires is needs_base else [testbed.pipe.unet]
    own = [testbed.pipe.vae, testbed.pipe.text_encoder]
    with Alive(_weights([*testbed.unets, *own])) as alive:
        sample(testbed, mitigation, mitigation.default, batch)
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
        self._counted: set[int] = {tensor.untyped_storage()._cdata for tensor in ignored}

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
        if key in self._counted:
            return
        self._counted.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._counted.discard(key)
        self.now -= size
