"""`basinguard compare-images A B`: are two images the same?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def compare_images(a: Path, b: Path, picture: Path | None = None, embedder: str = "structure") -> dict[str, Any]:
    """Are these two images the same, and which part of one is in the other?

    Args:
        a: an image, such as a sample.
        b: another, such as the training image it may come from.
        picture: where to write A with the copied part marked (PNG).
        embedder: structure (no weights), structure-figure (no weights, for figures on an empty ground),
            sscd_disc_mixup_320=FILE, timm/MODEL=FILE, clip=FOLDER, ...
    """
    from ..similarity.image_pair import compare_images
    from ..similarity.registry import load_embedder

    return compare_images(a, b, embedder=load_embedder(embedder), picture=picture)


def show(comparison: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Prints JSON."""
    print(json.dumps(comparison, indent=2))
