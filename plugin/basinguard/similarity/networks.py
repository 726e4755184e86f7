"""Embedders that are networks: a frozen triple of weights, preprocessing and threshold.

DINO and DINOv2 by timm, CLIP's image tower by open_clip, any ONNX file; SSCD is in `sscd`. None of the first three has
a published copy threshold, so theirs is 1 (nothing is a copy) until `similarity.null` measured one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..records import Metric
from .embed import check_images, unit
from .extras import optional
from .files import sha256_of
from .prepare import Preprocessing

NO_THRESHOLD = "no threshold is published for this embedder: measure one with basinguard.similarity.null"


@dataclass(frozen=True)
class Network:
    """Weights, preprocessing and threshold, under one name.

    Attributes:
        metric: name, threshold, and where the threshold comes from.
        preprocessing: what happens to images before the network sees them.
        network: images as prepared, [B, 3, h, w], to vectors [B, D].
    """

    metric: Metric
    preprocessing: Preprocessing
    network: Callable[[Tensor], Tensor]

    @property
    def name(self) -> str:
        """Embedder, weights and version."""
        return self.metric.embedder

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Unit vectors [B, D] of images [B, 3, H, W] in [0, 1]."""
        return unit(self.network(self.preprocessing(check_images(images))).float().cpu())

    def with_threshold(self, metric: Metric) -> Network:
        """The same eye with another threshold.

        Raises:
            ValueError: the threshold was measured for another embedder.
        """
        if metric.embedder != self.name:
            raise ValueError(f"the threshold belongs to {metric.embedder}, this is {self.name}: measure one for it")
        return replace(self, metric=metric)


def on_device(module: torch.nn.Module, device: str) -> Callable[[Tensor], Tensor]:
    """A frozen module as a function that takes tensors from anywhere."""
    frozen = module.eval().requires_grad_(False).to(device)
    return lambda images: frozen(images.to(device))


def timm_network(model: str, *, weights: Path | None = None, device: str = "cpu") -> Network:
    """DINO, DINOv2 or any other timm model without its classifier.

    Args:
        model: timm's name, such as "vit_small_patch16_224.dino" or "vit_small_patch14_dinov2.lvd142m".
        weights: a safetensors file; None asks the Hub (which is the network).
        device: where to run it.

    Raises:
        ValueError: timm does not know the model, or the file is of another one.
        FileNotFoundError: no such file.
    """
    timm = optional("timm", install="timm", gives="DINO")
    if not timm.is_model(model):
        raise ValueError(f"timm knows no model {model!r}; see timm.list_models()")
    built = timm.create_model(model, pretrained=weights is None, num_classes=0)
    label = f"timm {model}"
    if weights is not None:
        _load(built, weights, wanted=f"{model} by timm, as safetensors, from its page on the Hub (timm/{model})")
        label += f" sha256:{sha256_of(weights)[:12]}"
    metric = Metric(embedder=label, threshold=1.0, source=NO_THRESHOLD)
    return Network(metric, Preprocessing.of_timm(built), on_device(built, device))


def clip_network(model: str | Path, pretrained: str | None = None, *, device: str = "cpu") -> Network:
    """The image tower of any open_clip model (CLIP-I); arguments as in `alignment.ClipScore.load`."""
    from .alignment import ClipScore

    clip = ClipScore.load(model, pretrained, device=device)
    metric = Metric(embedder=f"{clip.name} image", threshold=1.0, source=NO_THRESHOLD)
    tower = clip.model.visual
    return Network(metric, Preprocessing.of_open_clip(tower), on_device(tower, device))


def onnx_network(path: Path, preprocessing: Preprocessing, *, metric: Metric | None = None) -> Network:
    """Any ONNX file with one image input and one vector output, such as an exported SSCD.

    Raises:
        FileNotFoundError: no such file.
        ImportError: onnxruntime is not installed; says how to get it.
        ValueError: the file does not take one image tensor.
    """
    session = _onnx_session(path)
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        shapes = [list(i.shape) for i in inputs]
        raise ValueError(f"{path} takes inputs of shape {shapes}; expected one image tensor [B, 3, h, w]")
    label = f"onnx {path.stem} sha256:{sha256_of(path)[:12]}"
    metric = metric or Metric(embedder=label, threshold=1.0, source=NO_THRESHOLD)

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {inputs[0].name: images.numpy()})[0])

    return Network(metric, preprocessing, run)


def _onnx_session(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such ONNX file")
    runtime = optional("onnxruntime", install="onnxruntime", gives="an ONNX embedder")
    return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _load(module: torch.nn.Module, path: Path, *, wanted: str) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weight file; wanted: {wanted}")
    try:
        state = load_file(path)
        wrong = module.load_state_dict(state, strict=False)  # a classifier that is not used may be there
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        raise ValueError(f"{path} does not fit: {str(error)[:300]}; wanted: {wanted}") from None
    if wrong.missing_keys:
        lacking = wrong.missing_keys
        raise ValueError(f"{path} lacks {len(lacking)} tensors, such as {lacking[0]}; wanted: {wanted}")
