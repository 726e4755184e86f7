"""Pictures of a source and edits of them, for `similarity_table.py`: read from a folder, cut in tiles, or drawn."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as edit

from basinguard.core.images import to_tensor
from basinguard.pipelines.latent_model import LatentModel
from basinguard.pipelines.loading import load_pipeline
from basinguard.pipelines.model_edits import model_edits
from basinguard.similarity.image_files import image_paths, load_image
from basinguard.similarity.sampler_edits import apply
from basinguard.tinyworld.scenes import all_captions, draw_scene

SERIES = "icon|flag|card|gradient|symbol"
LARGEST = 400_000  # bytes; larger files take long to decode and show nothing more at these sizes
TILES = 3  # along each side, of a picture that is cut
BLANK = 0.08  # standard deviation below which a picture shows nothing
CAPTIONS = all_captions()

Edit = Callable[[Tensor], Tensor]


def scenes(most: int, side: int, first_seed: int = 61_000_000) -> tuple[Tensor, Tensor]:
    """TinyWorld scenes, [N, 3, side, side], captions in turn, and a number for each."""
    drawn = [to_tensor(draw_scene(CAPTIONS[k % len(CAPTIONS)], first_seed + k)) for k in range(most)]
    return _at_size(torch.stack(drawn), side), torch.arange(most)


def draw(words: np.ndarray, first_seed: int) -> Tensor:
    """One scene for each caption's number, [N, 3, 64, 64]."""
    return torch.stack([to_tensor(draw_scene(CAPTIONS[w], first_seed + i)) for i, w in enumerate(words)])


def read(folder: Path, most: int, side: int, *, tiles: bool = False, skip: str = SERIES) -> tuple[Tensor, Tensor]:
    """Pictures at one size, [N, 3, side, side], and which file each is from: no blank ones, one of each series."""
    images: list[Tensor] = []
    owner: list[int] = []
    for number, path in enumerate(one_of_each_series(folder, skip)):
        if len(images) >= most:
            break
        if path.stat().st_size > LARGEST and not tiles:
            continue
        try:
            image = load_image(path)
        except ValueError:
            continue
        for part in cut(image) if tiles else [image]:
            small = _at_size(part[None], side)
            if float(small.std()) > BLANK:
                images.append(small)
                owner.append(number)
    print(f"{len(images)} pictures of {folder.name}", flush=True)
    return torch.cat(images[:most]), torch.tensor(owner[:most])


def one_of_each_series(folder: Path, skip: str) -> list[Path]:
    """Files in an order that does not depend on their names, the first of each series."""
    series: dict[str, Path] = {}
    for path in sorted(image_paths(folder), key=lambda p: hashlib.sha256(str(p.relative_to(folder)).encode()).digest()):
        if not re.search(skip, str(path.relative_to(folder)), re.IGNORECASE):
            series.setdefault(series_of(path), path)
    return list(series.values())


def series_of(path: Path) -> str:
    """Equal for files that show one picture or one series: their names differ only by numbers."""
    if re.search(r"[g-zG-Z]", path.stem):
        return re.sub(r"[\W\d_]+", "", path.stem)[:8]
    return path.stem.split("-")[0]  # emoji are named by code point; after the first come skin tones and families


def cut(image: Tensor) -> Iterator[Tensor]:
    """A picture [3, H, W] in tiles, row by row."""
    height, width = image.shape[1] // TILES, image.shape[2] // TILES
    for y in range(TILES):
        for x in range(TILES):
            yield image[:, y * height : (y + 1) * height, x * width : (x + 1) * width]


def _at_size(images: Tensor, side: int) -> Tensor:
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True).clamp(0, 1)


def jpeg(x: Tensor, quality: int) -> Tensor:
    """A picture [3, H, W] written and read again."""
    stream = io.BytesIO()
    edit.to_pil_image(x).save(stream, "JPEG", quality=quality)
    return edit.to_dtype(edit.to_image(Image.open(stream)), torch.float32, scale=True)


def resized(x: Tensor, share: float) -> Tensor:
    """Shrunk to a share of the side and enlarged again."""
    side = x.shape[-1]
    small = edit.resize(x, [round(share * side)] * 2, antialias=True)
    return edit.resize(small, [side, side], antialias=True)


def blurred(x: Tensor) -> Tensor:
    """By a fiftieth of the side."""
    sigma = x.shape[-1] / 50
    return edit.gaussian_blur(x, [2 * round(3 * sigma) + 1] * 2, [sigma, sigma])


def crop(x: Tensor, share: float) -> Tensor:
    """Cuts `share` of the area away, from a corner, and brings the rest back to size."""
    side = round(x.shape[-1] * (1 - share) ** 0.5)
    return edit.resize(x[:, :side, :side], list(x.shape[1:]), antialias=True)


def shifted(x: Tensor) -> Tensor:
    """By 4 % of the side, down and to the right; what comes in repeats the border."""
    side, step = x.shape[-1], max(1, round(0.04 * x.shape[-1]))
    return F.pad(x[None], (step, 0, step, 0), mode="replicate")[0, :, :side, :side]


def overlaid(x: Tensor) -> Tensor:
    """With a plain yellow square over a ninth of the area."""
    side, y = x.shape[-1], x.clone()
    y[:, side // 2 : side // 2 + side // 3, side // 6 : side // 2] = torch.tensor([0.95, 0.9, 0.2]).view(3, 1, 1)
    return y


def guided(x: Tensor) -> Tensor:
    """What too much guidance does: saturation and contrast up, clipped."""
    return edit.adjust_contrast(edit.adjust_saturation(x, 2.5), 1.5)


def noisy(x: Tensor) -> Tensor:
    """With noise of its own."""
    return x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(int(x.sum() * 1000) % 2**31))


ONE_BY_ONE: Mapping[str, Edit] = {
    "resize to 31 %": lambda x: resized(x, 0.31),
    "JPEG quality 20": lambda x: jpeg(x, 20),
    "blur, sigma 2 %": blurred,
    "crop 10 %": lambda x: crop(x, 0.1),
    "crop 20 %": lambda x: crop(x, 0.2),
    "crop 30 %": lambda x: crop(x, 0.3),
    "shift 4 %": shifted,
    "mirror": lambda x: x.flip(-1),
    "hue 40 degrees": lambda x: edit.adjust_hue(x, 40 / 360),
    "grayscale": lambda x: edit.rgb_to_grayscale(x, 3),
    "gamma 2": lambda x: x**2,
    "noise, sigma 0.1": noisy,
    "overlay 11 %": overlaid,
    "over-saturation (CFG)": guided,
    "over-saturation, blur and shift": lambda x: shifted(guided(blurred(x))),
}


def edits_of(images: Tensor, model: Path | None) -> dict[str, Tensor]:
    """Every edit of images [N, 3, S, S], by name; those of a model at its own size and back."""
    edited = {name: torch.stack([way(x) for x in images]).clamp(0, 1) for name, way in ONE_BY_ONE.items()}
    if model is not None:
        latent = LatentModel(load_pipeline(str(model)))
        small = _at_size(images, latent.resolution)
        for name, way in model_edits(latent).edits.items():
            edited[name] = _at_size(apply(way, small), images.shape[-1])
    return edited
