"""Pairs to be judged, as one self-contained HTML page: opens offline, loads nothing, sends nothing.

The page does not say what the detector thinks of a pair, and shows the pairs in an order that does not tell either.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ..core.html import render_template, thumbnail_uri
from ..plots.contact_sheet import to_image

THUMB = 320  # pixels on the longer side


def render_judge_page(title: str, fingerprint: str, samples: Sequence[Tensor], training: Sequence[Tensor]) -> str:
    """The page; samples and training images are pairs [3, H, W] in [0, 1], numbered in the order given.

    The fingerprint of the pairs goes into what the page writes: the numbers mean nothing without it.
    """
    order = np.random.default_rng(0).permutation(len(samples)).tolist()
    pairs = [(k, *(thumbnail_uri(to_image(i[k]), THUMB) for i in (samples, training))) for k in order]
    return render_template(__package__, "judge.html.jinja", title=title, fingerprint=fingerprint, pairs=pairs)
