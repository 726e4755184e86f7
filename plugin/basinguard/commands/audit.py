"""`basinguard audit MODEL --data DIR`: does it copy, which images, and what would make it safe?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..calibration.terms import CalibrationTerms
from ..pipelines.session_settings import SessionSettings
from ..similarity.copy_detector_settings import CopyDetectorSettings

if TYPE_CHECKING:
    from ..core.gate import Gate
    from ..sessions.audit import AuditRun

TYPED = {"out": Path("audit")}


def audit(
    model: str,
    *,
    data: Path,
    settings: SessionSettings = SessionSettings(),
    detector: CopyDetectorSettings = CopyDetectorSettings(),
    terms: CalibrationTerms = CalibrationTerms(),
    per_caption: int = 4,
    attack: Literal["none", "quick", "full"] = "none",
    attack_budget: int = 0,
    gate: bool = False,
    out: Path | None = None,
) -> AuditRun:
    """Does this model copy these images, which ones, and what would make it safe? Trains nothing.

    Args:
        model: a directory or hub id of a Stable Diffusion pipeline.
        data: folder of the captioned images it was trained on.
        settings: how the model is opened, sampled and scored.
        detector: what decides that a sample is a copy.
        terms: of the promise that would make it safe.
        per_caption: samples of each caption that are searched for copies.
        attack: also try to get the images out of the base model, of this one and of what would ship: "quick" tries
            every family of attacks, "full" every setting with four times the samples. An export is attacked by its own
            record, which goes to attacked.json with the table.
        attack_budget: most UNet evaluations of that; 0 for as many as it takes.
        gate: end with status 3 unless the upper bound of this model's risk under plain CFG is at most alpha, after one
            line of JSON.
        out: new folder for audit.html, audit.json and the calibration; in Python nothing is written without it.

    Raises:
        FileExistsError: `out` holds an audit already.
        FileNotFoundError: no such model or folder.
        ValueError: a number out of range, too few pairs for any promise, a budget too small for any attack, a base
            that the model was not fine-tuned from, or a gate that could never pass.
    """
    from ..attacks.plan import AttackPlan
    from ..core.gate import require_passable
    from ..sessions.audit import audit_session, require_new
    from ..sessions.calibration import calibrate_session, require_promisable
    from ..sessions.session import open_model

    if per_caption < 1:
        raise ValueError(f"per_caption={per_caption}: expected at least 1")
    plan = None if attack == "none" else AttackPlan(attack, attack_budget)
    require_promisable(terms, out)
    require_new(out)
    session = open_model(model, data, settings, detector)
    if gate:
        require_passable(per_caption * len(session.guard.training.captions), terms.alpha)
    calibration = calibrate_session(session, terms)
    result = audit_session(model, session, calibration, per_caption, plan)
    if out is not None:
        result.write(out)
    return result


def show(result: AuditRun, arguments: dict[str, Any]) -> None:
    """Prints the findings, and where the page is."""
    print(f"{result}\n\nthe page with pictures and plots: {arguments['out'] / 'audit.html'}")


def gate_of(result: AuditRun, arguments: dict[str, Any]) -> Gate:
    """Whether a build may go on with this model."""
    from ..core.gate import Gate

    return Gate("audit", result.audit.plain, arguments["terms"].alpha, "this model, plain CFG")
