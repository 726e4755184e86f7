"""`basinguard demo`: the whole story on a small model, about a quarter of an hour on two CPU cores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..similarity.copy_detector_settings import CopyDetectorSettings
from ..tinyworld import model_directory

if TYPE_CHECKING:
    from ..sessions.demo_run import DemoRun


def demo(
    out: Path = Path("runs/demo"),
    epochs: int = 200,
    per_caption: int = 4,
    detector: CopyDetectorSettings = CopyDetectorSettings(threshold="heldout"),
    base: str = "tinyworld",
) -> DemoRun:
    """Tells the whole story on a small model: fine-tune, guard, calibrate, export, and prove it in a fresh process.

    Args:
        out: run directory.
        epochs: passes over the 24 drawings.
        per_caption: fresh seeds for each caption in the final table.
        detector: what decides that a sample is a copy. Ink drawings are more alike than most pictures: of 240 fresh
            drawings of the training captions 5 % lie above the published threshold, so the threshold is measured on
            the 48 held-out drawings.
        base: which packaged model learns to draw: "tinyworld" (Stable Diffusion's classes), "tinyworld-xl" (SDXL's) or
            "tinyworld-flow" (SD 3's).

    Raises:
        ValueError: no such packaged model.
    """
    model_directory(base)  # refuses another name before anything is loaded
    from ..sessions.demo_run import run_demo

    print(f"teaching {base} to draw in ink, the guard watching: tensorboard --logdir {out}")
    return run_demo(out, epochs, per_caption, detector, base)
