"""CLiD: a model that was fitted to (image, caption) pairs loses more than others when the caption is taken away.

Source: Zhai et al., "Membership Inference on Text-to-Image Diffusion Models via Conditional Likelihood Discrepancy",
arXiv 2405.14800 (NeurIPS 2024). Captions are reduced to each of their thirds and to nothing; thirds are of words here,
of characters in the released code, whose cuts fall within words.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

WEIGHT = 0.9  # of the gap beside the loss; the paper chooses it on a shadow model


def reduced_captions(caption: str) -> tuple[str, str, str, str]:
    """Each third of a caption's words, and no caption at all.

    Example:
        >>> reduced_captions("a red kite over a lake")
        ('a red', 'kite over', 'a lake', '')
        >>> reduced_captions("kite")
        ('', '', 'kite', '')
    """
    words = caption.split()
    cuts = [len(words) * k // 3 for k in range(4)]
    first, second, third = (" ".join(words[cuts[k] : cuts[k + 1]]) for k in range(3))
    return first, second, third, ""


def conditional_gap(reduced: ArrayLike, loss: ArrayLike) -> NDArray:
    """How much worse an image is denoised under reduced captions than under its own, [N].

    Args:
        reduced: loss under each reduced caption, [N, R].
        loss: under the image's own caption, [N].

    Source: arXiv 2405.14800, the indicator CLiD, mean over the reduced captions.
    """
    return np.asarray(reduced, float).mean(1) - np.asarray(loss, float)


def robustly_scaled(values: ArrayLike) -> NDArray:
    """Values less their median, in units of their interquartile range, [N]; all 0 where they do not differ."""
    v = np.asarray(values, float)
    low, middle, high = np.quantile(v, [0.25, 0.5, 0.75])
    return (v - middle) / (high - low) if high > low else np.zeros_like(v)


def blended(gap: ArrayLike, loss: ArrayLike, weight: float = WEIGHT) -> NDArray:
    """The gap and the negative loss, each robustly scaled over all images that are judged, as one score, [N].

    Source: arXiv 2405.14800, the threshold attack.
    """
    return weight * robustly_scaled(gap) + (1 - weight) * robustly_scaled(-np.asarray(loss, float))
