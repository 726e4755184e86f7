"""What a watch measures with, on one page of JSON: the light process that waits hands it to the one that measures."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from ..guard.plan import ProbePlan
from ..similarity.copy_detector_settings import CopyDetectorSettings
from .checkpoints import Checkpoint

FOLDER = "basinguard"  # in the trainer's output folder, where nothing else is written
EVENTS, PAGE, STATE, LOCK = "events.jsonl", "watch.html", "state.safetensors", "watch.lock"


def events_of(folder: Path) -> list[dict[str, Any]]:
    """Everything that a watch wrote down; a last line that was cut off is none."""
    path = folder / EVENTS
    lines = path.read_text("utf-8").splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def display_name(path: Path) -> str:
    """What a checkpoint is called: a file that is called alike in every folder, by its folder as well."""
    alike = path.name in ("model.safetensors", "pytorch_lora_weights.safetensors")
    return f"{path.parent.name}/{path.name}" if alike else path.name


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

    def to_json(self, checkpoints: tuple[Checkpoint, ...]) -> str:
        """This and the checkpoints to measure, as one text."""
        return json.dumps({"request": asdict(self), "checkpoints": [asdict(c) for c in checkpoints]}, default=str)

    @classmethod
    def from_json(cls, text: str) -> tuple[Self, list[Checkpoint]]:
        """Both, from what `to_json` wrote."""
        values = json.loads(text)
        request: dict[str, Any] = values["request"]
        for name in ("output", "data", "heldout", "prompts"):
            request[name] = None if request[name] is None else Path(request[name])
        request |= {
            "plan": ProbePlan(**request["plan"]), "detector": CopyDetectorSettings(**request["detector"])
        }  # fmt: skip
        return cls(**request), [Checkpoint(**{**c, "path": Path(c["path"])}) for c in values["checkpoints"]]
