"""Images to latents and captions to what a denoiser is told, as a pipeline makes them; once each, if cached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..pipelines.families.registry import family_of
from .caption_augmentation import require_std
from .cropping import whole

TextStates = dict[str, Tensor]  # of `Family.text_states`: by name, a row for each text


@dataclass(frozen=True)
class CaptionStates:
    """What a denoiser is told of the pictures of a batch.

    Attributes:
        texts: what the text encoders say of the captions.
        sizes: of each picture and its crop, [B, 6], see `cropping.Crop.sizes`.
    """

    texts: TextStates
    sizes: Tensor

    def noised(self, std: float) -> CaptionStates:
        """With noise on everything that a text encoder said, see `add_noise`."""
        return replace(self, texts={name: add_noise(states, std) for name, states in self.texts.items()})


class EncodingCache:
    """Stores what frozen encoders return.

    Images are stored as the posterior's moments, not as a sample, so that a cached run draws the same latents as one
    that encodes every time. Main memory: 8 * h * w floats an image (128 KB at 512 px), 77 * 1024 a caption (308 KB,
    SD 2.1; 636 KB with XL).
    """

    def __init__(self) -> None:
        self._images: dict[int, Tensor] = {}
        self._captions: dict[str, TextStates] = {}

    def images(self, keys: Sequence[int], encode: Callable[[list[int]], Tensor]) -> Tensor:
        """Moments [B, 8, h, w] of the images `keys`; `encode` gets the positions in `keys` that are new."""
        new = [row for row, key in enumerate(keys) if key not in self._images]
        if new:
            self._images.update(zip((keys[row] for row in new), encode(new).cpu(), strict=True))
        return torch.stack([self._images[key] for key in keys])

    def captions(self, texts: Sequence[str], encode: Callable[[list[str]], TextStates]) -> TextStates:
        """States of `texts`; `encode` gets the texts that are new."""
        new = [text for text in dict.fromkeys(texts) if text not in self._captions]
        if new:
            encoded = {name: states.detach().cpu() for name, states in encode(new).items()}
            for row, text in enumerate(new):
                self._captions[text] = {name: states[row] for name, states in encoded.items()}
        rows = [self._captions[text] for text in texts]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def encode_images(pipe: Any, batch: dict[str, Any], cache: EncodingCache | None, device: torch.device) -> Tensor:
    """Draws latents as the sampler carries them, [B, C, h, w] in float32, from the posterior of every image.

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
    return family_of(pipe).to_sampler(pipe, mean + spread * torch.randn_like(mean))


def sizes_of(batch: dict[str, Any], device: torch.device) -> Tensor:
    """What a batch says of its pictures, [B, 6]; of a batch that says nothing, its pixels' own size."""
    sizes = batch.get("sizes")
    return (whole(batch["pixel_values"]) if sizes is None else torch.as_tensor(sizes)).to(device)


def native_sizes(pipe: Any, count: int) -> Tensor:
    """Of pictures as large as the pipeline draws them, uncropped, [count, 6]."""
    family = family_of(pipe)
    side = family.native_side(pipe)
    return torch.tensor([side, side, 0, 0, side, side], device=family.denoiser(pipe).device).expand(count, -1)


def text_states(
    pipe: Any, captions: list[str], cache: EncodingCache | None, device: torch.device, *, trained: bool
) -> TextStates:
    """What the text encoders say of captions, exactly as the pipeline makes it when it samples.

    Args:
        pipe: whose text encoders are run.
        captions: B texts.
        cache: of the states, by text, so texts that differ each time are encoded each time and all kept.
        device: of the result.
        trained: the text encoders are being trained: nothing is cached, and gradients flow.
    """
    family = family_of(pipe)
    if trained:
        return family.text_states(pipe, captions)
    with torch.no_grad():
        if cache is None:
            return family.text_states(pipe, captions)
        cached = cache.captions(captions, lambda texts: family.text_states(pipe, texts))
        return {name: states.to(device) for name, states in cached.items()}


def add_noise(embeddings: Tensor, std: float, generator: torch.Generator | None = None) -> Tensor:
    """Text embeddings [B, ...] plus Gaussian noise of standard deviation `std`, 0 or more (GN; the paper uses 0.1).

    Source: Somepalli et al., arXiv 2305.20086, section 6.
    """
    require_std(std)
    noise = torch.randn(embeddings.shape, generator=generator, device=generator.device if generator else None)
    return embeddings + std * noise.to(embeddings)
