"""What sampling a model takes on this machine, from one batch that is timed; nothing is measured of the model."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from ..attacks.options import AttackOptions
from ..calibration.certification import Certification
from ..calibration.lessons import truth_of
from ..calibration.terms import CalibrationTerms
from ..mitigations.price import comparison_price
from ..mitigations.registry import by_name
from ..mitigations.settings import ComparisonOptions
from ..mitigations.testbed import load_testbed
from ..pipelines.distillation import fitting_terms
from ..pipelines.families.registry import family_of
from ..pipelines.timing import seconds_per_evaluation
from ..similarity.copy_detector_settings import CopyDetectorSettings
from ..similarity.rulers import feature_sets
from .attack import attack_evaluations
from .calibration import require_change_to_filter, weights_of
from .session import Session
from .verification import SHOWN_HELDOUT
from .verification_options import VerificationOptions

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
            f"({self.seconds:.2g} s an evaluation, timed here; a factor of two either way)\n"
            f"memory: {self.memory / GB:.1f} GB so far\n"
            "dry run: the model was opened, nothing was measured or written"
        )


def dry_run(session: Session, work: str, evaluations: int) -> DryRun:
    """The price of so many evaluations with an open model."""
    pipe, rows, side = session.pipe, session.guard.plan.chunk, session.model.resolution
    second = seconds_per_evaluation(pipe, rows=rows, resolution=side, device=family_of(pipe).denoiser(pipe).device)
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


def verification_dry_run(session: Session, sampled: VerificationOptions, *, rules: int, prompts: int) -> DryRun:
    """The price of a verification: base, plain CFG and each rule on every caption, and a rule on other prompts.

    Args:
        session: the export.
        sampled: what, and how often.
        rules: how many are compared.
        prompts: how many there are that were not trained on; a few are also drawn by every way of sampling.
    """
    captions, each = len(session.guard.training.captions), sampled.per_caption
    samples = (2 + rules) * (captions * each + min(prompts, SHOWN_HELDOUT))
    samples += (captions * sampled.paraphrase + prompts) * each
    evaluations = 2 * session.guard.plan.timesteps * samples
    return dry_run(session, f"sampling {samples:,} pictures: {evaluations:,} evaluations of the network", evaluations)


def comparison_dry_run(model: str, data: Path, options: ComparisonOptions, detector: CopyDetectorSettings) -> DryRun:
    """The price of a comparison of mitigations; see `commands.compare`."""
    testbed, _ = load_testbed(model, data, options, detector)
    price = comparison_price(testbed, by_name(options.names), options)
    return DryRun(str(price), price.evaluations, price.seconds, peak_memory())


def _certification(session: Session, terms: CalibrationTerms) -> Certification:
    require_change_to_filter(session, terms)
    truth = truth_of(session.guard.training, feature_sets())
    return Certification(session.guard, weights_of(session), fitting_terms(session.pipe, terms), truth)


def peak_memory() -> int:
    """Most bytes held so far: on the GPU where there is one, else by the process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
