"""What each mitigation costs beside plain CFG: time by interleaved runs, memory by counting tensors that are alive."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from ..core.estimate import Estimate
from ..core.progress import say
from ..core.schema import Schema
from ..training.peak_memory import LiveBytes
from .base import Mitigation, needs_base, sample_mitigated
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
) -> list[Cost]:
    """Costs of the mitigations that apply, measured in turn, each directly after plain CFG.

    Args:
        testbed: the model under test.
        mitigations: to measure, each at its default intensity.
        plain: plain CFG.
        batch: what to sample.
    """
    applying = [mitigation for mitigation in mitigations if not mitigation.missing_requirement(testbed)]
    ratios: dict[str, list[float]] = {mitigation.name: [] for mitigation in applying}
    rows: dict[str, int] = {}
    for turn in range(ROUNDS + 1):
        say(f"timing {len(applying)} mitigations, turn {turn + 1} of {ROUNDS + 1}")
        for mitigation in applying:
            reference = timed(testbed, plain, batch)[0] if turn else 1.0  # the first turn is for warming up
            seconds, rows[mitigation.name] = timed(testbed, mitigation, batch)
            if turn:
                ratios[mitigation.name].append(seconds / reference)
    reference_bytes = sampling_bytes(testbed, plain, batch)
    return [
        Cost(
            mitigation=mitigation.name,
            intensity=mitigation.default,
            unet_evals=rows[mitigation.name] / len(batch),
            time_ratio=_range(ratios[mitigation.name]),
            memory_ratio=sampling_bytes(testbed, mitigation, batch) / reference_bytes,
        )
        for mitigation in applying
    ]


def timed(testbed: Testbed, mitigation: Mitigation, batch: Batch) -> tuple[float, int]:
    """Seconds that a batch takes at the default intensity, and the UNet rows."""
    mitigation.prepare(testbed, mitigation.default)
    _synchronise(testbed)
    start = time.perf_counter()
    _, rows = sample_mitigated(testbed, mitigation, mitigation.default, batch)
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
def sampling_bytes(testbed: Testbed, mitigation: Mitigation, batch: Batch) -> int:
    """Most bytes held at once while a batch is sampled: by the allocator on an accelerator, else by living tensors."""
    mitigation.prepare(testbed, mitigation.default)
    device = testbed.pipe.unet.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        sample_mitigated(testbed, mitigation, mitigation.default, batch)
        return int(torch.cuda.max_memory_allocated(device))
    used = testbed.unets if mitigation.requires is needs_base else [testbed.pipe.unet]
    own = [testbed.pipe.vae, testbed.pipe.text_encoder]
    with LiveBytes() as living:
        sample_mitigated(testbed, mitigation, mitigation.default, batch)
    return sum(p.untyped_storage().nbytes() for p in _weights([*used, *own])) + living.peak


def _weights(modules: Sequence[torch.nn.Module]) -> list[torch.Tensor]:
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
