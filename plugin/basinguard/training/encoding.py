"""Images to latents and captions to embeddings, as a pipeline makes them; once each, if they are kept."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from .latent_cache import Memo


def encode_images(
    pipe: StableDiffusionPipeline, batch: dict[str, Any], memo: Memo | None, device: torch.device
) -> Tensor:
    """Draws scaled latents, [B, 4, h, w] in float32, from the encoder's posterior of every image.

    Args:
        pipe: whose VAE encodes.
        batch: "pixel_values" [B, 3, H, W] in -1..1 and "index" [B].
        memo: keeps the posteriors by index; None encodes every time.
        device: of the result.
    """

    def moments(rows: list[int]) -> Tensor:
        pixels = batch["pixel_values"][rows].to(pipe.vae.encoder.conv_in.weight.dtype)
        with torch.no_grad():
            return pipe.vae.encode(pixels).latent_dist.parameters.float()

    keys = batch["index"].tolist() if memo is not None else list(range(len(batch["pixel_values"])))
    stored = memo.images(keys, moments) if memo is not None else moments(keys)
    # contiguous, because randn_like fills in memory order: noise must not depend on a tensor's strides
    mean, log_variance = (half.contiguous() for half in stored.to(device).chunk(2, dim=1))
    spread = torch.exp(0.5 * log_variance.clamp(-30, 20))
    return (mean + spread * torch.randn_like(mean)) * pipe.vae.config.scaling_factor


def encode_captions(
    pipe: StableDiffusionPipeline, captions: list[str], memo: Memo | None, device: torch.device, *, trained: bool
) -> Tensor:
    """Embeddings [B, tokens, width], exactly as the pipeline makes them when it samples.

    Args:
        pipe: whose text encoder is run.
        captions: B texts.
        memo: keeps the embeddings by text, so texts that differ each time are encoded each time and all kept.
        device: of the result.
        trained: the text encoder is being trained: nothing is kept, and gradients flow.
    """

    def embeddings(texts: list[str]) -> Tensor:
        return pipe.encode_prompt(texts, device, 1, False)[0]

    if trained:
        return embeddings(captions)
    with torch.no_grad():
        return embeddings(captions) if memo is None else memo.captions(captions, embeddings).to(device)
