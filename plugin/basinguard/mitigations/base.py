"""What a mitigation is here: prompts and seeds in, clean latents out, at an intensity that can be turned.

To add one: write a module of its family that ends in a `Mitigation`, and put that into `registry.MITIGATIONS`.

Every mitigation starts from the same noise for the same seed and ends in latents that one decoder turns into images, so
two rows differ by the mitigation alone. What it costs is counted on the networks themselves, never assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .testbed import Batch, Testbed

SampleBatch = Callable[[Testbed, Batch, float], Tensor]


def no_requirement(testbed: Testbed) -> str:
    """Runs on every model."""
    return ""


def needs_base(testbed: Testbed) -> str:
    """What is missing where nothing of the base model is at hand."""
    if testbed.base is not None or getattr(testbed.pipe.unet, "peft_config", None):
        return ""
    return "needs the base model: give its directory or hub id as base"


def needs_cross_attention(testbed: Testbed) -> str:
    """What is missing where no layer attends to the prompt."""
    processors = getattr(testbed.pipe.unet, "attn_processors", {})
    return "" if any("attn2" in name for name in processors) else "the model has no cross-attention to change"


def needs_guidance(testbed: Testbed) -> str:
    """What is missing where no mitigation has anything to act on."""
    if testbed.pipe.unet.config.get("time_cond_proj_dim") is not None:
        return "the model is guidance-distilled: it has no unconditional branch"
    return ""


def no_preparation(testbed: Testbed, intensity: float) -> None:
    """Nothing to compute beforehand."""


def no_note(testbed: Testbed, intensity: float) -> str:
    """Nothing to add."""
    return ""


def no_unets(testbed: Testbed, intensity: float) -> Sequence[nn.Module]:
    """No UNet but those of the testbed."""
    return ()


@dataclass(frozen=True)
class Mitigation:
    """One mitigation.

    Attributes:
        name: what it is called in tables and on the command line.
        source: paper and equation.
        intensity: what the number means, in a few words.
        intensities: the points of its curve, mildest first.
        default: the one that stands for the mitigation in the table of costs.
        sampler: samples a batch at an intensity, clean latents [B, C, h, w].
        requires: what is missing for it to run on a model, or "".
        note: what a reader of the row must know, or "".
        prepare: computes what an intensity needs once, such as a calibration; not counted in the cost of a sample.
        extra_unets: UNets it evaluates at an intensity beside those of the testbed, so that their rows are counted too.
        ours: whether it is this package's own.
    """

    name: str
    source: str
    intensity: str
    intensities: tuple[float, ...]
    default: float
    sampler: SampleBatch
    requires: Callable[[Testbed], str] = no_requirement
    note: Callable[[Testbed, float], str] = no_note
    prepare: Callable[[Testbed, float], object] = no_preparation
    extra_unets: Callable[[Testbed, float], Sequence[nn.Module]] = no_unets
    ours: bool = False

    def missing_requirement(self, testbed: Testbed) -> str:
        """Why it cannot run on this model, or ""."""
        return needs_guidance(testbed) or self.requires(testbed)


@dataclass
class RowCount:
    """Rows that went through a network: one for each sample and branch."""

    rows: int = 0


@contextmanager
def rows_counted(networks: Sequence[nn.Module]) -> Iterator[RowCount]:
    """Inside, every row that any of the networks evaluates is counted, whoever calls it."""
    count = RowCount()

    def after(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        count.rows += len(args[0] if args else kwargs["sample"])

    hooks = [network.register_forward_hook(after, with_kwargs=True) for network in networks]
    try:
        yield count
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def sample_mitigated(testbed: Testbed, mitigation: Mitigation, intensity: float, batch: Batch) -> tuple[Tensor, int]:
    """Clean latents of a batch under a mitigation, and the UNet rows they took.

    Raises:
        ValueError: the mitigation does not apply to this model.
        FloatingPointError: it returned values that are not finite.
    """
    missing = mitigation.missing_requirement(testbed)
    if missing:
        raise ValueError(f"{mitigation.name} cannot run here: {missing}")
    mitigation.prepare(testbed, intensity)
    with rows_counted([*testbed.unets, *mitigation.extra_unets(testbed, intensity)]) as count:
        latents = mitigation.sampler(testbed, batch, intensity).float().cpu()
    if not bool(torch.isfinite(latents).all()):
        raise FloatingPointError(f"{mitigation.name} at intensity {intensity:g} returned latents that are not finite")
    return latents, count.rows
