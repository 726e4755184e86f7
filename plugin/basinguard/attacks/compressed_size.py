"""How much there is in an image, in bytes: what a membership statistic is divided by, so that plain images do not win.

Source: arXiv 2603.13421 (complexity calibration: the statistic divided by the compressed byte length).
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


def compressed_size(images: Tensor) -> NDArray:
    """Bytes of each image as PNG, [N]; images are [N, 3, H, W] in [0, 1]."""
    pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return np.array([_bytes(Image.fromarray(image)) for image in pixels], float)


def _bytes(image: Image.Image) -> int:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return len(buffer.getvalue())
