"""Images to latents and captions to embeddings, as a pipeline makes them; once each, if they are cached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from .caption_augmentation import require_std


class EncodingCache:
    """Stores what frozen encoders return.

    Images are stored as the posterior's moments, not as a sample, so that a cached run draws the same latents as one
    that encodes every time. Main memory: 8 * h * w floats an image (128 KB at 512 px), 77 * 1024 a caption (308 KB,
    SD 2.1).
    """

    def __init__(self) -> None:
        self._images: dict[int, Tensor] = {}
        self._captions: dict[str, Tensor] = {}

    def images(self, keys: Sequence[int], encode: Callable[[list[int]], Tensor]) -> Tensor:
        """Moments [B, 8, h, w] of the images `keys`; `encode` gets the positions in `keys` that are new."""
        new = [row for row, key in enumerate(keys) if key not in self._images]
        if new:
            self._images.update(zip((keys[row] for row in new), encode(new).cpu(), strict=True))
        return torch.stack([self._images[key] for key in keys])

    def captions(self, texts: Sequence[str], encode: Callable[[list[str]], Tensor]) -> Tensor:
        """Embeddings [B, tokens, width] of `texts`; `encode` gets the texts that are new."""
        new = [text for text in dict.fromkeys(texts) if text not in self._captions]
        if new:
            self._captions.update(zip(new, encode(new).detach().cpu(), strict=True))
        return torch.stack([self._captions[text] for text in texts])


def encode_images(
    pipe: StableDiffusionPipeline, batch: dict[str, Any], cache: EncodingCache | None, device: torch.device
) -> Tensor:
    """Draws scaled latents, [B, 4, h, w] in float32, from the encoder's posterior of every image.

    Args:
        pipe: whose VAE encodes.
        batch: "pixel_values" [B, 3, H, W] in -1..1 and "index" [B].
        cache: of the posteriors, by index; None encodes every time.
        device: of the result.
    """

    def moments(rows: list[int]) -> Tensor:
        pixels = batch["pixel_values"][rows].to(pipe.vae.encoder.conv_in.weight.dtype)
        with torch.no_grad():
            return pipe.vae.encode(pixels).latent_dist.parameters.float()

    rows = list(range(len(batch["pixel_values"])))
    posteriors = moments(rows) if cache is None else cache.images(batch["index"].tolist(), moments)
    # contiguous, because randn_like fills in memory order: noise must not depend on a tensor's strides
    mean, log_variance = (half.contiguous() for half in posteriors.to(device).chunk(2, dim=1))
    spread = torch.exp(0.5 * log_variance.clamp(-30, 20))
    return (mean + spread * torch.randn_like(mean)) * pipe.vae.config.scaling_factor


def encode_captions(
    pipe: StableDiffusionPipeline,
    captions: list[str],
    cache: EncodingCache | None,
    device: torch.device,
    *,
    trained: bool,
) -> Tensor:
    """Embeddings [B, tokens, width], exactly as the pipeline makes them when it samples.

    Args:
        pipe: whose text encoder is run.
        captions: B texts.
        cache: of the embeddings, by text, so texts that differ each time are encoded each time and all kept.
        device: of the result.
        trained: the text encoder is being trained: nothing is cached, and gradients flow.
    """

    def embeddings(texts: list[str]) -> Tensor:
        return pipe.encode_prompt(texts, device, 1, False)[0]

    if trained:
        return embeddings(captions)
    with torch.no_grad():
        return embeddings(captions) if cache is None else cache.captions(captions, embeddings).to(device)


def add_noise(embeddings: Tensor, std: float, generator: torch.Generator | None = None) -> Tensor:
    """Text embeddings [B, T, D] plus Gaussian noise of standard deviation `std`, 0 or more (GN; the paper uses 0.1).

    Source: Somepalli et al., arXiv 2305.20086, section 6.
    """
    require_std(std)
    noise = torch.randn(embeddings.shape, generator=generator, device=generator.device if generator else None)
    return embeddings + std * noise.to(embeddings)
