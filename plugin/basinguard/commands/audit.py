"""`basinguard audit MODEL --data DIR`: does it copy, which images, and what would make it safe?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..calibration.terms import CalibrationTerms
from ..pipelines.session_settings import SessionSettings
from ..similarity.copy_detector_settings import CopyDetectorSettings

if TYPE_CHECKING:
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
        out: new folder for audit.html, audit.json and the calibration; in Python nothing is written without it.

    Raises:
        FileExistsError: `out` holds an audit already.
        FileNotFoundError: no such model or folder.
        ValueError: a number out of range, or too few pairs for any promise.
    """
    from ..sessions.audit import audit_session, require_new
    from ..sessions.calibration import calibrate_session, require_promisable
    from ..sessions.session import open_model

    if per_caption < 1:
        raise ValueError(f"per_caption={per_caption}: expected at least 1")
    require_promisable(terms, out)
    require_new(out)
    session = open_model(model, data, settings, detector)
    calibration = calibrate_session(session, terms)
    result = audit_session(model, session, calibration, per_caption)
    if out is not None:
        result.write(out)
    return result


def show(result: AuditRun, arguments: dict[str, Any]) -> None:
    """Prints the findings, and where the page is."""
    print(f"{result}\n\nthe page with pictures and plots: {arguments['out'] / 'audit.html'}")
