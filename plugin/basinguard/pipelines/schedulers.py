"""The diffusers schedulers this package knows: those a probe can follow, and those a calibrated rule is tried under.

A scheduler to probe with needs a solver of the same name in `diffusion.solvers` and a line in `PROBED`; one to measure
a rule under needs a line in `SCHEDULERS`. The grids of ComfyUI and A1111 are in `exports.sampler_grids`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from diffusers.schedulers import KarrasDiffusionSchedulers

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

DIFFUSION = tuple(kind.name for kind in KarrasDiffusionSchedulers)
# class -> our solver, and the settings that would make it another sampler; the solvers are in `diffusion.solvers`
PROBED: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIMScheduler": ("ddim", {}),
    "EulerDiscreteScheduler": ("euler", {"use_karras_sigmas": False, "use_exponential_sigmas": False}),
    "HeunDiscreteScheduler": ("heun", {"use_karras_sigmas": False, "use_exponential_sigmas": False}),
    "DPMSolverMultistepScheduler": (
        "dpm++2m",
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "use_karras_sigmas": False},
    ),
    "PNDMScheduler": ("pndm", {"skip_prk_steps": True}),
}
SCHEDULERS: Mapping[str, tuple[Any, Mapping[str, Any]]] = {
    "DDIM": (DDIMScheduler, {}),
    "Euler": (EulerDiscreteScheduler, {}),
    "DPM-Solver++ 2M": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "DPM-Solver++ 2M, Karras sigmas": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": True},
    ),
}


def require_scheduler(name: str) -> str:
    """Refuses a scheduler that Stable Diffusion cannot be sampled with; returns the name.

    Raises:
        ValueError: the name is unknown; the accepted ones are listed.

    Example:
        >>> require_scheduler("DDIMScheduler")
        'DDIMScheduler'
    """
    if name not in DIFFUSION:
        raise ValueError(f"unknown scheduler {name!r}; accepted: {', '.join(DIFFUSION)}")
    return name


def solver_of(scheduler: Any) -> str:
    """Our name for a diffusers scheduler, for `ProbePlan(solver=...)`.

    Raises:
        ValueError: a scheduler whose trajectories cannot be branched, or one with settings that make it another
            sampler; says which are accepted.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> solver_of(DDIMScheduler())
        'ddim'
    """
    kind = type(scheduler).__name__
    name, needed = PROBED.get(kind, ("", {}))
    wrong = {k: scheduler.config.get(k) for k, v in needed.items() if scheduler.config.get(k, v) not in (v, None)}
    if not name or wrong:
        changed = f" with {wrong}" if wrong else ""
        raise ValueError(
            f"{kind}{changed} cannot be probed: its trajectories cannot be branched exactly. Accepted: "
            f"{', '.join(PROBED)} with their usual settings; probe with one of them, ProbePlan(solver='ddim')"
        )
    return name


@contextmanager
def scheduler_of(pipe: DiffusionPipeline, name: str) -> Iterator[None]:
    """Inside, `pipe` samples by another scheduler, with the noise schedule of its own."""
    kind, options = SCHEDULERS[name]
    own = pipe.scheduler
    pipe.scheduler = kind.from_config(own.config, **options)
    try:
        yield
    finally:
        pipe.scheduler = own


def first_guided(scheduler: Any, transition: float) -> tuple[float, float] | tuple[None, None]:
    """The first timestep at or below `transition` on the grid the scheduler has just used, and its noise level."""
    guided = [float(t) for t in scheduler.timesteps if float(t) <= transition]
    if not guided:
        return None, None
    signal = float(scheduler.alphas_cumprod[round(guided[0])])
    return guided[0], ((1 - signal) / max(signal, 1e-12)) ** 0.5
