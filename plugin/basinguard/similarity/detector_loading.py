"""The embedder that settings or a record name, with the threshold that is asked for."""

from __future__ import annotations

from torch import Tensor

from ..core.metric import Metric
from .copy_detector_settings import AUTO, CopyDetectorSettings
from .detector_choice import ModelEdits, choose_detector, installed_embedders
from .embedder import Embedder, WithThreshold
from .registry import EMBEDDERS, find_embedder, load_embedder
from .thresholds import NO_COPY, calibrated


def load_detector(settings: CopyDetectorSettings) -> Embedder:
    """The embedder, with its published threshold or the number that is given.

    Raises:
        FileNotFoundError: its weights are missing.
        ImportError: its package is; says what to install.
        ValueError: a word that stands for none, one without a threshold where the published one is asked for, or
            "recorded" where there is no record.
    """
    if "recorded" in (settings.embedder, settings.threshold):
        raise ValueError(
            f"embedder={settings.embedder!r}, threshold={settings.threshold!r}: there is no record here to go by; "
            f"name an embedder ({', '.join(EMBEDDERS)}) and a threshold (published, neighbours, heldout, or a number)"
        )
    if settings.embedder == AUTO:
        return installed_embedders()[0]  # until `fitted_embedder` has images to choose on
    embedder = load_embedder(settings.embedder)
    require_threshold(settings, embedder)
    return _given(settings, embedder)


def load_recorded(settings: CopyDetectorSettings, record: Metric) -> Embedder:
    """The embedder of a record, or another one where these settings name it.

    Raises:
        FileNotFoundError, ImportError: it is not on this machine; says what to install or to give.
        ValueError: the record's threshold is asked for, but not its embedder.
    """
    if "recorded" not in (settings.embedder, settings.threshold):
        return load_detector(settings)
    embedder = find_embedder(record.embedder) if settings.embedder == "recorded" else load_embedder(settings.embedder)
    if settings.threshold != "recorded":
        require_threshold(settings, embedder)
        return _given(settings, embedder)
    if embedder.name != record.embedder:
        raise ValueError(
            f"the record's threshold {record.threshold:g} belongs to {record.embedder!r}, this is "
            f"{embedder.name!r}: what one calls a copy says nothing about the other; also give --threshold"
        )
    return WithThreshold(embedder, record)


def _given(settings: CopyDetectorSettings, embedder: Embedder) -> Embedder:
    if isinstance(settings.threshold, str):
        return embedder
    return WithThreshold(embedder, Metric(embedder=embedder.name, threshold=settings.threshold, source="given"))


def require_threshold(settings: CopyDetectorSettings, embedder: Embedder) -> None:
    """Refuses to go by the published threshold of an embedder that has none.

    Raises:
        ValueError: nothing would ever be a copy.
    """
    if settings.threshold == "published" and embedder.metric.threshold >= NO_COPY:
        raise ValueError(
            f"no threshold is published for {embedder.name}: nothing would ever be a copy. Have one measured "
            "on your images with threshold='neighbours', or on held-out images with threshold='heldout'"
        )


def fitted_embedder(
    settings: CopyDetectorSettings,
    embedder: Embedder,
    images: Tensor,
    heldout_images: Tensor | None,
    model_edits: ModelEdits | None = None,
) -> Embedder:
    """The embedder with the threshold that is asked for.

    Args:
        settings: which threshold.
        embedder: from `load_detector`.
        images: training images, [N, 3, H, W] in [0, 1].
        heldout_images: [M, 3, H, W], for "heldout" and "auto".
        model_edits: the model's own, for "auto", see `pipelines.model_edits`.

    Raises:
        ValueError: no held-out images, too few images, or near-duplicates among those whose likeness is to be the
            null.
    """
    if settings.embedder == AUTO:
        return choose_detector(images, heldout=heldout_images, model_edits=model_edits)[0]
    if settings.threshold not in ("neighbours", "heldout"):
        return embedder
    if settings.threshold == "heldout" and heldout_images is None:
        raise ValueError("threshold='heldout': there are no held-out images here; give some, or 'neighbours'")
    try:
        return calibrated(embedder, images, fresh=heldout_images if settings.threshold == "heldout" else None)
    except ValueError as error:
        raise ValueError(
            f"threshold={settings.threshold!r} cannot be measured: {error}. Or measure it on held-out images with "
            "threshold='heldout'"
        ) from error
