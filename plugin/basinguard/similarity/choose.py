"""An embedder by name, for those who type: the command line and YAML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .embed import Embedder
from .figure import Figure, on_empty_ground
from .files import load_image
from .networks import clip_network, timm_network
from .sscd import PROTOCOLS, load_sscd
from .structure import Structure

KNOWN = (
    "auto",
    "structure",
    "structure-figure",
    *(f"sscd_{protocol}=FILE" for protocol in PROTOCOLS),
    "timm/MODEL=FILE",
    "clip=FOLDER",
    "clip/MODEL=TAG-OR-FILE",
)
FIGURES = 0.75  # share of the training images on an empty ground from which on the eye for figures is taken
LOOKED_AT = 32  # training images that decide


def offline_eye(training: Sequence[Tensor] | Tensor) -> Embedder:
    """The eye without weights that suits these images: `Figure` where they are figures on an empty ground.

    Args:
        training: images [3, H, W] in [0, 1], of any sizes; at most 32 of them, evenly spread, decide.

    Returns:
        `Figure()` where at least three in four stand on an empty ground, otherwise `Structure()`, also for no images.

    Raises:
        ValueError: an image that no embedder can look at.

    Example:
        >>> import torch
        >>> offline_eye(torch.rand(4, 3, 64, 64)).name
        'structure-colour-v1'
    """
    empty = [bool(on_empty_ground(image[None])) for image in spread(training)]
    return Figure() if empty and sum(empty) >= FIGURES * len(empty) else Structure()


def offline_eye_for(files: Sequence[Path]) -> Embedder:
    """The same for picture files."""
    return offline_eye([load_image(path) for path in spread(files)])


def spread(items: Any) -> Any:
    """At most 32 of a sequence, evenly spread."""
    return items[:: max(1, -(-len(items) // LOOKED_AT))]


def choose_embedder(text: str, training: Sequence[Tensor] | Tensor = ()) -> Embedder:
    """The eye that a word stands for.

    Args:
        text: "structure" and "structure-figure" (offline, no weights) or "auto" (which of the two suits the training
            images), "sscd_disc_mixup_320=FILE" and the other SSCD protocols (a state dict or ONNX),
            "timm/vit_small_patch14_dinov2.lvd142m=FILE", "clip=FOLDER" (saved by open_clip) or
            "clip/ViT-B-32=TAG-OR-FILE".
        training: the training images, [3, H, W] in [0, 1] each; only "auto" looks at them.

    Raises:
        FileNotFoundError: no such file; for SSCD it says where the file is published.
        ValueError: a word that stands for nothing, or a file of another model.

    Example:
        >>> choose_embedder("structure").name
        'structure-colour-v1'
    """
    kind, _, where = text.partition("=")
    if text == "auto":
        return offline_eye(training)
    if text == "structure":
        return Structure()
    if text == "structure-figure":
        return Figure()
    if where and kind.removeprefix("sscd_") in PROTOCOLS:
        return load_sscd(Path(where), kind.removeprefix("sscd_"))
    if where and kind.startswith("timm/"):
        return timm_network(kind.removeprefix("timm/"), weights=Path(where))
    if where and kind == "clip":
        return clip_network(where)
    if where and kind.startswith("clip/"):
        return clip_network(kind.removeprefix("clip/"), where)
    raise ValueError(f"embedder {text!r} given; expected one of {', '.join(KNOWN)}")
