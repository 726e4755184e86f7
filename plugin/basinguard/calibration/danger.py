"""How dangerous each searched product is, for an order that few samples cannot upset.

A larger share of a fine-tune copies no less in the mean, yet among 16 samples it often seems to: copies are made
monotone in the share, by pooling neighbours that violate it. Any order is valid for the proof, which has samples of its
own; a better one only wastes fewer of them.

Source: isotonic regression, pool adjacent violators (Barlow et al. 1972), by scipy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from scipy.optimize import isotonic_regression

from .candidate import Product, ProductCandidate

Danger = tuple[float, float]  # share of copies; of products that copy alike, how near they come to training images


def dangers(tried: Sequence[ProductCandidate]) -> Mapping[Product, Danger]:
    """The danger of each product beside its neighbours of the same epoch, rule and filter.

    Args:
        tried: in the search, in any order.
    """
    series = defaultdict(list)
    for candidate in tried:
        product = candidate.product
        series[product.epoch, product.guidance, product.strength_schedule, product.update_filter].append(candidate)
    order: dict[Product, Danger] = {}
    for candidates in series.values():
        candidates.sort(key=lambda c: c.product.strength)
        pooled = isotonic_regression([c.risk.value for c in candidates]).x
        order |= {c.product: (float(risk), c.nearest) for c, risk in zip(candidates, pooled, strict=True)}
    return order
