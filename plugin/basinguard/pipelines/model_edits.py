"""What the very model does to a picture that it copies: its autoencoder's loss, and a re-draw from partial noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..basin.trajectories import GuidedModel, run_branch
from ..core import seeds as seed_table
from ..diffusion.sampling import draw_noise
from ..exports.fingerprints import weights_sha256
from ..similarity.copy_detector_settings import AUTO, CopyDetectorSettings
from ..similarity.detector_choice import ModelEdits
from .latent_model import LatentModel, smaller_side

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

TIMESTEPS = 20  # of a re-draw's grid
REDRAWN = 0.25  # share of them that is drawn anew
BATCH = 8


def edits_asked_for(detector: CopyDetectorSettings, pipe: StableDiffusionPipeline, images: Tensor) -> ModelEdits | None:
    """What "auto" is to see a pipeline do to images [N, 3, H, W]; None for any other detector, which needs none."""
    if detector.embedder != AUTO:
        return None
    return model_edits(LatentModel(pipe, resolution=smaller_side(pipe, images)))


def model_edits(model: LatentModel) -> ModelEdits:
    """The model's own edits, by name; images [B, 3, H, W] at its resolution in and out.

    A re-draw adds the noise of a quarter of the way and samples back without a prompt.
    """
    guided = GuidedModel(model.denoiser([""]), model.schedule, model.schedule.grid(TIMESTEPS), scale=1.0)

    def through_autoencoder(images: Tensor) -> Tensor:
        return torch.cat([model.decode(model.encode(part)) for part in images.split(BATCH)])

    def redrawn(images: Tensor) -> Tensor:
        return torch.cat([model.decode(_redraw(guided, model.encode(part).cpu())) for part in images.split(BATCH)])

    edits = {"autoencoder": through_autoencoder, f"re-draw {REDRAWN:.0%}": redrawn}
    return ModelEdits(edits, weights_sha256(model.pipe))


def _redraw(guided: GuidedModel, latents: Tensor) -> Tensor:
    index = round((1 - REDRAWN) * len(guided.timesteps))
    timestep = guided.timesteps[index]
    noise = draw_noise([seed_table.REDRAW + k for k in range(len(latents))], tuple(latents.shape[1:]))
    noisy = guided.schedule.signal(timestep).float() * latents + guided.schedule.noise(timestep).float() * noise
    state = guided.path.begin(noisy)
    rows = torch.zeros(len(latents), dtype=torch.long)
    return run_branch(guided, state, rows, rows + index)
