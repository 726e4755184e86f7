"""An embedder by name: by the word that someone types, or by the name that a record holds."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from ..core.metric import Metric
from .aligned import Aligned
from .either import NAME as PAIR
from .either import Either
from .embedder import Embedder, WithThreshold
from .networks import clip_network, timm_network
from .sscd import PACKAGED_SHA256, PROTOCOLS, load_packaged_sscd, load_sscd
from .structure import Structure
from .structure_figure import StructureFigure

EMBEDDERS = (
    "structure",
    "structure-figure",
    "aligned",
    "sscd",
    *(f"sscd_{protocol}=FILE" for protocol in PROTOCOLS),
    "timm/MODEL=FILE",
    "clip=FOLDER",
    "clip/MODEL=TAG-OR-FILE",
)
WEIGHT_FREE: Mapping[str, Callable[[], Embedder]] = {
    "structure": Structure,
    "structure-figure": StructureFigure,
    "aligned": Aligned,
}
HASH = re.compile(r"sha256:([0-9a-f]{12,64})")


def load_embedder(text: str) -> Embedder:
    """The embedder that a word stands for.

    Args:
        text: one of `EMBEDDERS`, explained at `CopyDetectorSettings`.

    Raises:
        FileNotFoundError: no such file; for SSCD it says where the file is published.
        ImportError: a package is missing; says how to get it.
        ValueError: a word that stands for nothing, or a file of another model.

    Example:
        >>> load_embedder("structure").name
        'structure-colour-v1'
    """
    kind, _, where = text.partition("=")
    if text in WEIGHT_FREE:
        return WEIGHT_FREE[text]()
    if text == "sscd":
        return load_packaged_sscd()
    if where and kind.removeprefix("sscd_") in PROTOCOLS:
        return load_sscd(Path(where), kind.removeprefix("sscd_"))
    if where and kind.startswith("timm/"):
        return timm_network(kind.removeprefix("timm/"), weights=Path(where))
    if where and kind == "clip":
        return clip_network(where)
    if where and kind.startswith("clip/"):
        return clip_network(kind.removeprefix("clip/"), where)
    raise ValueError(f"embedder {text!r} given; expected one of {', '.join(EMBEDDERS)}, auto or recorded")


def find_embedder(name: str) -> Embedder:
    """The embedder that a record names, found again by name and hash.

    Raises:
        FileNotFoundError: its weights are a file of the user's; says what to give, and what it must hash to.
        ImportError: its package is missing; says how to get it.

    Example:
        >>> find_embedder("structure-colour-v1").name
        'structure-colour-v1'
    """
    for make in WEIGHT_FREE.values():
        if make().name == name:
            return make()
    if pair := PAIR.fullmatch(name):
        first, second = find_embedder(pair["first"]), find_embedder(pair["second"])
        return Either(_at(first, float(pair["at"])), _at(second, float(pair["other"])))
    digest = HASH.search(name)
    if digest and name.startswith("sscd") and PACKAGED_SHA256.startswith(digest[1]):
        return load_packaged_sscd()
    protocol = next((protocol for protocol in PROTOCOLS if name.startswith(f"sscd {protocol} ")), None)
    word = f"sscd_{protocol}=FILE" if protocol else "one of " + ", ".join(EMBEDDERS)
    weights = f", the file whose sha256 starts with {digest[1]}" if digest else ""
    raise FileNotFoundError(f"the record's copy detector is {name!r}: give it with --embedder {word}{weights}")


def _at(embedder: Embedder, threshold: float) -> Embedder:
    return WithThreshold(embedder, Metric(embedder=embedder.name, threshold=threshold, source="a record"))
