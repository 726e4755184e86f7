"""Is this the base model of that fine-tune? A fine-tune stays near its base; the weights of another model do not."""

from __future__ import annotations

from typing import Any

import torch

from .families.registry import tuned_parts

RELATED = (
    0.8  # correlation of all weights; a fine-tune's is above 0.99, that of two trainings of one architecture near 0
)


def weight_correlation(tuned: Any, base: Any) -> float:
    """Cosine between the weights of two pipelines, over every matrix and kernel of UNet and text encoder, in [-1, 1].

    Biases and norms are left out: they are near 0 and 1 in every model.

    Raises:
        ValueError: the two have other layers.
    """
    product = here = there = 0.0
    for name in tuned_parts(tuned):
        own, other = getattr(tuned, name).state_dict(), getattr(base, name).state_dict()
        for key, weight in own.items():
            if key not in other or other[key].shape != weight.shape:
                raise ValueError(f"{name}: {key!r} is not the same layer in the model and the base it is said to have")
            if weight.ndim >= 2 and weight.is_floating_point():
                a, b = weight.detach().double().flatten(), other[key].detach().to(weight.device).double().flatten()
                product, here, there = product + float(a @ b), here + float(a @ a), there + float(b @ b)
    return product / max((here * there) ** 0.5, torch.finfo(torch.float64).tiny)


def require_base(tuned: Any, base: Any, name: str) -> None:
    """Refuses a base that the model was not fine-tuned from.

    Raises:
        ValueError: their weights are unrelated.
    """
    correlation = weight_correlation(tuned, base)
    if correlation < RELATED:
        raise ValueError(
            f"base {name!r}: not what this model was fine-tuned from: their weights correlate by {correlation:.2f}, a "
            f"fine-tune and its base by more than {RELATED:g}; give the model that training began with"
        )
