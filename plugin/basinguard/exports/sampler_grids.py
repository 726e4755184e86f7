"""The noise levels that ComfyUI and A1111 visit, and how many of them lie above a transition.

Both assume Stable Diffusion's own noise schedule; a model with another one cannot be sampled there at all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.record import Guidance
from ..diffusion.toy import stable_diffusion_schedule

Grid = NDArray[np.float64]
LAST = 999
SLACK = 0.02  # share by which a record's noise level may differ from Stable Diffusion's at the same timestep


@cache
def _log_sigmas() -> Grid:
    return np.log(stable_diffusion_schedule().sigma(torch.arange(LAST + 1)).numpy())


def _range() -> tuple[float, float]:
    """The lowest and highest noise level."""
    return float(np.exp(_log_sigmas()[0])), float(np.exp(_log_sigmas()[-1]))


def _karras(steps: int) -> Grid:
    """Source: Karras et al., arXiv 2206.00364, eq. 5 with rho = 7."""
    low, high = _range()
    return np.linspace(high ** (1 / 7), low ** (1 / 7), steps) ** 7


def _exponential(steps: int) -> Grid:
    low, high = _range()
    return np.geomspace(high, low, steps)


def _kl_optimal(steps: int) -> Grid:
    """Source: Sabour et al., arXiv 2404.14507, eq. 17."""
    low, high = _range()
    return np.tan(np.linspace(np.arctan(high), np.arctan(low), steps))


TIMESTEPS: dict[str, Callable[[int], Grid]] = {
    "simple": lambda steps: LAST - np.floor(np.arange(steps) * (1000 / steps)),
    "normal": lambda steps: np.linspace(LAST, 0, steps),
    "sgm_uniform": lambda steps: np.linspace(LAST, 0, steps + 1)[:-1],
    "ddim_uniform": lambda steps: np.arange(1.0, 1000, max(1000 // steps, 1))[::-1],
}
SIGMAS: dict[str, Callable[[int], Grid]] = {
    "karras": _karras, "exponential": _exponential, "kl_optimal": _kl_optimal,
}  # fmt: skip
SCHEDULERS = (*TIMESTEPS, *SIGMAS)
NOT_COVERED = ("beta", "linear_quadratic")  # of ComfyUI 0.3.64


def grid(scheduler: str, steps: int) -> Grid:
    """Timesteps that a ComfyUI scheduler visits, descending; fractions where it goes by noise level.

    Example:
        >>> grid("simple", 4).tolist()
        [999.0, 749.0, 499.0, 249.0]

    Raises:
        ValueError: a scheduler that is not covered, or steps out of range.

    Source: ComfyUI, comfy/samplers.py (`calculate_sigmas`); A1111's modules/sd_schedulers.py has the same.
    """
    if scheduler not in SCHEDULERS:
        raise ValueError(
            f"scheduler {scheduler!r} is not covered; covered: {', '.join(SCHEDULERS)} (not: {', '.join(NOT_COVERED)}; "
            "ComfyUI's basinguard node takes any)"
        )
    if not 1 <= steps <= 1000:
        raise ValueError(f"{steps} sampling steps given, expected 1 to 1000")
    if scheduler in TIMESTEPS:
        return TIMESTEPS[scheduler](steps)
    return np.interp(np.log(SIGMAS[scheduler](steps)), _log_sigmas(), np.arange(LAST + 1.0))


def steps_before(rule: Guidance, scheduler: str, steps: int) -> int:
    """How many sampling steps lie above the transition.

    By noise level, not by timesteps that were rounded on the way, where the scheduler itself goes by noise level.

    Args:
        rule: with the transition and its noise level.
        scheduler: ComfyUI's name.
        steps: of the sampler.
    """
    visited = grid(scheduler, steps)
    above = SIGMAS[scheduler](steps) > rule.sigma if scheduler in SIGMAS else visited > rule.transition
    return int(above.sum())


def is_plain(rule: Guidance) -> bool:
    """Whether no timestep lies above the transition, so that the rule is CFG from the first one on."""
    return rule.plain or rule.transition >= LAST


def fits(rule: Guidance) -> bool:
    """Whether the record's noise level is the one that ComfyUI and A1111 have at its transition."""
    sigma = float(np.exp(_log_sigmas()[round(rule.transition)]))
    return abs(sigma - rule.sigma) <= SLACK * sigma


def has_its_schedule(signal_power: Tensor) -> bool:
    """Whether a model's noise schedule is Stable Diffusion's own.

    Args:
        signal_power: `alphas_cumprod` of its scheduler, [T].
    """
    own = stable_diffusion_schedule().signal(torch.arange(LAST + 1)).double() ** 2
    given = signal_power.double().cpu()
    return given.shape == own.shape and bool(torch.allclose(given, own, rtol=SLACK, atol=1e-4))


def no_schedule(rule: Guidance) -> str:
    """Why this model cannot be sampled in ComfyUI or A1111."""
    return (
        f"not possible: noise level {rule.sigma:.3g} at timestep {rule.transition:g} is not on Stable Diffusion's "
        "schedule, the only one those tools have"
    )


def require_two_scales(rule: Guidance) -> None:
    """Refuses what those tools cannot do with two scales and one transition.

    Raises:
        ValueError: says why.
    """
    if not fits(rule):
        raise ValueError(no_schedule(rule))
    if rule.anchor:
        raise ValueError("not possible: the rule takes its unconditional branch from the base model (anchor)")
