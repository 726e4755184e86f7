"""What a training run left behind about each image: how often samples of its caption brought it back.

Two kinds of run can be read: what `basinguard audit --out` wrote, where every caption was sampled; and a guarded run or
export, whose record holds what the guard saw of the captions that it sampled, the newest of each.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..core.estimate import Estimate
from ..core.record import read_record
from ..core.report import Report
from ..core.stats import clopper_pearson
from ..core.text import printable
from .folder import Item

AUDIT = "audit.json"
RECORDS = ("basinguard.json", "export/basinguard.json")
MOST_BYTES = 64 * 2**20

Counts = dict[int, tuple[int, int]]  # by image: samples that reproduced it, samples


@dataclass(frozen=True)
class Evidence:
    """What a run says about the images of a folder.

    Attributes:
        risks: for each file name, the share of samples of its caption that reproduced its picture.
        source: where that was read, and how many captions were sampled.
    """

    risks: dict[str, Estimate]
    source: str


def read_run(run: Path, items: Sequence[Item]) -> Evidence:
    """Reads how much a run memorized of each image.

    Args:
        run: a folder that holds audit.json, or basinguard.json with a history (an export, or a run with `export/`).
        items: the images that were trained on, in the order of their file names.

    Returns:
        Evidence for the images that were sampled; copies of one picture under one caption share theirs.

    Raises:
        FileNotFoundError: no such folder, or nothing in it that a run leaves behind.
        ValueError: what is there does not parse, has no samples, or is about other images.
    """
    trained = [item for item in items if item.caption]
    if (run / AUDIT).is_file():
        counts, source = _audited(run / AUDIT, trained), AUDIT
    else:
        path = next((run / name for name in RECORDS if (run / name).is_file()), None)
        if path is None:
            names = ", ".join((AUDIT, *RECORDS))
            raise FileNotFoundError(f"{printable(str(run))}: holds none of {names}; give a guarded run or an audit")
        counts, epochs = _newest(path, read_record(path).history, len(trained))
        source = f"{path.name}, {_epochs_in_words(epochs)}"
    by_caption = {trained[index].caption: clopper_pearson(*outcome) for index, outcome in counts.items()}
    risks = {item.file_name: by_caption[item.caption] for item in trained if item.caption in by_caption}
    return Evidence(risks, f"{source}: {len(by_caption)} captions sampled")


def _audited(path: Path, trained: Sequence[Item]) -> Counts:
    """From an audit: images that it does not list never came back."""
    try:
        audit = json.loads(path.read_bytes()[:MOST_BYTES])
        total, samples = int(audit["images_total"]), int(audit["samples"])
        listed = {int(row["index"]): (str(row["file_name"]), row["own"]) for row in audit["images"]}
        own = {index: (round(e["value"] * e["n"]), int(e["n"])) for index, (_, e) in listed.items() if e}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path}: not an audit of basinguard ({type(error).__name__}: {str(error)[:200]})") from None
    if total != len(trained) or samples < total:
        raise ValueError(
            f"{path}: {samples} samples of {total} images, but {len(trained)} captioned ones here; give the folder "
            "that was audited"
        )
    for index, (name, _) in listed.items():
        if not 0 <= index < total or PurePosixPath(trained[index].file_name).name != name:
            raise ValueError(f"{path}: image {index} is {name!r} there, another here; give the folder that was audited")
    return {index: own.get(index, (0, samples // total)) for index in range(total)}


def _newest(path: Path, history: Sequence[Report], trained: int) -> tuple[Counts, list[int]]:
    """The newest outcome of every caption, and the epochs they are of: probes under a budget take captions in turns."""
    counts: Counts = {}
    epochs: list[int] = []
    for report in reversed(history):
        if report.epoch >= 0 and report.basin.exits and report.probed:
            outcomes = _probed(path, report, trained)
            epochs += [report.epoch] if outcomes.keys() - counts.keys() else []
            counts = outcomes | counts
    if not counts:
        raise ValueError(
            f"{path}: its history holds no probe with samples and exits; run `basinguard audit` on the checkpoint"
        )
    return counts, sorted(epochs)


def _epochs_in_words(epochs: Sequence[int]) -> str:
    if len(epochs) == 1:
        return f"probe of epoch {epochs[0]}"
    return f"probes of epochs {epochs[0]} to {epochs[-1]}, the newest of each caption"


def _probed(path: Path, report: Report, trained: int) -> Counts:
    """From the exits of a probe: a pair that has one was reproduced by plain guidance from the start."""
    counts: Counts = {}
    for pair in report.basin.exits:
        index = report.probed[pair.caption] if 0 <= pair.caption < len(report.probed) else -1
        if not 0 <= index < trained:
            raise ValueError(
                f"{path}: caption {pair.caption} of the probe is none of the {trained} captioned images here; give "
                "the folder that was trained on"
            )
        copies, samples = counts.get(index, (0, 0))
        counts[index] = copies + (pair.timestep is not None), samples + 1
    return counts
