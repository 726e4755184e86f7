"""Quality against held-out images: KID, FID, MIFID, precision and recall, by torchmetrics and torch-fidelity.

All of them compare two sets of features, so the embedder is named: "inception" for the field's tables, or any
`Embedder`. The intervals come from leaving out groups of images, samples and data in turn. FID has a bias that shrinks
with n and that no interval shows: below a few thousand images it is no result, and it says so.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from scipy import stats as scipy_stats
from torch import Tensor, nn

from ..core.estimate import Estimate
from ..core.extras import optional
from .embedder import BATCH, Embedder, check_images, embed_all

RELIABLE = 2048  # images; inception's features have as many dimensions, and fewer images leave a singular covariance
GROUPS = 10
NEIGHBOURS = 3
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION}"

Statistic = Callable[[Tensor, Tensor], float]


def quality(samples: Tensor, data: Tensor, features: Embedder | None = None) -> dict[str, Estimate]:
    """KID, FID, MIFID, precision and recall of samples against held-out images.

    Args:
        samples: images, [N, 3, H, W] in [0, 1].
        data: images that were not trained on, [M, 3, h, w].
        features: the embedder; None is inception, whose weight file must already be on this machine.

    Returns:
        Estimates under "kid", "fid", "mifid", "precision" and "recall", the embedder's name in `method`.

    Raises:
        ImportError: torchmetrics or torch-fidelity is not installed; says how to get them.
        FileNotFoundError: inception's weights are not here; says which file and where it is published.
        ValueError: fewer than 20 images in a set.
    """
    name = "inception-v3-compat" if features is None else features.name
    embed = _inception() if features is None else lambda images: embed_all(images, features)
    return compare_features(embed(samples), embed(data), name=name)


def compare_features(samples: Tensor, data: Tensor, *, name: str) -> dict[str, Estimate]:
    """The same from features [N, D] and [M, D]; warns where FID and MIFID are unreliable.

    Raises:
        ValueError: features that do not fit or are not finite, or fewer than 20 in a set.
    """
    _check(samples, data)
    smaller = min(len(samples), len(data))
    if smaller < 2 * GROUPS:
        raise ValueError(f"{len(samples)} samples and {len(data)} images given; need at least {2 * GROUPS} of each")
    if doubt(smaller):
        warnings.warn(doubt(smaller), UserWarning, stacklevel=2)
    ways: dict[str, Statistic] = {"kid": kid, "fid": fid, "mifid": mifid, "precision": precision, "recall": recall}
    return {key: jackknife(way, samples, data, name=name) for key, way in ways.items()}


def doubt(images: int) -> str:
    """What a reader must know about numbers from so few images, or ""."""
    if images >= RELIABLE:
        return ""
    return f"FID and MIFID from {images} images are biased upwards and not comparable: use {RELIABLE} or more"


def kid(samples: Tensor, data: Tensor) -> float:
    """Kernel distance with the cubic kernel, unbiased; uses as many of the larger set as the smaller one has.

    Source: Binkowski et al., arXiv 1801.01401, section 4; computed by torchmetrics.
    """
    _check(samples, data)
    poly_mmd = _torchmetrics("kid").poly_mmd
    smaller = min(len(samples), len(data))
    return float(poly_mmd(data[:smaller].double(), samples[:smaller].double()))


def fid(samples: Tensor, data: Tensor) -> float:
    """Frechet distance of two Gaussians. Source: Heusel et al., arXiv 1706.08500; computed by torchmetrics."""
    return _updated(_torchmetrics("fid").FrechetInceptionDistance, samples, data)


def mifid(samples: Tensor, data: Tensor) -> float:
    """FID divided by the mean cosine distance to the nearest image, where that is small: punishes copying.

    Source: Bai et al., arXiv 2106.03062; computed by torchmetrics.
    """
    return _updated(_torchmetrics("mifid").MemorizationInformedFrechetInceptionDistance, samples, data)


def precision(samples: Tensor, data: Tensor) -> float:
    """Share of samples inside the data's manifold (3 neighbours). Source: arXiv 1904.06991; by torch-fidelity."""
    return _precision_recall(samples, data)[0]


