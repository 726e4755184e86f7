"""An embedder by name, for those who type: the command line and YAML."""

from __future__ import annotations

from pathlib import Path

from .embedder import Embedder
from .networks import clip_network, timm_network
from .sscd import PROTOCOLS, load_sscd
from .structure import Structure
from .structure_figure import StructureFigure

KNOWN = (
    "structure",
    "structure-figure",
    *(f"sscd_{protocol}=FILE" for protocol in PROTOCOLS),
    "timm/MODEL=FILE",
    "clip=FOLDER",
    "clip/MODEL=TAG-OR-FILE",
)


def load_embedder(text: str) -> Embedder:
    """The embedder that a word stands for.

    Args:
        text: "structure" (offline, no weights), "structure-figure" (the same for shifted and cropped figures on an
            empty ground), "sscd_disc_mixup_320=FILE" and the other SSCD protocols (a state dict or ONNX),
            "timm/vit_small_patch14_dinov2.lvd142m=FILE", "clip=FOLDER" (saved by open_clip) or
            "clip/ViT-B-32=TAG-OR-FILE".

    Raises:
        FileNotFoundError: no such file; for SSCD it says where the file is published.
        ValueError: a word that stands for nothing, or a file of another model.

    Example:
        >>> load_embedder("structure").name
        'structure-colour-v1'
    """
    kind, _, where = text.partition("=")
    if text == "structure":
        return Structure()
    if text == "structure-figure":
        return StructureFigure()
    if where and kind.removeprefix("sscd_") in PROTOCOLS:
        return load_sscd(Path(where), kind.removeprefix("sscd_"))
    if where and kind.startswith("timm/"):
        return timm_network(kind.removeprefix("timm/"), weights=Path(where))
    if where and kind == "clip":
        return clip_network(where)
    if where and kind.startswith("clip/"):
        return clip_network(kind.removeprefix("clip/"), where)
    raise ValueError(f"embedder {text!r} given; expected one of {', '.join(KNOWN)}")
