"""How strongly a prompt pulls, at every point of a trajectory: guidance as one number per sample.

Classifier-free guidance, none, and opposite guidance are not three mechanisms: they are `scale` = 7.5, 0 and -2 in
`eps = eps_uncond + scale * (eps_cond - eps_uncond)`. A *rule* only decides that number, per sample, from the timestep
(static transition point, STP) or from the gap between the two predictions (dynamic transition point, DTP).

This file needs torch alone. It ships, unchanged, beside every exported checkpoint.

Source: Jain et al., "Classifier-Free Guidance inside the Attraction Basin May Cause Memorization", CVPR 2025,
arXiv 2411.16738 (STP, DTP, OG).

Differences from the released code: its opposite guidance flips sign at every step, here it does not; its static
transition silently changes to a 200-step grid, here it never does; its dynamic rule uses scale 1 before the
transition although the paper says "without CFG", here `before` says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


def combine(eps_uncond: Tensor, eps_cond: Tensor, scale: Tensor) -> Tensor:
    """`eps_uncond + scale * (eps_cond - eps_uncond)`, the only place where guidance is applied.

    Args:
        eps_uncond, eps_cond: predictions, [B, ...]; epsilon, v or velocity, since all are linear in each other.
        scale: [B]; 0 = unconditional, 1 = conditional, negative = opposite.

    Source: Ho and Salimans, arXiv 2207.12598, eq. 6, in diffusers' convention.
    """
    weight = scale.to(eps_cond.dtype).reshape(-1, *[1] * (eps_cond.ndim - 1))
    return eps_uncond + weight * (eps_cond - eps_uncond)


def gap(eps_uncond: Tensor, eps_cond: Tensor) -> Tensor:
    """Root-mean-square difference of the two epsilon predictions, [B].

    Source: arXiv 2411.16738, section 4 (d_t), divided by sqrt(numel) so that it does not depend on resolution.
    """
    return (eps_cond.float() - eps_uncond.float()).flatten(1).pow(2).mean(1).sqrt()


class Rule(Protocol):
    """Decides the guidance scale of every sample. Frozen; what it remembers goes in and out as `state`.

    `reads_gap` says whether `scale` needs the gap: if not, a branch that the scale makes irrelevant (the conditional
    one at 0, the unconditional one at 1) need not be evaluated at all.
    """

    @property
    def reads_gap(self) -> bool:
        """Whether `scale` looks at the gap."""
        ...

    def init(self, batch: int) -> Any:
        """The state before the first step."""
        ...

    def scale(self, timestep: Tensor, gap: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        """Scale of each sample [B] at `timestep` [B], given the gap [B] there, and the next state."""
        ...


@dataclass(frozen=True)
class Constant:
    """The same scale everywhere: ordinary CFG (7.5), none (0 or 1), opposite (negative).

    Example:
        >>> Constant(7.5).scale(torch.tensor([999.0]), None, None)[0]
        tensor([7.5000])
    """

    value: float

    reads_gap = False

    def init(self, batch: int) -> None:
        """No state."""
        return None

    def scale(self, timestep: Tensor, gap: Tensor | None, state: None) -> tuple[Tensor, None]:
        """`value`, whatever the timestep."""
        return torch.full_like(timestep, self.value, dtype=torch.float32), None


@dataclass(frozen=True)
class SwitchAt:
    """Static transition point: `before` above `transition`, `after` at and below it.

    `transition` is a training timestep in [0, 999], or one for each sample of the batch.

    Source: arXiv 2411.16738, section 4.2 (STP); with a negative `before`, section 4.4 (opposite guidance).

    Example:
        >>> SwitchAt(600, before=0.0, after=7.5).scale(torch.tensor([601.0, 600.0]), None, None)[0]
        tensor([0.0000, 7.5000])
    """

    transition: float | tuple[float, ...]
    before: float = 0.0
    after: float = 7.5

    reads_gap = False

    def __post_init__(self) -> None:
        points = self.transition if isinstance(self.transition, tuple) else (self.transition,)
        if not points or any(not 0 <= point <= 999 for point in points):
            raise ValueError(f"SwitchAt(transition={self.transition}): expected training timesteps in [0, 999]")

    def init(self, batch: int) -> None:
        """No state."""
        if isinstance(self.transition, tuple) and len(self.transition) != batch:
            raise ValueError(f"SwitchAt has {len(self.transition)} transitions for a batch of {batch} samples")
        return None

    def scale(self, timestep: Tensor, gap: Tensor | None, state: None) -> tuple[Tensor, None]:
        """`before` above the transition, `after` at and below it."""
        transition = torch.as_tensor(self.transition, dtype=torch.float32, device=timestep.device)
        return torch.where(timestep > transition, self.before, self.after).float(), None


@dataclass(frozen=True)
class LocalMinimum:
    """The paper's detector: the gap had fallen and now rises, d[i-2] > d[i-1] < d[i].

    It sees two earlier gaps, so it fires at the third step at the earliest. `depth` is the share of the running peak
    by which the gap must have fallen before a rise counts: 0 is the paper's rule, more ignores ripples.

    Source: arXiv 2411.16738, section 4.3 (DTP).
    """

    depth: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.depth < 1:
            raise ValueError(f"LocalMinimum(depth={self.depth}): expected a share of the peak in [0, 1)")

    def fires(self, older: Tensor, last: Tensor, gap: Tensor, peak: Tensor) -> Tensor:
        """Whether `last` was a local minimum, deep enough below `peak`. All [B]; comparisons with NaN are False."""
        return (older > last) & (gap > last) & (last <= (1 - self.depth) * peak)


@dataclass(frozen=True)
class SwitchAfter:
    """Dynamic transition point: `before` until the detector fires for a sample, `after` from that step on.

    Source: arXiv 2411.16738, section 4.3 (DTP); with a negative `before`, section 4.4 (OG + DTP).
    """

    detector: LocalMinimum = LocalMinimum()
    before: float = 0.0
    after: float = 7.5

    reads_gap = True

    def init(self, batch: int) -> Tensor:
        """Columns: the last two gaps, the running peak, whether the detector has fired. [B, 4]."""
        return torch.tensor([float("nan"), float("nan"), 0.0, 0.0]).repeat(batch, 1)

    def scale(self, timestep: Tensor, gap: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
        """`after` for every sample whose gap has passed its first local minimum."""
        if gap is None:
            raise ValueError("SwitchAfter needs the gap, but only one branch was evaluated")
        older, last, peak, fired = state.to(gap.device).unbind(1)
        on = fired.bool() | self.detector.fires(older, last, gap, peak)
        state = torch.stack([last, gap, torch.maximum(peak, gap), on.float()], 1)
        return torch.where(on, self.after, self.before).float(), state


RULES: dict[str, type] = {"constant": Constant, "switch_at": SwitchAt, "switch_after": SwitchAfter}


def to_dict(rule: Rule) -> dict[str, Any]:
    """The JSON form of a rule: its name and its numbers."""
    name = next(name for name, kind in RULES.items() if type(rule) is kind)
    return {"rule": name, **asdict(rule)}  # type: ignore[call-overload]


def from_dict(form: Mapping[str, Any]) -> Rule:
    """Reads what `to_dict` wrote.

    Raises:
        ValueError: an unknown rule, or a number it does not take.

    Example:
        >>> from_dict(to_dict(SwitchAt(600.0, -2.0, 7.5)))
        SwitchAt(transition=600.0, before=-2.0, after=7.5)
    """
    numbers = dict(form)
    name = numbers.pop("rule", None)
    if name not in RULES:
        raise ValueError(f"unknown rule {name!r}; known: {', '.join(RULES)}")
    if isinstance(numbers.get("transition"), list):
        numbers["transition"] = tuple(numbers["transition"])
    if isinstance(numbers.get("detector"), Mapping):
        numbers["detector"] = LocalMinimum(**numbers["detector"])
    try:
        rule: Rule = RULES[name](**numbers)
    except TypeError as error:
        raise ValueError(f"rule {name!r}: {error}") from None
    return rule
