"""Every attack by name, and those that are known and were not built."""

from __future__ import annotations

from .attack import Attack
from .captions import CAPTIONS
from .extrapolation import EXTRAPOLATION
from .image_to_image import IMAGE_TO_IMAGE
from .inversion import INVERSION

ATTACKS: tuple[Attack, ...] = (*CAPTIONS, *IMAGE_TO_IMAGE, INVERSION, *EXTRAPOLATION)
NOT_BUILT = {
    "optimized prompts (MoFit, Dori; arXiv 2507.16880)": "a search in embedding space, a thousand updates an image",
    "further fine-tuning": "reviving what a rule or a share of the weights hides by training on other images",
    "other samplers, resolutions and step counts": "the usual ones alone were attacked",
}
