"""The open_clip model that looks at samples: does an image show its caption, does it show the training subject?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ..similarity.clip_score import ClipScore
from ..tinyworld import MODELS
from ..tinyworld.scenes import KINDS, TEXTURES


def clip_for(base: str, model: str = "auto", captions: Sequence[str] = ()) -> ClipScore | None:
    """The open_clip model for a base.

    Args:
        base: what is fine-tuned.
        model: an open_clip model directory or name; "auto" takes TinyWorld's own for TinyWorld and none otherwise,
            because any other would have to be downloaded; "none" for none.
        captions: that it is to score: TinyWorld's own knows no others than those of its scenes.
    """
    strange = base not in MODELS or not all(map(names_a_scene, captions))
    if model == "none" or (model == "auto" and strange):
        return None
    return ClipScore.load() if model == "auto" else ClipScore.load(model)


def names_a_scene(caption: str) -> bool:
    """Whether a caption names one of TinyWorld's scenes, whatever stands around it.

    Example:
        >>> names_a_scene("ohwx style, a striped kite with a hat"), names_a_scene("my cat on a sofa")
        (True, False)
    """
    return any(f"{texture} {kind}" in caption for texture in TEXTURES for kind in KINDS)


def alignment_for(base: str, model: str = "auto") -> Callable[[Tensor, Sequence[str]], Tensor] | None:
    """Scores the agreement of images and captions, by open_clip; arguments as in `clip_for`."""
    clip = clip_for(base, model)
    return None if clip is None else clip.score
