"""The images that a trainer reads, from everywhere that it reads them, as the training set of a guard."""

from __future__ import annotations

from pathlib import Path

import torch

from ..guard.training_set import TrainingSet
from ..training.control_group import training_set
from ..training.data import ImageFolder
from ..training.finetune_options import ReadingOptions
from ..training.guard_options import ControlGroup
from .request import WatchRequest
from .trainer_data import image_subsets


def training_of(request: WatchRequest, resolution: int) -> TrainingSet:
    """The images that must not come back, from everywhere that the trainer reads them."""
    control = ControlGroup(folder=str(request.heldout)) if request.heldout else ControlGroup(_prompts(request.prompts))
    sets, items = [], []
    for subset in image_subsets(request.data, request.caption):
        none = subset.named or None  # anything: another caption takes its place
        reading = ReadingOptions(caption=subset.caption or none, lines=subset.lines)
        images = ImageFolder(str(subset.folder), resolution=resolution, reading=reading)
        images.setup("open")
        own = [k for k, (path, _) in enumerate(images.items[: images.secrets]) if subset.includes(path)]
        if len(own) < len(subset.captions or ()):
            missing = f"{len(subset.captions or ()) - len(own)} of {len(subset.captions or ())} images of its table"
            raise ValueError(f"{request.data}: {missing} are not in {subset.folder}")
        sets.append(torch.stack([images.pixels(k) for k in own]))
        items += [(path, subset.trained(path, caption)) for path, caption in (images.items[k] for k in own)]
    return training_set(_Images(torch.cat(sets), tuple(items)), control)


class _Images:
    """Several folders as one (`protocols.CaptionedImages`)."""

    def __init__(self, pixels: torch.Tensor, items: tuple[tuple[str, str], ...]) -> None:
        self.pixels, self.items = pixels, items

    def all_pixels(self) -> torch.Tensor:
        return self.pixels


def _prompts(path: Path | None) -> list[str] | None:
    return None if path is None else [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
