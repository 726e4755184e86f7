"""What the quality of samples is measured against: held-out images, or the base model's own samples."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..basin.plain_run import run_plain
from ..basin.trajectories import Pairs
from ..calibration.trial import calibration_pairs
from ..core import seeds as seed_table
from ..core.images import load_rgb
from ..diffusion.model import Model
from ..guard.guard import Guard
from ..pipelines.latent_model import LatentModel
from ..pipelines.loading import load_pipeline
from ..similarity.image_files import image_paths
from ..similarity.kernel_distance import FEWEST, KernelDistance
from ..training.data_sources import fitted
from .session import Session


def quality_for(session: Session, pairs: int, heldout: Path | None = None) -> KernelDistance | None:
    """How far samples are from images the model was not trained on, in the eyes of the model that scores captions.

    Never the training images: who comes close to those copies.

    Args:
        session: the model; its `clip` is the eye.
        pairs: how many samples of the base model to draw where there are no held-out images.
        heldout: folder of images of the same kind that were not trained on; they count as random draws.

    Returns:
        The distance; None without an eye, or with neither held-out images nor a base.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: held-out images without an eye, too few of them, or a training image among them.
    """
    if session.clip is None:
        if heldout is not None:
            raise ValueError(f"heldout={heldout}: quality needs a model that looks at images; give alignment=MODEL too")
        return None
    if heldout is not None:
        images, what, groups = _heldout_images(session, heldout), "held-out images", None
    elif session.provenance.base:
        images, groups = base_samples(session, max(pairs, FEWEST))
        what = "samples of the base model"
    else:
        return None
    return KernelDistance.to_images(session.clip.embed_images, images, name=session.clip.name, what=what, groups=groups)


@torch.no_grad()
def base_samples(session: Session, pairs: int) -> tuple[Tensor, Tensor | None]:
    """What the base model draws of the training captions with plain CFG.

    Returns:
        Images [N, 3, H, W], and their captions' indices [N]; None where the captions are random draws.
    """
    base = LatentModel(load_pipeline(session.provenance.base))
    captions = len(session.guard.training.captions)
    drawn = calibration_pairs(captions, pairs, base.latent_shape, seed_table.QUALITY_REFERENCE)
    return plain_samples(session.guard, base, drawn), drawn.prompt if pairs >= captions else None


def plain_samples(guard: Guard, model: Model, pairs: Pairs) -> Tensor:
    """Images of the training captions by plain CFG, [N, 3, H, W]."""
    return model.decode(run_plain(guard.guided_model(model, guard.training.captions), pairs).ends)


def _heldout_images(session: Session, folder: Path) -> Tensor:
    trained = {image.numpy().tobytes() for image in session.guard.training.images}
    found = []
    for path in image_paths(folder):
        image = fitted(load_rgb(path), session.model.resolution)
        if image.numpy().tobytes() in trained:
            raise ValueError(f"{path}: is a training image as well; held-out images must not have been trained on")
        found.append(image)
    if len(found) < FEWEST:
        raise ValueError(f"{folder}: {len(found)} images; quality needs at least {FEWEST}")
    return torch.stack(found)
