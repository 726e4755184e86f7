"""What the command line offers: `compare-images A B`, and `metrics` for samples that were made elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..records import Metric
from ..stats import cluster_bootstrap
from .aggregate import summarise
from .cache import Cache, embed_files
from .carlini import DELTA, TILES, tiled_l2
from .diversity import vendi
from .embed import Embedder
from .files import image_paths, load_image
from .local import compare_locally, overlay
from .match import search
from .null import Null, from_neighbours, from_samples
from .quality import compare_features
from .structure import Structure


def compare_images(
    a: Path, b: Path, *, embedder: Embedder | None = None, picture: Path | None = None
) -> dict[str, Any]:
    """Are these two images the same?

    Args:
        a: an image, such as a sample.
        b: another, such as the training image it may come from.
        embedder: the eye; None is the offline default.
        picture: where to write A with the copied part marked (PNG); None writes nothing.

    Returns:
        "similarity", "mirrored", "copy" (at or above the threshold), "metric" (name, threshold, its source), "kind"
        (verbatim, template or none) with "share" of the windows that can tell, and "tiled_l2" with its own verdict.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a readable picture, too small, or `picture` already exists.
    """
    if picture is not None and picture.exists():
        raise ValueError(f"{picture} already exists; give a new name")
    eye = embedder or Structure()
    first, second = load_image(a), load_image(b)
    known = eye(second[None])[0]
    straight, turned = (float(eye(view[None])[0] @ known) for view in (first, first.flip(-1)))
    mirrored = turned > straight
    local = compare_locally(first, second, mirrored=mirrored)
    if picture is not None:
        _save(overlay(first, local), picture)
    similarity = max(straight, turned)
    distance = _tiled(first, second.flip(-1) if mirrored else second)
    return {
        "similarity": similarity,
        "mirrored": mirrored,
        "copy": similarity >= eye.metric.threshold,
        "metric": eye.metric.model_dump(),
        "kind": local.kind,
        "share": local.share,
        "windows": local.windows,
        "tiled_l2": distance,
        "tiled_l2_copy": distance <= DELTA,
    }


def metrics(
    samples: Path,
    data: Path,
    *,
    embedder: Embedder | None = None,
    heldout: Path | None = None,
    cache: Path | None = None,
) -> dict[str, Any]:
    """How many of these samples are copies of these training images?

    Samples of one prompt belong into one subfolder of `samples`; files directly in it count as a prompt each.

    Args:
        samples: folder of generated images.
        data: folder of training images.
        embedder: the eye; None is the offline default.
        heldout: folder of like images that were not trained on, for a second null and for likeness to the subject.
        cache: folder in which the training images' embeddings are kept.

    Returns:
        "metric" (name, threshold, source), "aggregates" as estimates, "nulls" (thresholds measured
        on this very set, with the share of samples above each), "diversity", with held-out images also
        "likeness_to_heldout" and "quality" (KID and the rest by the same eye, or why not), and "nearest" (for each
        sample its training image, similarity and whether mirrored).

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a folder without pictures, or a picture that cannot be read.
    """
    eye = embedder or Structure()
    files, known_files = image_paths(samples), image_paths(data)
    known = embed_files(known_files, eye, cache=Cache(cache) if cache else None)
    straight, turned = (_embed(files, eye, mirror=mirror) for mirror in (False, True))
    best, index, mirrored = _best(straight, turned, known)
    prompts = [str(f.parent.relative_to(samples)) if f.parent != samples else f.name for f in files]
    nulls = _nulls(known_files, known, heldout, eye)
    return {
        "metric": eye.metric.model_dump(),
        "samples": len(files),
        "training_images": len(known_files),
        "aggregates": {k: e.model_dump() for k, e in summarise(best, prompts, threshold=eye.metric.threshold).items()},
        "nulls": {n.name: _with_share(n, eye.name, best, prompts) for n in nulls},
        "diversity": {"vendi": vendi(straight), "n": len(files), "embedder": eye.name},
        **_against_heldout(straight, heldout, eye, prompts),
        "nearest": [
            {"sample": str(f), "training_image": str(known_files[i]), "similarity": s, "mirrored": m}
            for f, i, s, m in zip(files, index, best.tolist(), mirrored, strict=True)
        ],
    }


def _embed(files: list[Path], eye: Embedder, *, mirror: bool) -> Tensor:
    return embed_files(files, _Mirrored(eye) if mirror else eye)


class _Mirrored:
    """The same eye, looking at the mirror image."""

    def __init__(self, eye: Embedder):
        self.eye = eye

    @property
    def name(self) -> str:
        return f"{self.eye.name} mirrored"

    @property
    def metric(self) -> Metric:
        return self.eye.metric

    def __call__(self, images: Tensor) -> Tensor:
        return self.eye(images.flip(-1))


def _best(straight: Tensor, turned: Tensor, known: Tensor) -> tuple[np.ndarray, list[int], list[bool]]:
    (value, index), (other, other_index) = search(straight, known), search(turned, known)
    mirrored = (other > value)[:, 0]
    indices = torch.where(other > value, other_index, index)[:, 0]
    return torch.maximum(value, other)[:, 0].double().numpy(), indices.tolist(), mirrored.tolist()


def _nulls(known_files: list[Path], known: Tensor, heldout: Path | None, eye: Embedder) -> list[Null]:
    """Train-train and, where there are held-out images, held-out against train; mirror-aware, as the search is."""
    nulls = []
    if len(known_files) > 2:
        nulls.append(from_neighbours(known, range(len(known)), mirrored=_embed(known_files, eye, mirror=True)))
    if heldout is not None:
        fresh = image_paths(heldout)
        straight, turned = (_embed(fresh, eye, mirror=mirror) for mirror in (False, True))
        nulls.append(from_samples(straight, known, mirrored=turned, name="held-out"))
    return nulls


def _with_share(null: Null, name: str, best: np.ndarray, prompts: list[str]) -> dict[str, Any]:
    metric = null.metric(name)
    share = summarise(best, prompts, threshold=metric.threshold)["share"]
    return {"metric": metric.model_dump(), "share": share.model_dump()}


def _against_heldout(straight: Tensor, heldout: Path | None, eye: Embedder, prompts: list[str]) -> dict[str, Any]:
    """Likeness to images of the subject that were not trained on: a guard that undoes the fine-tune lowers it."""
    if heldout is None:
        return {}
    fresh = embed_files(image_paths(heldout), eye)
    likeness = cluster_bootstrap((straight @ fresh.T).mean(1).tolist(), prompts)
    quality: dict[str, Any] | str
    try:
        quality = {k: e.model_dump() for k, e in compare_features(straight, fresh, name=eye.name).items()}
    except (ImportError, ValueError) as error:
        quality = f"not measured: {error}"
    return {"likeness_to_heldout": likeness.model_dump(), "quality": quality}


def _tiled(a: Tensor, b: Tensor) -> float:
    side = TILES * max(1, min(*a.shape[1:], *b.shape[1:]) // TILES)
    resized = [
        torch.nn.functional.interpolate(x[None], (side, side), mode="bilinear", antialias=True).clamp(0, 1)
        for x in (a, b)
    ]
    return float(tiled_l2(*resized)[0])


def _save(image: Tensor, path: Path) -> None:
    from PIL import Image

    Image.fromarray((image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()).save(path, format="PNG")
