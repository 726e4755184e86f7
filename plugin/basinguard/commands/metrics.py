"""`basinguard metrics SAMPLES DATA`: how many samples, made anywhere, are copies?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ..similarity.copy_detector_settings import CopyDetectorSettings


def metrics(
    samples: Path,
    data: Path,
    heldout: Path | None = None,
    base: Path | None = None,
    groups: Path | None = None,
    detector: CopyDetectorSettings = CopyDetectorSettings(),
    cache: Path | None = None,
) -> dict[str, Any]:
    """How many of these samples are copies of these training images? JSON; a summary for people goes to stderr.

    Args:
        samples: folder of generated images; those of one prompt in one subfolder.
        data: folder of training images.
        heldout: folder of like images that were not trained on: a threshold of their own, and likeness.
        base: folder of the base model's samples under the same names: another threshold, and the floor.
        groups: curation.json of `basinguard curate`, so that duplicates are known.
        detector: what decides that a sample is a copy.
        cache: folder in which the training images' embeddings are kept.
    """
    from ..similarity.duplicate_groups import duplicate_groups
    from ..similarity.folder_metrics import folder_metrics

    group_of_image = duplicate_groups(data, groups) if groups else None
    return folder_metrics(
        samples, data, detector=detector, heldout=heldout, base=base, groups=group_of_image,
        cache=cache,
    )  # fmt: skip


def show(result: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Prints JSON, and a summary for people on stderr."""
    from ..similarity.scores import metrics_lines

    print("\n".join(metrics_lines(result)), file=sys.stderr)
    print(json.dumps(result, indent=2))
