"""Pictures made by a program, so that every test knows what is a copy of what."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw


def make_picture(seed: int, side: int = 192) -> Image.Image:
    """A picture with detail at every scale, unlike that of any other seed."""
    rng = np.random.default_rng(seed)
    waves = np.zeros((side, side, 3))
    for size in (4, 8, 16, 32, 64):
        coarse = Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
        waves += (np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), float) - 128) * (4 / size) ** 0.5
    picture = Image.fromarray(np.clip(128 + waves / 2, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for _ in range(5):
        x, y, r = (*rng.uniform(0, side, 2), rng.uniform(0.06, 0.2) * side)
        pen.ellipse((x - r, y - r, x + r, y + r), fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    return picture


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    return [make_picture(seed) for seed in range(24)]


@pytest.fixture
def folder_of(tmp_path):
    """Writes pictures and captions as an imagefolder: {file name: (picture, caption)}."""

    def write(images: dict, directory: Path | None = None) -> Path:
        directory = directory or tmp_path / "photos"
        for name, (picture, caption) in images.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
            if caption:
                path.with_suffix(".txt").write_text(caption, encoding="utf-8")
        return directory

    return write
