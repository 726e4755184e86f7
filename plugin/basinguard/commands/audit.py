"""`basinguard audit MODEL --data DIR`: does it copy, which images, and what would make it safe?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..attacks.options import AttackOptions
from ..calibration.terms import CalibrationTerms
from ..pipelines.session_settings import SessionSettings
from ..similarity.copy_detector_settings import CopyDetectorSettings

if TYPE_CHECKING:
    from ..core.gate import Gate
    from ..sessions.audit import AuditRun
    from ..sessions.dry_run import DryRun

TYPED = {"out": Path("audit")}


def audit(
    model: str,
    *,
    data: Path,
    settings: SessionSettings = SessionSettings(),
    detector: CopyDetectorSettings = CopyDetectorSettings(),
    terms: CalibrationTerms = CalibrationTerms(),
    per_caption: int = 4,
    attacks: AttackOptions = AttackOptions(),
    gate: bool = False,
    dry_run: bool = False,
    out: Path | None = None,
) -> AuditRun | DryRun:
    """Does this model copy these images, which ones, and what would make it safe? Trains nothing.

    Args:
        model: a directory or hub id of a pipeline of a family that is read (see the README's table).
        data: folder of the captioned images it was trained on.
        settings: how the model is opened, sampled and scored.
        detector: what decides that a sample is a copy.
        terms: of the promise that would make it safe.
        per_caption: samples of each caption that are searched for copies.
        attacks: what is tried to get the images out, or to tell which were trained on.
        gate: end with status 3 unless the upper bound of this model's risk under plain CFG is at most alpha, after one
            line of JSON.
        dry_run: open the model, say what it would take on this machine, and measure nothing.
        out: new folder for audit.html, audit.json and the calibration; in Python nothing is written without it. A run
            that was stopped goes on in it, with the samples of its calibration.

    Raises:
        FileExistsError: `out` holds an audit already.
        FileNotFoundError: no such model or folder.
        ValueError: a number out of range, too few pairs for any promise, a budget too small for any attack, a base
            that the model was not fine-tuned from, no held-out images for membership, or a gate that could never pass.
    """
    from ..calibration.promise import require_provable
    from ..core.gate import require_passable

    if per_caption < 1:
        raise ValueError(f"per_caption={per_caption}: expected at least 1")
    require_provable(terms)  # before frameworks are loaded
    from ..sessions.attack import require_attackable
    from ..sessions.audit import audit_session, require_new
    from ..sessions.calibration import archive_of, calibrate_session, require_new_calibration
    from ..sessions.dry_run import audit_dry_run
    from ..sessions.session import open_model

    require_new_calibration(out)
    require_new(out)
    session = open_model(model, data, settings, detector)
    if gate:
        require_passable(per_caption * len(session.guard.training.captions), terms.alpha)
    require_attackable(session, attacks)
    if dry_run:
        return audit_dry_run(session, terms, per_caption, attacks)
    archive = archive_of(session, out)
    calibration = calibrate_session(session, terms, archive=archive)
    name = model if settings.lora is None else f"{model} with {settings.lora.name}"
    result = audit_session(name, session, calibration, per_caption, attacks)
    if out is not None:
        result.write(out)
        archive.clear()
    return result


def show(result: AuditRun | DryRun, arguments: dict[str, Any]) -> None:
    """Prints the findings, and where the page is; or what it would take."""
    page = (
        "" if arguments.get("dry_run") else f"\n\nthe page with pictures and plots: {arguments['out'] / 'audit.html'}"
    )
    print(f"{result}{page}")


def gate_of(result: AuditRun, arguments: dict[str, Any]) -> Gate:
    """Whether a build may go on with this model."""
    from ..core.gate import Gate

    return Gate("audit", result.audit.plain, arguments["terms"].alpha, "this model, plain CFG")
