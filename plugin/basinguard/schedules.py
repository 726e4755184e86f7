"""Rules of the rival line: guidance that varies along the trajectory, whoever the prompt is; and prompt triage.

The seven schedules differ only in a shape over t / T; the table `SHAPES` holds them. They take part in side-by-side
runs; a checkpoint ships with a rule from `guidance`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .guidance import RULES, Rule, from_dict, known_scale, to_dict

SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda noise: 2 * (1 - noise),
    "inverse_linear": lambda noise: 2 * noise,
    "cosine": lambda noise: 1 + torch.cos(torch.pi * noise),
    "sine": lambda noise: 1 + torch.sin(torch.pi * (noise - 0.5)),
    "v": lambda noise: 2 * (2 * noise - 1).abs(),
    "a": lambda noise: 2 * (1 - (2 * noise - 1).abs()),
}
"""Shape over t / T in [0, 1] (1 = noisy); each has mean 1, so that all spend the same guidance in total."""


@dataclass(frozen=True)
class Schedule:
    """Scale 1 + (after - 1) * shape(t / T): the named shape with the mean of constant guidance at `after`.

    `after=None` is the caller's own guidance scale.

    Source: Wang et al., arXiv 2404.13040, section 4 (heuristic schedulers, normalised to the area of the static one).
    Its weight omega multiplies cond - uncond on top of the conditional prediction, so omega = scale - 1.

    Example:
        >>> Schedule("linear", after=5.0).scale(torch.tensor([999.0, 499.5, 0.0]), None, None)[0]
        tensor([1., 5., 9.])
    """

    shape: str
    after: float | None = None

    reads_gap = False

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"Schedule({self.shape!r}): unknown shape; known: {', '.join(SHAPES)}")

    def init(self, batch: int) -> None:
        """No state."""

    def scale(self, timestep: Tensor, gap: Tensor | None, state: None) -> tuple[Tensor, None]:
        """The shape at `timestep`."""
        noise = (timestep.float() / 999).clamp(0, 1)
        return 1 + (known_scale(self.after) - 1) * SHAPES[self.shape](noise), None


@dataclass(frozen=True)
class Interval:
    """`after` for timesteps in (low, high], the conditional prediction (scale 1) outside.

    The paper names noise levels: sigma in (0.28, 5.42] for SDXL; `NoiseSchedule.timestep(sigma)` translates.

    Source: Kynkaanniemi et al., arXiv 2404.07724, eq. 5.

    Example:
        >>> Interval(100, 800, after=7.5).scale(torch.tensor([900.0, 800.0, 100.0]), None, None)[0]
        tensor([1.0000, 7.5000, 1.0000])
    """

    low: float
    high: float
    after: float | None = None

    reads_gap = False

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1000:
            raise ValueError(f"Interval({self.low}, {self.high}): expected timesteps with 0 <= low < high <= 1000")

    def init(self, batch: int) -> None:
        """No state."""

    def scale(self, timestep: Tensor, gap: Tensor | None, state: None) -> tuple[Tensor, None]:
        """`after` inside the interval, 1 outside."""
        inside = (timestep > self.low) & (timestep <= self.high)
        return torch.where(inside, known_scale(self.after), 1.0).float(), None


NEAR = 10  # timesteps; over that many near t = T the gap of a v-model changes by less than a tenth


@dataclass(frozen=True)
class Triage:
    """Ordinary CFG for prompts whose first gap is at most `threshold`; `rule` for the others.

    The first gap that is not zero decides: a model with zero terminal signal-to-noise ratio has none at t = T.

    Attributes:
        rule: for prompts that pull.
        threshold: root-mean-square gap in epsilon, as `basinguard.triage` calibrates it on this model.
        after: scale of harmless prompts; None = the caller's own guidance scale.
        timestep: where the threshold was calibrated. A gap that is read further than `NEAR` from there says nothing
            of the threshold, and raises a ValueError; None = anywhere.

    Source: Wen et al., arXiv 2407.21720, section 4 (first-step magnitude); arXiv 2411.16738 names the need as its
    first limitation.
    """

    rule: Rule
    threshold: float
    after: float | None = None
    timestep: float | None = None

    reads_gap = True

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise ValueError(f"Triage(threshold={self.threshold}): expected a gap above 0")

    def init(self, batch: int) -> tuple[Any, Tensor]:
        """The inner rule's state, and every sample's first gap [B], 0 while there is none."""
        return self.rule.init(batch), torch.zeros(batch)

    def scale(self, timestep: Tensor, gap: Tensor | None, state: tuple[Any, Tensor]) -> tuple[Tensor, Any]:
        """The inner rule's scale for samples that pull, or were not judged yet."""
        if gap is None:
            raise ValueError("Triage needs the gap, but only one branch was evaluated")
        inner, first = state[0], state[1].to(gap.device)
        self._require_near(timestep, (first == 0) & (gap > 0))
        first = torch.where(first > 0, first, gap.float())
        scale, inner = self.rule.scale(timestep, gap, inner)
        harmless = (first > 0) & (first <= self.threshold)
        return torch.where(harmless, known_scale(self.after), scale.to(gap.device)), (inner, first)

    def _require_near(self, timestep: Tensor, judged: Tensor) -> None:
        if self.timestep is None or not bool(judged.any()):
            return
        now = float(timestep.flatten()[0])
        if abs(now - self.timestep) > NEAR:
            raise ValueError(
                f"triage was calibrated at timestep {self.timestep:g}, this sampler shows its first gap at {now:g}: "
                "take the number of steps and the timestep_spacing of the calibration, or leave triage off"
            )


ALL_RULES: dict[str, type] = RULES | {"schedule": Schedule, "interval": Interval, "triage": Triage}


def rule_to_dict(rule: Rule) -> dict[str, Any]:
    """The JSON form of any rule of the package; `guidance.to_dict` knows only those that ship."""
    if isinstance(rule, Triage):
        numbers = {"threshold": rule.threshold, "after": rule.after, "timestep": rule.timestep}
        return {"rule": "triage", "inner": rule_to_dict(rule.rule), **numbers}
    return to_dict(rule, ALL_RULES)


def rule_from_dict(form: Mapping[str, Any]) -> Rule:
    """Reads what `rule_to_dict` wrote.

    Raises:
        ValueError: an unknown rule, or a number it does not take.

    Example:
        >>> rule_from_dict(rule_to_dict(Schedule("cosine", 5.0)))
        Schedule(shape='cosine', after=5.0)
    """
    if form.get("rule") == "triage":
        try:
            return Triage(rule_from_dict(form["inner"]), form["threshold"], form["after"], form.get("timestep"))
        except (KeyError, TypeError) as error:
            raise ValueError(f"rule 'triage': {error!r} in {dict(form)}") from None
    return from_dict(form, ALL_RULES)
