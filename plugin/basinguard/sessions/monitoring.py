"""A folder of generated pictures watched over its life: each is judged once, and the count goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..attacks.monitor import Monitor, Reading, incomparable
from ..core.files import file_sha256, write_text
from ..core.images import load_rgb
from ..core.record import Record, read_record
from ..core.schema import Finite, Schema
from ..exports.layout import RECORD_FILE
from ..pipelines.evaluation import Evaluation
from ..similarity.copy_detector import CopyDetector
from ..similarity.copy_detector_settings import CopyDetectorSettings
from ..similarity.detector_loading import load_recorded
from ..similarity.image_files import image_paths
from ..training.cropping import fitted
from ..training.data import ImageFolder
from .verification import GUARDED

MOST_STATE = 256 * 2**20  # bytes of a state: about a million samples


class MonitorState(Schema):
    """What a monitor remembers: each sample's content hash and similarity, in the order they were judged.

    Attributes:
        weights_sha256: of the export that was watched.
        embedder, threshold: of the copy detector that judged.
        sha256: of each sample's file.
        similarities: of each to its nearest training image.
    """

    weights_sha256: str
    embedder: str
    threshold: Finite
    sha256: tuple[str, ...] = ()
    similarities: tuple[Finite, ...] = ()


@dataclass(frozen=True)
class Watch:
    """One look at a folder of samples.

    Attributes:
        reading: what all samples so far show.
        new: how many were judged now.
        compared: with what they are compared for being alike, or why with nothing.
        path: where the state went.
    """

    reading: Reading
    new: int
    compared: str
    path: Path

    def __str__(self) -> str:
        return f"{self.new} new samples. {self.reading}\n{self.compared}\n\nremembered in {self.path}"


def watch_samples(
    export: Path,
    data: Path,
    samples: Path,
    *,
    terms: tuple[float, float],
    detector: CopyDetectorSettings,
    manifest: str,
    calibration: Path | None,
    state: Path,
) -> Watch:
    """Judges what is new in a folder of samples; see `commands.monitor`."""
    record = read_record(export / RECORD_FILE)
    judge = detector_of(record, data, detector, manifest)
    before = read_state(state, record, judge)
    monitor, compared = monitor_of(record, judge, calibration, *terms)
    monitor.see_similarities(before.similarities)
    judged = set(before.sha256)
    new = [(path, digest) for path in image_paths(samples) if (digest := file_sha256(path)) not in judged]
    side = record.sampler.resolution
    fresh = [m.similarity for path, _ in new for m in judge.matches(fitted(load_rgb(path), side)[None])]
    monitor.see_similarities(fresh)
    after = before.model_copy(
        update={
            "sha256": (*before.sha256, *(digest for _, digest in new)),
            "similarities": (*before.similarities, *fresh),
        }
    )
    write_text(state, after.to_json() + "\n")
    return Watch(monitor.reading(), len(new), compared, state)


def monitor_of(
    record: Record, judge: CopyDetector, calibration: Path | None, alpha: float, delta: float
) -> tuple[Monitor, str]:
    """The monitor, and with what it compares samples: a verification that is given, else the record's own proof."""
    if calibration is not None:
        given = similarities_of(calibration)
        monitor = Monitor(judge, alpha or record.alpha, delta or record.delta, given)
        return monitor, f"compared with {len(given)} samples of {calibration}"
    monitor = Monitor.of_record(record, judge, alpha, delta)
    if why := incomparable(record, judge):
        return monitor, f"not compared with the samples of the promise: {why}; `--calibration verification.json` does"
    return monitor, f"compared with {len(record.similarities)} samples that the promise was measured on"


def detector_of(record: Record, data: Path, settings: CopyDetectorSettings, manifest: str = "") -> CopyDetector:
    """The copy detector of a record on its training images."""
    images = ImageFolder(str(data), manifest=manifest or None, resolution=record.sampler.resolution)
    images.setup("open")
    captions = [caption for _, caption in images.items]
    return CopyDetector(images.all_pixels(), captions, load_recorded(settings, record.metric))


def read_state(path: Path, record: Record, judge: CopyDetector) -> MonitorState:
    """What was remembered, or nothing yet.

    Raises:
        ValueError: it is of another export or copy detector, or no state at all.
    """
    metric = judge.embedder.metric
    own = MonitorState(weights_sha256=record.weights_sha256, embedder=metric.embedder, threshold=metric.threshold)
    if not path.exists():
        return own
    try:
        before = MonitorState.from_json(path.read_bytes(), most=MOST_STATE)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if (before.weights_sha256, before.embedder, before.threshold) != (
        own.weights_sha256, own.embedder, own.threshold,
    ):  # fmt: skip
        raise ValueError(
            f"{path}: it remembers another export or copy detector ({before.weights_sha256[:12]}..., "
            f"{before.embedder} {before.threshold:g}); name another file with --state"
        )
    return before


def similarities_of(verification: Path) -> Sequence[float]:
    """Similarities of the guarded row of a `verification.json`.

    Raises:
        ValueError: no such row, or one without similarities.
    """
    try:
        row = Evaluation.from_json(json.dumps(json.loads(verification.read_text("utf-8"))[GUARDED]))
    except (ValueError, KeyError, TypeError):
        row = None
    if row is None or not row.similarities:
        raise ValueError(
            f"{verification}: no similarities of the guarded samples in it; expected the verification.json that "
            "`basinguard verify` of this version writes"
        )
    return row.similarities
