"""The images of a run, with what they are compared with: its control group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..core.images import load_rgb
from ..guard.control_prompts import recombined_prompts
from ..guard.training_set import TrainingSet
from ..similarity.copy_detector_settings import CopyDetectorSettings
from ..similarity.image_files import image_paths
from .cropping import fitted
from .data_sources import ImageSource
from .guard_options import ControlGroup
from .pixel_checks import require_unit_pixels
from .protocols import items_of


def require_control(control: ControlGroup, detector: CopyDetectorSettings) -> None:
    """Refuses a control group that does not do, before anything is read.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a threshold that is measured on held-out images, and none of them.
    """
    if control.folder and not Path(control.folder).expanduser().is_dir():
        raise FileNotFoundError(
            f"ControlGroup(folder={control.folder!r}): no such folder; it holds images and captions, as training"
        )
    if detector.threshold == "heldout" and not control.folder:
        raise ValueError("threshold='heldout' is measured on held-out images: give ControlGroup(folder=...) as well")


def heldout_pixels(folder: Path | None, resolution: int) -> torch.Tensor | None:
    """The pictures of a folder, captioned or not, as the model sees training images, [M, 3, H, W]; None of none.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a picture that cannot be read.
    """
    if folder is None:
        return None
    return torch.stack([fitted(load_rgb(path), resolution) for path in image_paths(folder)])


def training_set(data: Any, control: ControlGroup) -> TrainingSet:
    """The images of a datamodule, with their control group.

    Raises:
        ValueError: a folder that cannot be used, or one that holds training captions.
    """
    images = data.all_pixels()
    require_unit_pixels(images, "all_pixels()")
    captions = tuple(caption for _, caption in items_of(data)[: getattr(data, "secrets", None)])
    hashes = tuple(getattr(data, "image_sha256", ()))
    if control.folder is None:
        prompts = recombined_prompts(captions) if control.heldout is None else tuple(control.heldout)
        return TrainingSet(images, captions, prompts, stand_in=control.heldout is None, image_sha256=hashes)
    source = ImageSource.of_folder(control.folder)
    if source.problems:
        lines = "\n".join(f"- {problem}" for problem in source.problems)
        raise ValueError(f"the images of ControlGroup(folder={control.folder!r}) cannot be used:\n{lines}")
    heldout_images = torch.stack([fitted(source.open(k), images.shape[-1]) for k in range(len(source.items))])
    trained = {image.numpy().tobytes() for image in images}
    for (name, _), image in zip(source.items, heldout_images, strict=True):
        if image.numpy().tobytes() in trained:
            raise ValueError(f"{name}: is a training image as well; held-out images must not have been trained on")
    prompts = tuple(caption for _, caption in source.items)
    return TrainingSet(images, captions, prompts, heldout_images, image_sha256=hashes)
