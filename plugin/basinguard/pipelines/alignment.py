"""The open_clip model that looks at samples: does an image show its caption, does it show the training subject?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ..similarity.clip_score import ClipScore
from .loading import TINYWORLD


def clip_for(base: str, model: str = "auto") -> ClipScore | None:
    """The open_clip model for a base.

    Args:
        base: what is fine-tuned.
        model: an open_clip model directory or name; "auto" takes TinyWorld's own for TinyWorld and none otherwise,
            because any other would have to be downloaded; "none" for none.
    """
    if model == "none" or (model == "auto" and base != TINYWORLD):
        return None
    return ClipScore.load() if model == "auto" else ClipScore.load(model)


def alignment_for(base: str, model: str = "auto") -> Callable[[Tensor, Sequence[str]], Tensor] | None:
    """Scores the agreement of images and captions, by open_clip; arguments as in `clip_for`."""
    clip = clip_for(base, model)
    return None if clip is None else clip.score
