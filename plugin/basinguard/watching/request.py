"""What a watch measures with, on one page of JSON: the light process that waits hands it to the one that measures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from ..guard.plan import ProbePlan
from ..similarity.copy_detector_settings import CopyDetectorSettings
from .checkpoints import Checkpoint

BASE = "the base model"  # what it is called among the checkpoints
FOLDER = "basinguard"  # in the trainer's output folder, where nothing else is written
EVENTS, PAGE, STATE = "events.jsonl", "watch.html", "state.safetensors"
LOCK, PROBE_LOCK = "watch.lock", "probe.lock"  # of the process that waits, and of the one that measures


def events_of(folder: Path) -> list[dict[str, Any]]:
    """Everything that a watch wrote down; a line that was cut off, by a full disk say, is none."""
    path = folder / EVENTS
    lines = path.read_text("utf-8", errors="replace").split("\n")[:-1] if path.is_file() else []
    return [event for line in lines if (event := _event(line)) is not None]


def add_event(folder: Path, event: dict[str, Any]) -> None:
    """Writes an event down, on a line of its own whatever was cut off before.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    path = folder / EVENTS
    cut = path.is_file() and path.read_bytes()[-1:] not in (b"", b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * cut + json.dumps(event) + "\n")


def _event(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and {"event", "checkpoint"} <= event.keys() else None


def display_name(path: Path) -> str:
    """What a checkpoint is called: a file that is called alike in every folder, by its folder as well."""
    alike = path.name in ("model.safetensors", "pytorch_lora_weights.safetensors")
    return f"{path.parent.name}/{path.name}" if alike else path.name


def export_stem(path: Path) -> str:
    """What a file made of a checkpoint is called, without its ending."""
    name = display_name(path).partition("/")[0]
    return name.removesuffix(".safetensors")


@dataclass(frozen=True)
class WatchRequest:
    """What is measured, and with what.

    Attributes:
        output: the trainer's output folder.
        data: folder of captioned training images, or the trainer's own description of its images.
        base: the model that is fine-tuned.
        caption: of images that have none of their own.
        heldout: folder of captioned images that are not trained on.
        prompts: text file of prompts that are not trained on, one a line.
        plan: how much is measured of each checkpoint.
        detector: what decides that a sample is a copy.
    """

    output: Path
    data: Path
    base: str
    caption: str = ""
    heldout: Path | None = None
    prompts: Path | None = None
    plan: ProbePlan = ProbePlan()
    detector: CopyDetectorSettings = CopyDetectorSettings()

    @property
    def folder(self) -> Path:
        """Where everything goes that a watch writes."""
        return self.output / FOLDER

    def to_json(self) -> str:
        """This, on one line."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` wrote."""
        request: dict[str, Any] = json.loads(text)
        for name in ("output", "data", "heldout", "prompts"):
            request[name] = None if request[name] is None else Path(request[name])
        request |= {
            "plan": ProbePlan(**request["plan"]), "detector": CopyDetectorSettings(**request["detector"])
        }  # fmt: skip
        return cls(**request)


def checkpoints_to_json(checkpoints: Sequence[Checkpoint]) -> str:
    """Checkpoints to measure, on one line."""
    return json.dumps([asdict(c) for c in checkpoints], default=str)


def checkpoints_from_json(text: str) -> list[Checkpoint]:
    """What `checkpoints_to_json` wrote."""
    return [Checkpoint(**{**values, "path": Path(values["path"])}) for values in json.loads(text)]
