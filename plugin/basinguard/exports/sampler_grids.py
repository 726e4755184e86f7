"""The timesteps that ComfyUI and A1111 visit, and how many of them lie above a transition.

Both assume Stable Diffusion's own noise schedule; a model with another one cannot be sampled there at all.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.record import Guidance
from ..diffusion.toy import stable_diffusion_schedule

Grid = NDArray[np.float64]
LAST = 999
SLACK = 0.02  # share by which a record's noise level may differ from Stable Diffusion's at the same timestep


def _log_sigmas() -> Grid:
    return np.log(stable_diffusion_schedule().sigma(torch.arange(LAST + 1)).numpy())


def _karras(steps: int) -> Grid:
    """Source: Karras et al., arXiv 2206.00364, eq. 5 with rho = 7."""
    table = _log_sigmas()
    low, high = np.exp(table[0] / 7), np.exp(table[-1] / 7)
    return np.interp(7 * np.log(np.linspace(high, low, steps)), table, np.arange(LAST + 1.0))


GRIDS: dict[str, Callable[[int], Grid]] = {
    "simple": lambda steps: LAST - np.floor(np.arange(steps) * (1000 / steps)),
    "normal": lambda steps: np.linspace(LAST, 0, steps),
    "sgm_uniform": lambda steps: np.linspace(LAST, 0, steps + 1)[:-1],
    "ddim_uniform": lambda steps: np.arange(1.0, 1000, max(1000 // steps, 1))[::-1],
    "karras": _karras,
}


def grid(scheduler: str, steps: int) -> Grid:
    """Timesteps that a ComfyUI scheduler visits, descending.

    Example:
        >>> grid("simple", 4).tolist()
        [999.0, 749.0, 499.0, 249.0]

    Source: ComfyUI, comfy/samplers.py (`calculate_sigmas`); A1111's modules/sd_schedulers.py has the same.
    """
    if scheduler not in GRIDS:
        raise ValueError(f"scheduler {scheduler!r} is unknown; known: {', '.join(GRIDS)}")
    if not 1 <= steps <= 1000:
        raise ValueError(f"{steps} sampling steps given, expected 1 to 1000")
    return GRIDS[scheduler](steps)


def steps_before(rule: Guidance, scheduler: str, steps: int) -> int:
    """How many sampling steps lie above the transition."""
    return int((grid(scheduler, steps) > rule.transition).sum())


def fits(rule: Guidance) -> bool:
    """Whether the record's noise level is the one that ComfyUI and A1111 have at its transition."""
    sigma = float(np.exp(_log_sigmas()[round(rule.transition)]))
    return abs(sigma - rule.sigma) <= SLACK * sigma


def no_schedule(rule: Guidance) -> str:
    """Why this model cannot be sampled in ComfyUI or A1111."""
    return (
        f"not possible: noise level {rule.sigma:.3g} at timestep {rule.transition:g} is not on Stable Diffusion's "
        "schedule, the only one those tools have"
    )
