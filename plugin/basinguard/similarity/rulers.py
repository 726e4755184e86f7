"""The feature sets that `taught` is measured in: one without weights, a small network, and any that you bring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .colour_texture import ColourTexture
from .efficientnet import INSTALL, EfficientNetLite, installed_weights
from .embedder import Embedder
from .feature_sets import FeatureSet
from .registry import load_embedder


@dataclass(frozen=True)
class EmbedderFeatures:
    """An embedder's vectors as one group of features, such as those of DINOv2 or CLIP."""

    embedder: Embedder

    @property
    def name(self) -> str:
        """Embedder and the beginning of its weights' hash."""
        return self.embedder.name

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Unit vectors [B, D] of images [B, 3, H, W] in [0, 1]."""
        return {"embedding": self.embedder(images)}


def missing_ruler() -> str:
    """What is measured less well without the extra, in words; "" where it is installed."""
    if installed_weights() is not None:
        return ""
    return f"`taught` is measured by colours and texture alone; pip install '{INSTALL}' adds a network"


def feature_sets(embedders: Sequence[str] = ()) -> tuple[FeatureSet, ...]:
    """The rulers that are here: colours and texture always, the network where the extra `taught` is installed.

    Args:
        embedders: more of them, as `registry.load_embedder` takes them, such as
            "timm/vit_small_patch14_dinov2.lvd142m=FILE" or "clip=FOLDER".

    Raises:
        FileNotFoundError: weights that are not there.
        ValueError: a word that stands for no embedder, or weights with another hash.
    """
    weights = installed_weights()
    network = () if weights is None else (EfficientNetLite(weights),)
    return (ColourTexture(), *network, *(EmbedderFeatures(load_embedder(text)) for text in embedders))
