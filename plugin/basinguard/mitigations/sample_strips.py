"""A few samples of a point side by side, as one picture in the folder of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..plots.contact_sheet import to_image
from .measure import Point

SAMPLES = 6  # of each point


def strip_path(folder: Path, point: Point) -> Path:
    """Where the samples of a point lie."""
    return folder / f"{point.mitigation}_{point.intensity:g}.png"


def save_strip(images: Tensor, clusters: Sequence[int], path: Path) -> None:
    """Writes the first sample of a few prompts, spread evenly, at most 128 pixels each."""
    firsts = [clusters.index(k) for k in sorted(set(clusters))]
    count = min(SAMPLES, len(firsts))
    tiles = [to_image(images[firsts[len(firsts) * k // count]]) for k in range(count)]
    for tile in tiles:
        tile.thumbnail((128, 128))
    width, height = tiles[0].size
    strip = Image.new("RGB", (width * len(tiles), height))
    for k, tile in enumerate(tiles):
        strip.paste(tile, (k * width, 0))
    path.parent.mkdir(exist_ok=True)
    strip.save(path)
