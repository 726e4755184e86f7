"""Rules as products have them: plain CFG, and a scale above a transition, at the timesteps that a search tries."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace

from torch import Tensor

from ..core.record import ALWAYS_ON, Guidance
from ..diffusion.noise_schedule import NoiseSchedule
from .grids import grid_positions
from .terms import COARSE, CalibrationTerms, Setting


def plain_cfg(scale: float, noise: NoiseSchedule) -> Guidance:
    """Plain CFG as a rule whose guidance is on from the first timestep."""
    return Guidance(transition=ALWAYS_ON, sigma=float(noise.sigma(ALWAYS_ON)), before=scale, after=scale)


def rule(setting: Setting, transition: float, noise: NoiseSchedule, scale: float) -> Guidance:
    """A setting at a transition; `scale` where it names none."""
    numbers = asdict(replace(setting, after=scale if setting.after is None else setting.after))
    return Guidance(transition=transition, sigma=float(noise.sigma(transition)), **numbers)


def rules_of(terms: CalibrationTerms, timesteps: Tensor, noise: NoiseSchedule, scale: float) -> list[Guidance]:
    """Every setting at every transition that is searched first; those of one setting stand together, earliest first."""
    positions = grid_positions(timesteps, terms.transitions)
    if not terms.transitions and len(positions) > COARSE:
        positions = [positions[(2 * k + 1) * len(positions) // (2 * COARSE)] for k in range(COARSE)]
    return [rule(setting, float(timesteps[at]), noise, scale) for setting in terms.settings for at in positions]


def earliest(rules: Iterable[Guidance]) -> list[Guidance]:
    """Of each setting the rule whose guidance comes on first.

    Example:
        >>> low, high = (Guidance(transition=t, sigma=1.0, before=0.0) for t in (374.0, 874.0))
        >>> [r.transition for r in earliest([low, high])]
        [874.0]
    """
    first: dict[Guidance, Guidance] = {}
    for each in sorted(rules, key=lambda r: -r.transition):
        first.setdefault(_setting(each), each)
    return list(first.values())


def between(best: Guidance, tried: Iterable[Guidance], timesteps: Tensor, noise: NoiseSchedule) -> list[Guidance]:
    """The same setting halfway to the transitions next to the best one's, as far as the grid has a step there.

    Args:
        best: a rule among those tried.
        tried: rules of any setting.
        timesteps, noise: the sampler's grid and the model's noise schedule.
    """
    grid = timesteps.tolist()
    own = sorted(grid.index(r.transition) for r in tried if _setting(r) == _setting(best))
    at = own.index(grid.index(best.transition))
    earlier, later = own[at - 1] if at else 0, own[at + 1] if at + 1 < len(own) else len(grid)
    halfway = {(earlier + own[at]) // 2, (own[at] + later) // 2} - {0, *own}
    return [_moved(best, float(grid[k]), noise) for k in sorted(halfway)]


def _setting(rule: Guidance) -> Guidance:
    """A rule without its transition."""
    return rule.model_copy(update={"transition": 0.0, "sigma": 0.0})


def _moved(rule: Guidance, transition: float, noise: NoiseSchedule) -> Guidance:
    return rule.model_copy(update={"transition": transition, "sigma": float(noise.sigma(transition))})
