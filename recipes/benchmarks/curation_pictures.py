"""Pictures that a program makes, and fifteen edits of each, for the benchmarks of `basinguard curate`."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

FIRST_SEED = 1_000_000  # thresholds were chosen on pictures with smaller seeds


def picture(seed: int, side: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    canvas = np.zeros((side, side, 3), np.float32)
    for cells in (3, 6, 12, 24, 48, 96):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        layer = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float32) - 128
        canvas += layer * rng.uniform(0.2, 1.0) * (3 / cells) ** 0.5
    image = Image.fromarray(np.clip(128 + canvas, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(rng.integers(2, 9)):
        x, y, r = (*rng.uniform(0, side, 2), rng.uniform(0.04, 0.2) * side)
        shape = pen.ellipse if rng.integers(2) else pen.rectangle
        shape((x - r, y - r, x + r, y + r * rng.uniform(0.3, 1)), fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    return image


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def crop(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    """A window of `share` of each side, anywhere."""
    width, height = int(image.width * share), int(image.height * share)
    left, top = rng.integers(0, image.width - width + 1), rng.integers(0, image.height - height + 1)
    return image.crop((left, top, left + width, top + height))


def lettered(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    copy, top = image.copy(), rng.uniform(0, 0.8) * image.height
    pen = ImageDraw.Draw(copy)
    pen.rectangle((0, top, copy.width, top + copy.height * 0.17), fill="black")
    pen.text((copy.width * 0.04, top), "WHEN YOU SEE IT", fill="white", font=ImageFont.load_default(copy.height // 9))
    return copy


def logo(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    copy, (x, y), r = image.copy(), rng.uniform(0, 0.7, 2) * image.width, image.width * 0.3
    ImageDraw.Draw(copy).ellipse((x, y, x + r, y + r), fill="red")
    return copy


def tint(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    bands = [
        band.point(
            partial(lambda v, gain, shift: v * gain + shift, gain=rng.uniform(0.7, 1.3), shift=rng.uniform(-25, 25))
        )
        for band in image.split()
    ]
    return Image.merge("RGB", bands)


def enlarged(seed: int, side: int) -> Image.Image:
    """A picture of a quarter of the side, enlarged: a tenth of the time to make, and as much for a hash to read."""
    return picture(seed, side // 4).resize((side, side), Image.Resampling.BICUBIC)


Edit = Callable[[Image.Image, np.random.Generator], Image.Image]
EDITS: dict[str, Edit] = {
    "half size": lambda im, rng: im.resize((im.width // 2, im.height // 2)),
    "stretch 1.3": lambda im, rng: im.resize((int(im.width * 1.3), im.height)),
    "jpeg 25": lambda im, rng: jpeg(im, 25),
    "mirror": lambda im, rng: ImageOps.mirror(im),
    "crop 90%": lambda im, rng: crop(im, 0.9, rng),
    "crop 75%": lambda im, rng: crop(im, 0.75, rng),
    "crop to 2:3": lambda im, rng: im.crop((im.width // 6, 0, im.width - im.width // 6, im.height)),
    "border": lambda im, rng: ImageOps.expand(im, im.width // 8, fill=tuple(int(v) for v in rng.integers(0, 256, 3))),
    "tint": tint,
    "grey": lambda im, rng: im.convert("L").convert("RGB"),
    "gamma 1.8": lambda im, rng: im.point(lambda v: 255 * (v / 255) ** 1.8),
    "blur": lambda im, rng: im.filter(ImageFilter.GaussianBlur(im.width / 200)),
    "text bar": lettered,
    "logo": logo,
    "mirror, crop 85%, jpeg 40": lambda im, rng: jpeg(ImageOps.mirror(crop(im, 0.85, rng)), 40),
}


def save_with_edits(number: int, directory: Path, side: int, edits: Iterable[str]) -> None:
    image, rng = picture(FIRST_SEED + number, side), np.random.default_rng(number)
    image.save(directory / f"{number:06d}.jpg", quality=90)
    for name in edits:
        EDITS[name](image, rng).save(
            directory / f"{number:06d} {name.replace('%', '').replace(':', '-')}.jpg", quality=90
        )


def make_folder(directory: Path, *, pictures: int, strangers: int, side: int, workers: int) -> None:
    with ProcessPoolExecutor(workers) as pool:
        list(
            pool.map(
                partial(save_with_edits, directory=directory, side=side, edits=tuple(EDITS)),
                range(pictures),
                chunksize=4,
            )
        )
        rest = range(pictures, pictures + strangers)
        list(pool.map(partial(save_with_edits, directory=directory, side=side, edits=()), rest, chunksize=16))
