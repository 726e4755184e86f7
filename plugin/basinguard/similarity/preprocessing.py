"""What happens to a picture before a network sees it: a part of the metric, because thresholds depend on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

from torch import Tensor

from ..core.extras import optional

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
RAW = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # for networks that normalise themselves


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop to the middle, normalise.

    Attributes:
        size: (height, width) after resizing with "squash"; otherwise its smaller or larger side is aimed at.
        mode: "squash" ignores the shape; "shortest" brings the shorter side to `size`, "longest" the longer one.
        crop: (height, width) cut from the middle, padded with black where the picture is smaller; None keeps all.
        mean, std: of each colour, in 0..1.
        interpolation: "bilinear" or "bicubic", always with antialiasing.
    """

    size: tuple[int, int]
    mode: Literal["squash", "shortest", "longest"]
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"

    def __call__(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] as the network wants them."""
        from torchvision.transforms.v2 import functional as edit

        interpolation = edit.InterpolationMode(self.interpolation)
        resized = edit.resize(images, self._shape(images), interpolation=interpolation, antialias=True).clamp(0, 1)
        if self.crop is not None:
            resized = edit.center_crop(resized, list(self.crop))
        return edit.normalize(resized, list(self.mean), list(self.std))

    def _shape(self, images: Tensor) -> list[int]:
        if self.mode == "squash":
            return list(self.size)
        if self.mode == "shortest":
            return [min(self.size)]  # torchvision brings the shorter side to one number
        height, width = images.shape[2:]
        scale = min(self.size[0] / height, self.size[1] / width)
        return [max(1, round(height * scale)), max(1, round(width * scale))]

    @classmethod
    def of_open_clip(cls, visual: Any) -> Self:
        """What open_clip's own transform does for this image tower (its `preprocess_cfg`)."""
        config = visual.preprocess_cfg
        size = config["size"]
        target = (size, size) if isinstance(size, int) else (int(size[-2]), int(size[-1]))
        mode: Any = config.get("resize_mode") or "shortest"
        interpolation = config.get("interpolation") or "bicubic"
        return cls(target, mode, target, tuple(config["mean"]), tuple(config["std"]), interpolation)

    @classmethod
    def of_timm(cls, model: Any) -> Self:
        """What timm's evaluation transform does for this model (its `pretrained_cfg`)."""
        config = optional("timm.data", install="timm", gives="DINO").resolve_model_data_config(model)
        height, width = config["input_size"][1:]
        scale = config["crop_pct"]
        mode: Any = "squash" if config["crop_mode"] == "squash" else "shortest"
        size = (int(height / scale), int(width / scale))
        return cls(size, mode, (height, width), tuple(config["mean"]), tuple(config["std"]), config["interpolation"])
