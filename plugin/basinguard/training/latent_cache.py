"""Encoded images and captions, kept in memory so that each is encoded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Memo:
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
