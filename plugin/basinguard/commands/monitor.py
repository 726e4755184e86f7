"""`basinguard monitor EXPORT --data DIR --samples DIR`: does the promise still hold in use?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..similarity.copy_detector_settings import RECORDED, CopyDetectorSettings

if TYPE_CHECKING:
    from ..core.gate import Gate
    from ..sessions.monitoring import Watch


def monitor(
    export: Path,
    *,
    data: Path,
    samples: Path,
    alpha: float = 0.0,
    delta: float = 0.0,
    calibration: Path | None = None,
    state: Path = Path("monitor.json"),
    manifest: str = "",
    detector: CopyDetectorSettings = RECORDED,
    gate: bool = False,
) -> Watch:
    """Judges what a deployment has drawn, with a bound on the risk that may be looked at after every sample.

    Args:
        export: a directory that basinguard exported: its record says what was promised, and what is a copy.
        data: the training images.
        samples: folder of pictures that were drawn in use, in the order of their names; each is judged once, by its
            content, whenever the command is run again.
        alpha: risk that is allowed; the record's when 0.
        delta: chance that a statement is ever wrong; the record's when 0.
        calibration: verification.json of `basinguard verify`: tell whether the samples are like those; by default like
            those that the promise was measured on, where the record holds them.
        state: file that remembers what was judged.
        manifest: a curated manifest of the training images, if that says which of the folder they are.
        detector: what decides that a sample is a copy: by default the one that the record names.
        gate: end with status 3 where the risk is proven to be above alpha, after one line of JSON.

    Raises:
        FileNotFoundError: no record in the export, or no such folder.
        ValueError: pictures that cannot be read, or a state of another export or copy detector.
    """
    from ..sessions.monitoring import watch_samples

    return watch_samples(
        export, data, samples, terms=(alpha, delta), detector=detector, manifest=manifest, calibration=calibration,
        state=state,
    )  # fmt: skip


def gate_of(watch: Watch, arguments: dict[str, Any]) -> Gate:
    """Whether a deployment may go on: until its own samples refute the promise."""
    from ..core.gate import Gate

    reading = watch.reading
    return Gate("monitor", reading.risk, reading.alpha, "samples in use", passed=not reading.breached)
