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
    manifest: str = "",
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
        manifest: a curated manifest of the training images, if that says which of the folder they are.
        detector: what decides that a sample is a copy.
        cache: folder in which the training images' embeddings are kept.
    """
    from ..similarity.duplicate_groups import duplicate_groups
    from ..similarity.folder_metrics import folder_metrics

    only = _kept(data, manifest) if manifest else None
    group_of_image = duplicate_groups(data, groups, only) if groups else None
    return folder_metrics(
        samples, data, detector=detector, heldout=heldout, base=base, groups=group_of_image,
        only=only, cache=cache,
    )  # fmt: skip


def _kept(data: Path, manifest: str) -> frozenset[str]:
    """Names of the images that a manifest keeps.

    Raises:
        FileNotFoundError: no such manifest.
        ValueError: it names images that are not there any more, or are others now.
    """
    from ..curation.manifest import changed_images, find_manifest, read_manifest

    rows = read_manifest(find_manifest(data, manifest))
    if changed := changed_images(rows, data):
        raise ValueError(
            f"{manifest}: {len(changed)} of {len(rows)} images are gone or changed, such as {changed[0]}; curate again"
        )
    return frozenset(row.file_name for row in rows)


def show(result: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Prints JSON, and a summary for people on stderr."""
    from ..similarity.scores import metrics_lines

    print("\n".join(metrics_lines(result)), file=sys.stderr)
    print(json.dumps(result, indent=2))
