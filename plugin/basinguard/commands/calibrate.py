"""`basinguard calibrate MODEL --data DIR`: what keeps a promise and most of what was taught."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..calibration.terms import CalibrationTerms
from ..pipelines.session_settings import SessionSettings
from ..similarity.copy_detector_settings import CopyDetectorSettings

if TYPE_CHECKING:
    from ..sessions.calibration import Calibration
    from ..sessions.dry_run import DryRun

TYPED = {"out": Path("calibration")}


def calibrate(
    model: str,
    *,
    data: Path,
    settings: SessionSettings = SessionSettings(),
    detector: CopyDetectorSettings = CopyDetectorSettings(),
    terms: CalibrationTerms = CalibrationTerms(),
    transfer: bool = False,
    dry_run: bool = False,
    out: Path | None = None,
) -> Calibration | DryRun:
    """Finds the strength, guidance scale and rule that keep a promise and most of what was taught; trains nothing.

    Args:
        model: a directory or hub id of a pipeline of a family that is read (see the README's table).
        data: folder of the captioned images it was trained on.
        settings: how the model is opened, sampled and scored.
        detector: what decides that a sample is a copy.
        terms: what is to be promised, and the products that may be chosen.
        transfer: also measure the product under other schedulers and step counts.
        dry_run: open the model, say what it would take on this machine, and measure nothing.
        out: new folder for record.json, calibration.json and plots; in Python nothing is written without it. A run
            that was stopped goes on in it: what it drew is kept there until it ends.

    Raises:
        FileExistsError: `out` holds a calibration already.
        FileNotFoundError: no such model or folder.
        ValueError: a number out of range, held-out images that cannot be used, a base that the model was not fine-tuned
            from, or too few pairs for any promise; says how many it takes.
    """
    from ..calibration.promise import require_provable

    require_provable(terms)  # before frameworks are loaded
    from ..sessions.calibration import (
        archive_of,
        calibrate_session,
        require_change_to_filter,
        require_lora_to_schedule,
        require_new_calibration,
    )
    from ..sessions.dry_run import calibration_dry_run
    from ..sessions.session import open_model

    require_new_calibration(out)
    session = open_model(model, data, settings, detector)
    require_lora_to_schedule(session, terms, transfer=transfer)
    require_change_to_filter(session, terms)
    if dry_run:
        return calibration_dry_run(session, terms)
    archive = archive_of(session, out)
    calibration = calibrate_session(session, terms, transfer=transfer, archive=archive)
    if out is not None:
        calibration.write(out)
        archive.clear()
    return calibration


def show(calibration: Calibration | DryRun, arguments: dict[str, Any]) -> None:
    """Prints the calibration, and how to ship it; or what it would take."""
    from ..pipelines.loading import family_at
    from ..sessions.dry_run import DryRun

    if isinstance(calibration, DryRun):
        print(calibration)
        return
    if getattr(calibration, "note", ""):  # no export ships it
        print(f"{calibration}\n\nwritten to {arguments['out']}")
        return
    model, out, lora = arguments["model"], arguments["out"], arguments["settings"].lora
    alone = calibration.record.product.strength_schedule is None  # else base, LoRA and the schedule's code go together
    as_file = lora is not None and alone and family_at(model).capabilities.comfyui  # else only diffusers opens it
    words = [model, out / "record.json", out / (f"{lora.stem}_guarded.safetensors" if as_file else "guarded")]
    words += ["--kind", "kohya"] if as_file else []
    words += [] if lora is None else ["--lora", lora]
    print(f"{calibration}\n\nwritten to {out}; ship it:\nbasinguard export {shlex.join(map(str, words))}")
