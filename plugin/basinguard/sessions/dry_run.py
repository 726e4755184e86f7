"""What sampling a model takes on this machine, from one batch that is timed; nothing is measured of the model."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass

import torch

from ..attacks.options import AttackOptions
from ..calibration.certification import Certification
from ..calibration.lessons import truth_of
from ..calibration.terms import CalibrationTerms
from ..pipelines.timing import seconds_per_evaluation
from ..similarity.rulers import feature_sets
from .attack import attack_evaluations
from .calibration import weights_of
from .session import Session

GB = 1e9


@dataclass(frozen=True)
class DryRun:
    """What a command would take.

    Attributes:
        work: in words.
        evaluations: of the network, at most.
        seconds: of one evaluation on this machine.
        memory: bytes that this process held at most while it was timed.
    """

    work: str
    evaluations: int
    seconds: float
    memory: int

    def __str__(self) -> str:
        hours, minutes = divmod(round(self.evaluations * self.seconds / 60), 60)
        return (
            f"{self.work}\n"
            f"time: at most {f'{hours} h ' if hours else ''}{max(1, minutes) if not hours else minutes} min "
            f"({self.seconds:.2g} s an evaluation, from one batch timed here; a factor of two either way)\n"
            f"memory: {self.memory / GB:.1f} GB with one batch\n"
            "dry run: the model was opened, nothing was measured or written"
        )


def dry_run(session: Session, work: str, evaluations: int) -> DryRun:
    """The price of so many evaluations with an open model."""
    pipe, rows, side = session.pipe, session.guard.plan.chunk, session.model.resolution
    second = seconds_per_evaluation(pipe, rows=rows, resolution=side, device=pipe.unet.device)
    return DryRun(work, evaluations, second, peak_memory())


def calibration_dry_run(session: Session, terms: CalibrationTerms) -> DryRun:
    """The price of a calibration."""
    cost = _certification(session, terms).cost()
    return dry_run(session, str(cost), cost.evaluations)


def audit_dry_run(session: Session, terms: CalibrationTerms, per_caption: int, options: AttackOptions) -> DryRun:
    """The price of an audit: its calibration, each caption's samples, without guidance and of the base, its attacks."""
    certification = _certification(session, terms)
    cost, samples = certification.cost(), per_caption * len(session.guard.training.captions)
    audited = samples * certification.evals_per_sample * (3 if session.provenance.base else 2)
    parts = {f"for {samples} audited samples": audited, **attack_evaluations(session, options)}
    work = "".join(f"; and {evaluations:,} {what}" for what, evaluations in parts.items())
    return dry_run(session, f"{cost}{work}", cost.evaluations + sum(parts.values()))


def _certification(session: Session, terms: CalibrationTerms) -> Certification:
    truth = truth_of(session.guard.training, feature_sets())
    return Certification(session.guard, weights_of(session), terms, truth)


def peak_memory() -> int:
    """Most bytes held so far: on the GPU where there is one, else by the process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