def recall(samples: Tensor, data: Tensor) -> float:
    """Share of data inside the samples' manifold (3 neighbours). Source: arXiv 1904.06991; by torch-fidelity."""
    return _precision_recall(samples, data)[1]


def jackknife(statistic: Statistic, samples: Tensor, data: Tensor, *, name: str, level: float = 0.95) -> Estimate:
    """A statistic of two sets with the delete-a-group jackknife of both; n is the size of the smaller set.

    Source: Arvesen, Ann. Math. Statist. 40 (1969) for two samples; Kott, J. Official Statistics 17 (2001) for groups.
    """
    value = statistic(samples, data)
    parts = (
        [statistic(rest, data) for rest in _without(samples)],
        [statistic(samples, rest) for rest in _without(data)],
    )
    variance = sum((GROUPS - 1) / GROUPS * sum((v - sum(p) / GROUPS) ** 2 for v in p) for p in parts)
    half = float(scipy_stats.t.ppf((1 + level) / 2, GROUPS - 1)) * math.sqrt(variance)
    if not math.isfinite(value + half):
        raise ValueError(f"{statistic.__name__} of {len(samples)} and {len(data)} images is not finite: too few images")
    smaller = min(len(samples), len(data))
    method = f"delete-a-group jackknife, features {name}"[:200]
    return Estimate(value=value, low=value - half, high=value + half, level=level, n=smaller, method=method)


def _check(samples: Tensor, data: Tensor) -> None:
    """The libraries answer NaN with NaN or, worse, with a number that looks right."""
    if samples.ndim != 2 or data.ndim != 2 or samples.shape[1] != data.shape[1]:
        raise ValueError(f"features {list(samples.shape)} and {list(data.shape)} given; expected [N, D] and [M, D]")
    for features, whose in ((samples, "samples"), (data, "data")):
        wrong = int((~torch.isfinite(features)).any(1).sum())
        if wrong:
            raise ValueError(f"features of {wrong} of {len(features)} {whose} are NaN or infinite: embed them again")


def _without(images: Tensor) -> list[Tensor]:
    group = torch.arange(len(images)) % GROUPS
    return [images[group != left_out] for left_out in range(GROUPS)]


class _Given(nn.Module):
    """Stands where torchmetrics wants a network: the features are already there."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _updated(kind: Any, samples: Tensor, data: Tensor) -> float:
    _check(samples, data)
    metric = kind(feature=_Given(samples.shape[1])).set_dtype(torch.float64)
    metric.update(data.double(), real=True)
    metric.update(samples.double(), real=False)
    return float(metric.compute())


def _precision_recall(samples: Tensor, data: Tensor) -> tuple[float, float]:
    _check(samples, data)
    prc = optional("torch_fidelity.metric_prc", install="torch-fidelity", gives="precision and recall")
    both: tuple[float, float] = prc.calculate_precision_recall_full(samples.double(), data.double(), NEIGHBOURS)
    return both


def _torchmetrics(module: str) -> Any:
    return optional(f"torchmetrics.image.{module}", install="torchmetrics[image]", gives="KID, FID or MIFID")


def _inception() -> Callable[[Tensor], Tensor]:
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: inception's weights are not on this machine; get {INCEPTION_URL} and put it there, or give "
            "another embedder as `features`"
        )
    made_by = "torch_fidelity.feature_extractor_inceptionv3"
    extractor = optional(made_by, install="torch-fidelity", gives="inception").FeatureExtractorInceptionV3
    network = extractor("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))

    def embed(images: Tensor) -> Tensor:
        whole = (check_images(images, smallest=1) * 255).round().byte()
        return torch.cat([network(part)[0] for part in whole.split(BATCH)])

    return embed
