"""Which copy detector is meant, in plain words: what a configuration or a command line says. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from ..core.metric import Metric

if TYPE_CHECKING:
    from torch import Tensor

    from .embedder import Embedder

Null = Literal["published", "neighbours", "heldout", "recorded"]
EMBEDDERS = (
    "structure",
    "structure-figure",
    "sscd",
    "sscd_disc_mixup_320=FILE",
    "sscd_disc_mixup_288=FILE",
    "sscd_disc_large_224=FILE",
    "timm/MODEL=FILE",
    "clip=FOLDER",
    "clip/MODEL=TAG-OR-FILE",
)


@dataclass(frozen=True)
class CopyDetectorSettings:
    """What decides that an image is a copy; the same in every command and adapter.

    Args:
        embedder: what turns images into vectors: "structure" (no weights), "structure-figure" (no weights, for figures
            on an empty ground), "sscd" (of the extra basinguard[sscd]), "sscd_disc_mixup_320=FILE" and the other SSCD
            protocols (a state dict or ONNX), "timm/MODEL=FILE", "clip=FOLDER", "clip/MODEL=TAG-OR-FILE"; or
            "recorded": the one that the model's record names, found again by name and hash.
        threshold: similarity from which on an image is a copy: a number, the embedder's "published" one, the
            "recorded" one, or measured where nothing is copied: on "neighbours" (training images among each other) or
            on "heldout" images.

    Raises:
        ValueError: an unknown kind of threshold.
    """

    embedder: str = "structure"
    threshold: Null | float = "published"

    def __post_init__(self) -> None:
        if isinstance(self.threshold, str) and self.threshold not in get_args(Null):
            raise ValueError(
                f"threshold={self.threshold!r}: expected one of {', '.join(get_args(Null))}, or a number in (0, 1]"
            )
        if not isinstance(self.threshold, str) and not 0 < self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold}: expected a similarity in (0, 1]")

    def load(self) -> Embedder:
        """The embedder, with its published threshold or the number that is given.

        Raises:
            FileNotFoundError: its weights are missing.
            ImportError: its package is; says what to install.
            ValueError: a word that stands for none, one without a threshold where the published one is asked for, or
                "recorded" where there is no record.
        """
        from .registry import load_embedder

        if "recorded" in (self.embedder, self.threshold):
            raise ValueError(
                f"embedder={self.embedder!r}, threshold={self.threshold!r}: there is no record here to go by; name an "
                f"embedder ({', '.join(EMBEDDERS)}) and a threshold (published, neighbours, heldout, or a number)"
            )
        embedder = load_embedder(self.embedder)
        self.require_threshold(embedder)
        return self._given(embedder)

    def load_recorded(self, record: Metric) -> Embedder:
        """The embedder of a record, or another one where these settings name it.

        Raises:
            FileNotFoundError, ImportError: it is not on this machine; says what to install or to give.
            ValueError: the record's threshold is asked for, but not its embedder.
        """
        from .embedder import WithThreshold
        from .registry import find_embedder, load_embedder

        embedder = find_embedder(record.embedder) if self.embedder == "recorded" else load_embedder(self.embedder)
        if self.threshold != "recorded":
            self.require_threshold(embedder)
            return self._given(embedder)
        if embedder.name != record.embedder:
            raise ValueError(
                f"the record's threshold {record.threshold:g} belongs to {record.embedder!r}, this is "
                f"{embedder.name!r}: what one calls a copy says nothing about the other; also give --threshold"
            )
        return WithThreshold(embedder, record)

    def _given(self, embedder: Embedder) -> Embedder:
        from .embedder import WithThreshold

        if isinstance(self.threshold, str):
            return embedder
        return WithThreshold(embedder, Metric(embedder=embedder.name, threshold=self.threshold, source="given"))

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
            ValueError: no held-out images, too few images, or near-duplicates among those whose likeness is to be the
                null.
        """
        from .thresholds import calibrated

        if self.threshold not in ("neighbours", "heldout"):
            return embedder
        if self.threshold == "heldout" and heldout_images is None:
            raise ValueError("threshold='heldout': there are no held-out images here; give some, or 'neighbours'")
        try:
            return calibrated(embedder, images, fresh=heldout_images if self.threshold == "heldout" else None)
        except ValueError as error:
            raise ValueError(
                f"threshold={self.threshold!r} cannot be measured: {error}. Or measure it on held-out images with "
                "threshold='heldout'"
            ) from error


RECORDED = CopyDetectorSettings("recorded", "recorded")
