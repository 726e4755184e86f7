"""How much a probe measures; read by the command line, so nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..diffusion.sampling_options import SamplingOptions
from ..diffusion.solvers import SOLVERS
from .budget import Budget

Autocast = Literal["bfloat16", "float16"]


@dataclass(frozen=True)
class ProbePlan(SamplingOptions):
    """How much to measure at each epoch, and how it is sampled: see `SamplingOptions`.

    Attributes:
        captions: how many training captions to sample: spread evenly over the set, or as many as the budget pays for,
            in turns.
        seeds: samples for each of them.
        alpha: risk, in (0, 1), that plain CFG may reach and that the estimated transition may leave: what verdicts,
            forecasts and the epochs to ship go by. A probe's few samples promise nothing: that is
            `CalibrationTerms.alpha`, which an export is calibrated to and which may be stricter.
        chunk: most rows at once.
        budget: what every probe may cost: a share of the time trained since the one before ("5%") or a number of UNet
            evaluations; no limit when None. The base model's probe is not counted.
        budget_timesteps: sampling timesteps where a budget pays for samples without exits; `timesteps` when None. Fewer
            buy more samples, and the risk is then that of so many timesteps: take fewer only where both were seen to
            find the same copies (`recipes/studies/probe_timesteps.py`).
        solver: the sampler, one of `solvers.SOLVERS`.
        critical_scales: how many training (and held-out) images get theirs measured, up to 320 evaluations each;
            where a budget cannot pay for them after all else, they are left out.
        order_checks: candidates tried beyond each search, to see whether outcomes are ordered.
        taught: also measure what was taught (0 the base model, 1 true images), on held-out prompts or their stand-ins;
            within a budget where that takes no more than a third of what the gap leaves.
        autocast: type that probes and the calibration run in, under torch's autocast: "bfloat16", "float16", or None
            for the modules' own.
    """

    captions: int = 16
    seeds: int = 2
    alpha: float = 0.1
    chunk: int = 64
    budget: str | int | None = None
    budget_timesteps: int | None = None
    solver: str = "ddim"
    critical_scales: int = 0
    order_checks: int = 0
    taught: bool = True
    autocast: Autocast | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("captions", "seeds", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"ProbePlan({name}={getattr(self, name)}): expected at least 1")
        for name in ("critical_scales", "order_checks"):
            if getattr(self, name) < 0:
                raise ValueError(f"ProbePlan({name}={getattr(self, name)}): expected 0 or more")
        if self.budget_timesteps is not None and not 1 <= self.budget_timesteps <= self.timesteps:
            raise ValueError(
                f"ProbePlan(budget_timesteps={self.budget_timesteps}): expected None or 1 to {self.timesteps}"
            )
        if not 0 < self.alpha < 1:
            raise ValueError(f"ProbePlan(alpha={self.alpha}): expected a share in (0, 1)")
        if self.solver not in SOLVERS:
            raise ValueError(f"ProbePlan(solver={self.solver!r}): expected one of {', '.join(SOLVERS)}")
        if self.autocast not in (None, *get_args(Autocast)):
            raise ValueError(f"ProbePlan(autocast={self.autocast!r}): expected {', '.join(get_args(Autocast))} or None")
        Budget.parse(self.budget)
