"""Two styles that any scene can be redrawn in: ink on cream paper, and neon on black.

Both keep every contour that a caption names and throw away the palette, so a model that knows scenes has something to
learn and something to keep. They work on the large canvas of `scenes.scene_canvas`, so lines are smooth afterwards.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

EDGE = 24  # of 255, summed over the channels: a fade of the sky stays below, every contour is above
LINE = 7  # width of a line on the large canvas, in pixels; not quite two in the scene
PAPER, INK = (244, 236, 214), (24, 26, 88)
HATCH_PITCH, HATCH_WIDTH = 20, 4
DARK, DARKER = 0.52, 0.3  # luminance below which there is hatching in one direction, and in two
TUBE = 5  # width of a glowing line on the large canvas, in pixels
GREY = 40  # of 255: what has less saturation glows white
GLOW = 9  # radius of the glow on the large canvas, in pixels


def ink(canvas: Image.Image) -> Image.Image:
    """Dark blue contours on cream paper, hatched at 45 degrees where the scene is dark, both ways where darker."""
    luminance = np.asarray(canvas.convert("L"), dtype=np.float32) / 255
    rows, columns = np.indices(luminance.shape)
    falling = (rows - columns) % HATCH_PITCH < HATCH_WIDTH
    rising = (rows + columns) % HATCH_PITCH < HATCH_WIDTH
    drawn = _contours(canvas, LINE) | (rising & (luminance < DARK)) | (falling & (luminance < DARKER))
    return Image.fromarray(np.where(drawn[..., None], INK, PAPER).astype(np.uint8))


def neon(canvas: Image.Image) -> Image.Image:
    """Contours that glow in the pure hue of what they bound, on black."""
    colour = np.asarray(canvas.filter(ImageFilter.MaxFilter(TUBE)).convert("HSV")).copy()
    colour[..., 1] = np.where(colour[..., 1] > GREY, 255, 0)
    colour[..., 2] = 255
    tubes = np.asarray(Image.fromarray(colour, "HSV").convert("RGB")) * _contours(canvas, TUBE)[..., None]
    sharp = Image.fromarray(tubes.astype(np.uint8))
    glow = np.asarray(sharp.filter(ImageFilter.GaussianBlur(GLOW)), dtype=np.float32)
    return Image.fromarray(np.clip(tubes + 1.5 * glow, 0, 255).astype(np.uint8))


def _contours(canvas: Image.Image, width: int) -> NDArray[np.bool_]:
    """Where the colour changes at once, [H, W], as lines of `width` pixels."""
    pixels = np.asarray(canvas, dtype=np.int32)
    across = np.abs(np.diff(pixels, axis=1, prepend=pixels[:, :1])).sum(2)
    down = np.abs(np.diff(pixels, axis=0, prepend=pixels[:1])).sum(2)
    edges = Image.fromarray(((np.maximum(across, down) > EDGE) * 255).astype(np.uint8))
    return np.asarray(edges.filter(ImageFilter.MaxFilter(width))) > 0
