"""The weights that a record is about, made from the fine-tune that it was calibrated on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..core.record import Record
from ..exports.fingerprints import weights_sha256
from .interpolation import Blend
from .loading import load_pipeline

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


@contextmanager
def with_product_weights(pipe: StableDiffusionPipeline, record: Record) -> Iterator[None]:
    """Inside, a pipeline holds the record's share of its fine-tune, or what a filter leaves; one that does stays so.

    Args:
        pipe: the whole fine-tune, without adapters, or the product itself.
        record: of the product; its base is loaded where the fine-tune is to be changed.

    Raises:
        FileNotFoundError: the base model is not where the record says.
        ValueError: the base has other layers.
    """
    product = record.product
    if product.whole or weights_sha256(pipe) != product.tuned_sha256:
        yield
        return
    with Blend(pipe, load_pipeline(record.base)).at(product.strength, product.update_filter):
        yield
