"""A place in a picture made exact: where a piece lies, to a fraction of a pixel, from where a thumbnail saw it.

Source: Lucas and Kanade, "An Iterative Image Registration Technique" (IJCAI 1981), with four unknowns (the edges of an
upright box) from coarse to fine, and the robust weights of Huber, "Robust Statistics" (1981), so that what lies over a
picture does not pull.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from ..similarity.registration import Box

LEVELS = (48, 96, 192)  # pixels of the longer side
ROUNDS = 5
BAND = 3.0  # pixels; coarser structure is what exposure and tint change
HUBER = 1.0  # robust standard deviations from which a pixel pulls less
LARGEST_STEP = 0.03  # of a side, in one round: farther away the linear model means nothing
SETTLED = 0.04  # pixels of a level, of a step after which the next one is looked at
FAINT = 0.3  # of the contrast of all, which that of most is at least taken for: a drawing is flat nearly everywhere

Slopes = Sequence[NDArray[np.float32]]  # down and across, [H, W] each


def refine(whole: Image.Image, part: Image.Image, box: Box) -> Box:
    """The box in `whole` that shows `part`, near `box`.

    Args:
        whole: the larger picture, RGB.
        part: what lies in it, the same way up, RGB.
        box: a guess, as shares of the sides; see `registration.Overlay.box`.

    Returns:
        Left, top, right and bottom as shares of the sides, inside the picture; the guess itself where no other place
        fits better, because what lies over a picture can still pull.
    """
    guess = box
    whole, part = whole.convert("L"), part.convert("L")
    finest = _target(part, LEVELS[-1])
    if np.abs(_step(*_difference(finest, whole, guess), guess)).max() * LEVELS[-1] < SETTLED:
        return guess
    for level in LEVELS:
        target = finest if level == LEVELS[-1] else _target(part, level)
        for _ in range(ROUNDS):
            here = box
            residual, slopes = _difference(target, whole, here)
            step = _step(residual, slopes, here)
            box = _inside(np.asarray(here) + step)
            if np.abs(step).max() * level < SETTLED:
                break
    if here != guess and _spread(_difference(target, whole, guess)[0]) <= _spread(residual):
        return guess
    return box


def _target(part: Image.Image, level: int) -> NDArray[np.float32]:
    """The detail of a piece, at most so many pixels on the longer side."""
    return _normalized(
        part.resize(_size(part.size, level), Image.Resampling.BOX if level < max(part.size) else _SMOOTH)
    )


def _difference(target: NDArray[np.float32], whole: Image.Image, box: Box) -> tuple[NDArray[np.float32], Slopes]:
    """What a place lacks of what it should show, [H, W], and the slopes of what it shows, down and across."""
    height, width = target.shape
    current = _normalized(resampled_box(whole, box, (width, height)))
    return target - current, [np.gradient(current, axis=axis) for axis in (0, 1)]


def _spread(residual: NDArray[np.float32]) -> float:
    """The robust standard deviation: what lies over less than half of a picture does not count."""
    return max(1.4826 * float(np.median(np.abs(residual))), 1e-3)


_SMOOTH = Image.Resampling.BICUBIC


def resampled_box(picture: Image.Image, box: Box, size: tuple[int, int]) -> Image.Image:
    """What lies in a box, given as shares of the sides, at a size in pixels, antialiased."""
    width, height = picture.size
    edges = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    return picture.resize(size, _SMOOTH, box=edges, reducing_gap=2.0)


def _size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    factor = min(1.0, longest / max(size))
    return max(8, round(size[0] * factor)), max(8, round(size[1] * factor))


def _normalized(picture: Image.Image) -> NDArray[np.float32]:
    """Detail of a grey picture, of unit contrast: what a change of light or colour leaves alone.

    Contrast is that of most of the picture, or letters over one of two would change the contrast of all of it.
    """
    grey = np.asarray(picture, np.float32)
    band = gaussian_filter(grey, 0.7) - gaussian_filter(grey, BAND)
    return band / max(1.4826 * float(np.median(np.abs(band))), FAINT * float(band.std()), 1e-3)


def _step(residual: NDArray[np.float32], slopes: Slopes, box: Box) -> NDArray[np.float64]:
    """One Gauss-Newton step of the four edges, in shares of the sides of the picture."""
    height, width = residual.shape
    down, across = slopes
    x, y = (np.arange(width) + 0.5) / width, ((np.arange(height) + 0.5) / height)[:, None]
    # moving the left edge of a box by d moves what is seen at x of its width by (1 - x) d
    motions = (across * (1 - x), down * (1 - y), across * x, down * y)
    jacobian = np.stack([motion.ravel() for motion in motions])
    flat = residual.ravel()
    weights = np.minimum(1, HUBER * _spread(residual) / np.maximum(np.abs(flat), 1e-6))
    weighted = jacobian * weights
    pixels = np.linalg.solve(weighted @ jacobian.T + 1e-2 * np.eye(4), weighted @ flat)
    wide, high = (box[2] - box[0]) / width, (box[3] - box[1]) / height
    return np.clip(pixels * (wide, high, wide, high), -LARGEST_STEP, LARGEST_STEP)


def _inside(box: NDArray[np.float64]) -> Box:
    left, top, right, bottom = box.clip(0, 1).tolist()
    if right - left < 0.05 or bottom - top < 0.05:
        return 0.0, 0.0, 1.0, 1.0
    return left, top, right, bottom
