"""Images and captions of somebody's own DataLoader: read once, as the training reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from .isolation import same_streams
from .pixel_checks import require_centred_pixels

PIXELS = ("pixel_values", "images", "image", "instance_images")
CAPTIONS = ("caption", "captions", "text", "texts", "prompt", "prompts")
TOKENS = ("input_ids", "instance_prompt_ids")


class LoaderImages:
    """A DataLoader as `CaptionedImages`, in the order of its dataset; random streams stay as they were.

    Its batches are mappings or sequences. As names go, pixels are "pixel_values", "images" or "image", captions are
    "caption", "text" or "prompt", or tokens "input_ids", which the tokenizer reads back; of a sequence they are the
    first two. Pixels are in -1..1. Where the dataset crops or flips at random, what one reading gives is compared.

    Args:
        loader: over a dataset that can be indexed.
        tokenizer: of the model that is trained.

    Raises:
        ValueError: a dataset without a length or an index, a batch without pixels or captions, or pixels in another
            range.
    """

    def __init__(self, loader: DataLoader, tokenizer: Any = None) -> None:
        self.loader, self.tokenizer = loader, tokenizer
        if isinstance(loader.dataset, IterableDataset) or not hasattr(loader.dataset, "__len__"):
            raise ValueError(
                "the guard cannot read the images of an iterable dataset, which has no order; train on an ImageFolder, "
                "or give a datamodule with `items` and `all_pixels` (see basinguard.training.protocols)"
            )

    @cached_property
    def items(self) -> tuple[tuple[str, str], ...]:
        """(name, caption) of every image."""
        return tuple((f"image {index}", caption) for index, (_, caption) in enumerate(self._read))

    def all_pixels(self) -> Tensor:
        """Every image, [N, 3, H, W] in 0..1.

        Raises:
            ValueError: pixels outside -1..1, or images of several sizes.
        """
        pixels = [image for image, _ in self._read]
        sizes = {tuple(image.shape) for image in pixels}
        if len(sizes) > 1:
            raise ValueError(
                f"the DataLoader's images have {len(sizes)} sizes, such as {sorted(sizes)[:2]}; the guard compares at "
                "one: give a datamodule with `items` and `all_pixels`"
            )
        stacked = torch.stack(pixels)
        require_centred_pixels(stacked)
        return (stacked + 1) / 2

    @cached_property
    def _read(self) -> list[tuple[Tensor, str]]:
        with same_streams():
            return list(self._each())

    def _each(self) -> Iterator[tuple[Tensor, str]]:
        dataset, collate = self.loader.dataset, self.loader.collate_fn
        for index in range(len(dataset)):  # type: ignore[arg-type]
            batch = collate([dataset[index]])
            if isinstance(batch, Mapping):
                yield self._named(batch)
            elif isinstance(batch, Sequence) and len(batch) > 1:
                yield self._pair(batch[0], batch[1])
            else:
                raise ValueError(f"a batch of the DataLoader is a {type(batch).__name__}, expected a mapping or a pair")

    def _named(self, batch: Mapping[str, Any]) -> tuple[Tensor, str]:
        pixels = next((batch[name] for name in PIXELS if name in batch), None)
        caption = next((batch[name] for name in (*CAPTIONS, *TOKENS) if name in batch), None)
        return self._pair(pixels, caption, batch)

    def _pair(self, pixels: Any, caption: Any, batch: Mapping[str, Any] = {}) -> tuple[Tensor, str]:
        if isinstance(caption, Tensor) and self.tokenizer is not None:
            caption = self.tokenizer.batch_decode(caption, skip_special_tokens=True)
        if not isinstance(pixels, Tensor) or pixels.ndim != 4 or not caption or not isinstance(caption[0], str):
            names = f" with {', '.join(batch)}" if batch else ""
            raise ValueError(
                f"a batch of the DataLoader{names}: expected pixels [B, 3, H, W] as one of {', '.join(PIXELS[:3])} and "
                f"texts as one of {', '.join(CAPTIONS[::2])}, or tokens as {TOKENS[0]}"
            )
        return pixels[0].float().cpu(), caption if isinstance(caption, str) else caption[0]
