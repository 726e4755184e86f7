"""Which part of a picture is trained on, and the sizes and the corner that Stable Diffusion XL is told of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as T

Size = tuple[int, int]  # width, height in pixels


@dataclass(frozen=True)
class Crop:
    """A picture resized until it just covers a size, then cropped to it.

    Attributes:
        original: size of the picture as it was read.
        resized: size that it is cropped from.
        left, top: the crop's corner in the resized picture, in pixels.
        size: of the crop.
    """

    original: Size
    resized: Size
    left: int
    top: int
    size: Size

    @classmethod
    def of(cls, original: Size, size: int | Size, generator: torch.Generator | None = None) -> Crop:
        """Out of the middle, or at random with a generator.

        Args:
            original: of the picture.
            size: width and height, or the side of a square.
            generator: draws the place of the crop.
        """
        wide, high = (size, size) if isinstance(size, int) else size
        factor = max(wide / original[0], high / original[1])
        width, height = max(wide, round(original[0] * factor)), max(high, round(original[1] * factor))
        left, top = (width - wide) // 2, (height - high) // 2
        if generator is not None:
            left = int(torch.randint(width - wide + 1, (), generator=generator))
            top = int(torch.randint(height - high + 1, (), generator=generator))
        return cls(original, (width, height), left, top, (wide, high))

    def pixels(self, image: Image.Image) -> Tensor:
        """The crop of a picture in RGB, [3, height, width] in 0..1, float32."""
        if self.resized != image.size:
            image = image.resize(self.resized, Image.Resampling.LANCZOS)
        wide, high = self.size
        cropped = image.crop((self.left, self.top, self.left + wide, self.top + high))
        # torchvision multiplies by 1 / 255 where `core.images.to_tensor` divides: trained weights hang on the last bit
        return T.to_dtype(T.pil_to_tensor(cropped), torch.float32, scale=True)

    def sizes(self, *, mirrored: bool = False) -> Tensor:
        """Height and width as it was read, top and left of the crop, height and width of the crop, [6], int64.

        Args:
            mirrored: the crop is shown mirrored, as it would lie in the mirrored picture.

        Source: Podell et al., arXiv 2307.01952, section 2.2; diffusers' train_text_to_image_lora_sdxl.py.
        """
        left = self.resized[0] - self.size[0] - self.left if mirrored else self.left
        return torch.tensor([*self.original[::-1], self.top, left, *self.size[::-1]])


def whole(pixels: Tensor) -> Tensor:
    """Sizes of pictures [B, 3, H, W] of which nothing else is known: neither resized nor cropped, [B, 6]."""
    height, width = pixels.shape[-2:]
    return torch.tensor([height, width, 0, 0, height, width], device=pixels.device).expand(len(pixels), -1)


def fitted(image: Image.Image, size: int | Size, *, generator: torch.Generator | None = None) -> Tensor:
    """Pixels of a picture in RGB as `Crop.of` crops it, [3, height, width] in 0..1, float32."""
    return Crop.of(image.size, size, generator).pixels(image)
