"""What a training run left behind about each image: how often samples of its caption brought it back.

Two kinds of run can be read: what `basinguard audit --out` wrote, where every caption was sampled; and a guarded run,
whose `guard.json` or export holds what the guard saw of the captions that it sampled, the newest of each. Runs count
images by their place in a training set that may be gone, so images are found by the hashes that a run keeps of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ..core.estimate import Estimate
from ..core.files import joined_sha256
from ..core.record import read_record
from ..core.report import Report
from ..core.stats import clopper_pearson
from ..core.text import epoch_name, printable
from .folder import Item

AUDIT, GUARD = "audit.json", "guard.json"
RECORDS = ("basinguard.json", "export/basinguard.json")
MOST_BYTES = 64 * 2**20
REMEDY = "run `basinguard audit MODEL --data DIR` and give what it writes"

Counts = dict[int, tuple[int, int]]  # by image: samples that reproduced it, samples
Hashes = Sequence[str]  # content hash of each image that was trained on, in the run's order


@dataclass(frozen=True)
class Evidence:
    """What a run says about the images of a folder.

    Attributes:
        risks: for each file name, the share of samples of its caption that reproduced its picture.
        source: where that was read, how many captions were sampled, and how many of their images are here.
    """

    risks: dict[str, Estimate]
    source: str


def read_run(run: Path, items: Sequence[Item], sha256: Hashes, orders: Iterable[Hashes] = ()) -> Evidence:
    """Reads how much a run memorized of each image.

    Args:
        run: a folder that holds audit.json, guard.json, or basinguard.json with a history (an export, or a run with
            `export/`).
        items: the images that are here.
        sha256: content hash of each.
        orders: sets in which they may have been trained on, each in its order: an export keeps only one hash of its
            whole set, because a single one would tell a stranger what was trained on.

    Returns:
        Evidence for the images that were sampled, under whatever name they are here; files of equal bytes share it.

    Raises:
        FileNotFoundError: no such folder, or nothing in it that a run leaves behind.
        ValueError: what is there does not parse, has no samples, or is about other images.
    """
    path = next((run / name for name in (AUDIT, GUARD, *RECORDS) if (run / name).is_file()), None)
    if path is None:
        names = ", ".join((AUDIT, GUARD, *RECORDS))
        raise FileNotFoundError(f"{printable(str(run))}: holds none of {names}; give a guarded run or an audit")
    if path.name == AUDIT:
        hashes, counts, source = _audited(path)
    else:
        hashes, history = _guarded(path) if path.name == GUARD else _exported(path, orders)
        counts, epochs = _newest(path, history, len(hashes))
        source = f"{path.name}, {_epochs_in_words(epochs)}"
    outcomes = {hashes[index]: clopper_pearson(*outcome) for index, outcome in counts.items()}
    here = outcomes.keys() & set(sha256)
    if not here:
        raise ValueError(f"{path}: none of its {len(hashes)} images is here; give the folder that was trained on")
    risks = {item.file_name: outcomes[digest] for item, digest in zip(items, sha256, strict=True) if digest in outcomes}
    gone = len(outcomes) - len(here)
    return Evidence(
        risks, f"{source}: {len(counts)} captions sampled" + (f", images of {gone} not here" if gone else "")
    )


def _audited(path: Path) -> tuple[Hashes, Counts, str]:
    """From an audit: images that it does not list never came back."""
    try:
        audit = json.loads(path.read_bytes()[:MOST_BYTES])
        hashes, total, samples = list(audit.get("image_sha256", ())), int(audit["images_total"]), int(audit["samples"])
        listed = {int(row["index"]): row["own"] for row in audit["images"]}
        own = {index: (round(e["value"] * e["n"]), int(e["n"])) for index, e in listed.items() if e}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not an audit of basinguard ({type(error).__name__}: {str(error)[:200]})") from None
    _require_hashes(path, hashes)
    if not len(hashes) == total <= samples or not all(0 <= index < total for index in listed):
        raise ValueError(
            f"{path}: {samples} samples of {total} images with {len(hashes)} hashes, of which it lists "
            f"{sorted(listed)[:20]}; not an audit of basinguard"
        )
    return hashes, {index: own.get(index, (0, samples // total)) for index in range(total)}, AUDIT


def _guarded(path: Path) -> tuple[Hashes, Sequence[Report]]:
    """The newest history of a run, from its log directory."""
    try:
        values = json.loads(path.read_bytes()[:MOST_BYTES])
        history = [Report.model_validate_json(json.dumps(row)) for row in values["history"]]
        hashes = [str(digest) for digest in values.get("image_sha256", ())]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{path}: not a guard.json ({first['loc']}: {first['msg']})") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not a guard.json ({type(error).__name__}: {str(error)[:200]})") from None
    _require_hashes(path, hashes)
    return hashes, history


def _exported(path: Path, orders: Iterable[Hashes]) -> tuple[Hashes, Sequence[Report]]:
    """The history of an export, whose one hash says which of the orders it counts in."""
    record = read_record(path)
    _require_hashes(path, record.files_sha256)
    hashes = next((order for order in orders if joined_sha256(order) == record.files_sha256), None)
    if hashes is None:
        raise ValueError(
            f"{path}: the images here are not, file by file, those that it was trained on, so its numbers belong to "
            f"none of them; give the run's own folder, which holds {GUARD}, or {REMEDY}"
        )
    return hashes, record.history


def _require_hashes(path: Path, hashes: object) -> None:
    if not hashes:
        raise ValueError(f"{path}: does not say which images its numbers are about (no hashes of them); {REMEDY}")


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
        return f"probe of {epoch_name(epochs[0])}"
    return f"probes of epochs {epochs[0] + 1} to {epochs[-1] + 1}, the newest of each caption"


def _probed(path: Path, report: Report, trained: int) -> Counts:
    """From the exits of a probe: a pair that has one was reproduced by plain guidance from the start."""
    counts: Counts = {}
    for pair in report.basin.exits:
        index = report.probed[pair.caption] if 0 <= pair.caption < len(report.probed) else -1
        if not 0 <= index < trained:
            raise ValueError(
                f"{path}: caption {pair.caption} of the probe is none of the {trained} images that it was trained on; "
                f"{REMEDY}"
            )
        copies, samples = counts.get(index, (0, 0))
        counts[index] = copies + (pair.timestep is not None), samples + 1
    return counts
