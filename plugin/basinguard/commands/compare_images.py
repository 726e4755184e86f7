"""`basinguard compare-images A B`: are two images the same?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..similarity.copy_detector_settings import CopyDetectorSettings


def compare_images(
    a: Path, b: Path, picture: Path | None = None, detector: CopyDetectorSettings = CopyDetectorSettings()
) -> dict[str, Any]:
    """Are these two images the same, and which part of one is in the other?

    Args:
        a: an image, such as a sample.
        b: another, such as the training image it may come from.
        picture: where to write A with the copied part marked (PNG).
        detector: what decides that they are the same; two images have no neighbours to measure a threshold on.
    """
    from ..similarity.detector_loading import load_detector
    from ..similarity.image_pair import compare_pair

    if detector.threshold in ("neighbours", "heldout"):
        raise ValueError(f"threshold={detector.threshold!r}: two images have no neighbours; give a number")
    return compare_pair(a, b, embedder=load_detector(detector), picture=picture)


def show(comparison: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Prints JSON."""
    print(json.dumps(comparison, indent=2))
