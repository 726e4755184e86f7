"""The changes of the weights, and the rules beside them, that `weight_knobs.py` compares.

An edit takes a tensor's name, its change and the base's tensor, and gives what is left of the change. Formulas that the
package has are the package's.

Source of the base-anchored filter: arXiv 2605.10439, known here by its abstract alone. This is a reconstruction:
singular channels of the change that lie no more than a random one would in the span of the base's first singular
vectors are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from basinguard.core.update_filter import update_filter

SCALE = 3.0
SHARES = (0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
RULES = ((0.0, 874.0), (-1.0, 874.0), (-1.0, 811.0), (-1.0, 749.0), (-1.0, 624.0))
BANDS = ((750, 1000), (500, 750), (250, 500), (-1, 250))
BASE_ENERGY = 0.5  # of the base's matrix, that its first singular vectors hold
Edit = Callable[[str, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Knob:
    """A change of the weights, from the whole change of an epoch; and another one within a band of timesteps."""

    name: str
    edit: Edit
    within: Edit | None = None  # None: the same at every timestep
    band: tuple[float, float] = (-1, 1000)  # above the first, up to the second
    scale: float = SCALE
    rule: tuple[float, float] | None = None  # beside the weights: a guidance scale above a timestep


def share(value: float) -> Edit:
    """The same share of everything."""
    return lambda name, change, base: value * change


def only(inside: Callable[[str], bool]) -> Edit:
    """The whole change of some layers, none of the others."""
    return lambda name, change, base: change if inside(name) else torch.zeros_like(change)


def packaged(name: str) -> Edit:
    """A filter of the update that the package has."""
    return lambda tensor, change, base: update_filter(name).edit(tensor, change)


def spectral(keep: Callable[[Tensor], Tensor]) -> Edit:
    """The change with its singular values edited; vectors as they are."""

    def edit(name: str, change: Tensor, base: Tensor) -> Tensor:
        if change.dim() < 2:
            return change
        u, s, v = torch.linalg.svd(change.flatten(1), full_matrices=False)
        return ((u * keep(s)) @ v).view_as(change)

    return edit


def without_values(first: int, last: int) -> Edit:
    """Without some of the singular values, told from 1, the largest."""
    return spectral(lambda s: s * ~((torch.arange(len(s)) >= first - 1) & (torch.arange(len(s)) < last)))


def base_anchored(name: str, change: Tensor, base: Tensor) -> Tensor:
    """The singular channels of the change that lie along the base's first ones, by a hard gate."""
    if change.dim() < 2:
        return change
    u, s, v = torch.linalg.svd(change.flatten(1), full_matrices=False)
    base_u, base_s, base_v = torch.linalg.svd(base.flatten(1), full_matrices=False)
    energy = base_s.square().cumsum(0) / base_s.square().sum()
    k = int((energy < BASE_ENERGY).sum()) + 1
    aligned = (base_u[:, :k].T @ u).square().sum(0) * (base_v[:k] @ v.T).square().sum(0)
    random = k**2 / (len(u) * v.shape[1])
    return ((u * s * (aligned >= random)) @ v).view_as(change)


def channels(value: float, name: str, change: Tensor, base: Tensor) -> Tensor:
    """The whole change of a random share of the output channels."""
    random = torch.Generator().manual_seed(len(name))
    mask = torch.rand(len(change), generator=random) < value
    return change * mask.view(-1, *[1] * (change.dim() - 1))


KINDS: Mapping[str, Callable[[str], bool]] = {
    "attention": lambda name: ".attentions." in name,
    "cross-attention": lambda name: ".attn2." in name,
    "residual blocks": lambda name: ".resnets." in name,
}
WAYS: Mapping[str, Callable[[str], bool]] = {
    "the way down": lambda name: ".down_blocks." in name or ".conv_in." in name,
    "the middle": lambda name: ".mid_block." in name,
    "the way up": lambda name: ".up_blocks." in name or ".conv_out." in name,
}
BLOCKS: Mapping[str, Callable[[str], bool]] = {
    name: lambda tensor, name=name: f".{name}." in tensor
    for name in (
        *(f"down_blocks.{k}" for k in range(3)), "mid_block", *(f"up_blocks.{k}" for k in range(3)), "time_embedding",
    )
}  # fmt: skip


def without(inside: Callable[[str], bool]) -> Edit:
    """The whole change but that of some layers."""
    return only(lambda name: not inside(name))


def products(*, middle: bool) -> Iterator[Knob]:
    """Shares, rules and the best part of the network at every epoch; the rest at the middle one."""
    whole = share(1.0)
    for value in SHARES:
        yield Knob(f"share {value:g}", share(value))
    yield Knob("scale 1.5", whole, scale=1.5)
    for before, transition in RULES:
        yield Knob(f"rule {before:g} above {transition:g}", whole, rule=(before, transition))
    yield Knob("without cross-attention", packaged("no-cross-attention"))
    yield Knob("without cross-attention, rule -1 above 874", packaged("no-cross-attention"), rule=(-1.0, 874.0))
    if not middle:
        return
    for switch in (300.0, 700.0):
        for value in (0.0, 0.3, 0.6):
            yield Knob(f"{value:g} above {switch:g}", whole, share(value), (switch, 1000))
            yield Knob(f"{value:g} below {switch:g}", whole, share(value), (-1, switch))
    for rank in (4, 16):
        yield Knob(f"rank {rank}", packaged(f"rank-{rank}"))
        yield Knob(f"without the first {rank}", without_values(1, rank))
    yield Knob("singular values at most their median", spectral(lambda s: s.clamp(max=float(s.median()))))
    yield Knob("base-anchored filter", base_anchored)
    yield Knob("random channels 0.6", partial(channels, 0.6))
    for part, inside in {**KINDS, **WAYS}.items():
        yield Knob(f"{part} alone", packaged("residual-blocks") if part == "residual blocks" else only(inside))
        if part != "cross-attention":
            yield Knob(f"without {part}", packaged("no-attention") if part == "attention" else without(inside))


def left_out() -> Iterator[Knob]:
    """The whole change but one part of it, each part in turn: kinds of layers, blocks, timesteps, singular values."""
    yield Knob("left out: nothing", share(1.0))
    for part, inside in {**KINDS, **BLOCKS}.items():
        yield Knob(f"left out: {part}", without(inside))
    for low, high in BANDS:
        yield Knob(f"left out: timesteps {max(low, 0)} to {high}", share(1.0), share(0.0), (low, high))
    for first, last in ((1, 4), (5, 16), (17, 10**6)):
        values = f"{first} to {last}" if last < 10**6 else f"from {first} on"
        yield Knob(f"left out: singular values {values}", without_values(first, last))
