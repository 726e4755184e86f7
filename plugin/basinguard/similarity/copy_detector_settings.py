"""Which copy detector is meant, in plain words: what a configuration or a command line says. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from torch import Tensor

    from .embedder import Embedder

Threshold = Literal["published", "neighbours", "heldout"]


@dataclass(frozen=True)
class CopyDetectorSettings:
    """Where a copy is decided.

    Args:
        embedder: what turns images into vectors, as `registry.load_embedder` takes it: "structure" (no weights),
            "sscd_disc_mixup_320=FILE", "timm/MODEL=FILE", "clip=FOLDER".
        threshold: above which similarity is a copy: the embedder's "published" one, or measured where nothing is
            copied: on "neighbours" (training images among each other) or on "heldout" images.

    Raises:
        ValueError: an unknown kind of threshold.
    """

    embedder: str = "structure"
    threshold: Threshold = "published"

    def __post_init__(self) -> None:
        if self.threshold not in get_args(Threshold):
            raise ValueError(
                f"CopyDetectorSettings(threshold={self.threshold!r}): expected one of {', '.join(get_args(Threshold))}"
            )

    def load(self) -> Embedder:
        """The embedder, with its published threshold.

        Raises:
            FileNotFoundError: its weights are missing.
            ValueError: a word that stands for none, or one without a threshold where the published one is asked for.
        """
        from .registry import load_embedder

        embedder = load_embedder(self.embedder)
        self.require_threshold(embedder)
        return embedder

    def require_threshold(self, embedder: Embedder) -> None:
        """Refuses to go by the published threshold of an embedder that has none.

        Raises:
            ValueError: nothing would ever be a copy.
        """
        from .thresholds import NO_COPY

        if self.threshold == "published" and embedder.metric.threshold >= NO_COPY:
            raise ValueError(
                f"no threshold is published for {embedder.name}: nothing would ever be a copy. Have one measured "
                "on your images with threshold='neighbours', or on held-out images with threshold='heldout'"
            )

    def fitted(self, embedder: Embedder, images: Tensor, heldout_images: Tensor | None) -> Embedder:
        """The embedder with the threshold that is asked for.

        Args:
            embedder: from `load`.
            images: training images, [N, 3, H, W] in [0, 1].
            heldout_images: [M, 3, H, W], for "heldout".

        Raises:
            ValueError: too few images, or near-duplicates among those whose likeness is to be the null.
        """
        from .thresholds import calibrated

        if self.threshold == "published":
            return embedder
        try:
            return calibrated(embedder, images, fresh=heldout_images if self.threshold == "heldout" else None)
        except ValueError as error:
            raise ValueError(
                f"threshold={self.threshold!r} cannot be measured: {error}. Or measure it on held-out images with "
                "threshold='heldout'"
            ) from error
