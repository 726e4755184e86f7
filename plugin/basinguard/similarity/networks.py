"""Embedders that are networks: a frozen triple of weights, preprocessing and threshold.

DINO and DINOv2 by timm, CLIP's image tower by open_clip, any ONNX file; SSCD is in `sscd`. None of the first three has
a published copy threshold, so theirs is 1 (nothing is a copy) until `similarity.null` measured one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.extras import optional
from ..core.files import file_sha256
from ..core.metric import Metric
from ..core.text import one_line
from .embedder import check_images, unit
from .preprocessing import RAW, Preprocessing

NO_THRESHOLD = "no threshold is published for this embedder: measure one with basinguard.similarity.thresholds"


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
        _load(built, weights, source=f"{model} by timm, as safetensors, from its page on the Hub (timm/{model})")
        label += f" sha256:{file_sha256(weights)[:12]}"
    metric = Metric(embedder=label, threshold=1.0, source=NO_THRESHOLD)
    return Network(metric, Preprocessing.of_timm(built), on_device(built, device))


def clip_network(model: str | Path, pretrained: str | None = None, *, device: str = "cpu") -> Network:
    """The image tower of any open_clip model (CLIP-I); arguments as in `clip_score.ClipScore.load`."""
    from .clip_score import ClipScore

    clip = ClipScore.load(model, pretrained, device=device)
    metric = Metric(embedder=f"{clip.name} image", threshold=1.0, source=NO_THRESHOLD)
    tower = clip.model.visual
    return Network(metric, Preprocessing.of_open_clip(tower), on_device(tower, device))


def onnx_network(path: Path, preprocessing: Preprocessing, *, metric: Metric | None = None) -> Network:
    """Any ONNX file with one image input and one vector output; for SSCD, `sscd.load_sscd` knows size and threshold.

    Args:
        path: the file. Its input may be floats or bytes, [B, 3, h, w] or [B, h, w, 3], B open or 1.
        preprocessing: what its input wants; a file that takes bytes normalises them itself and wants mean 0, std 1.
        metric: name and threshold; by default the file's name and hash, and no threshold.

    Raises:
        FileNotFoundError: no such file.
        ImportError: onnxruntime is not installed; says how to get it.
        ValueError: not an ONNX file, one that does not take one image tensor, or bytes that would be normalised twice.
    """
    session = onnx_session(path)
    layout = image_input(session, path)
    if layout.takes_bytes and (preprocessing.mean, preprocessing.std) != RAW:
        raise ValueError(
            f"{path} takes bytes and normalises them itself; mean={preprocessing.mean}, std={preprocessing.std} would "
            f"do it twice: expected mean={RAW[0]}, std={RAW[1]}"
        )
    label = f"onnx {path.stem} sha256:{file_sha256(path)[:12]}"
    metric = metric or Metric(embedder=label, threshold=1.0, source=NO_THRESHOLD)

    def run(images: Tensor) -> Tensor:
        parts = images.split(1 if layout.one_by_one else len(images))
        return torch.cat([torch.from_numpy(session.run(None, {layout.name: layout.lay_out(p)})[0]) for p in parts])

    return Network(metric, preprocessing, run)


class ImageInput(NamedTuple):
    """How an ONNX file wants to be handed images."""

    name: str
    takes_bytes: bool
    channels_last: bool
    one_by_one: bool

    def lay_out(self, images: Tensor) -> Any:
        """Prepared images [B, 3, h, w] as the array it takes."""
        ordered = images.permute(0, 2, 3, 1) if self.channels_last else images
        if self.takes_bytes:
            ordered = (ordered * 255).round().byte()
        return ordered.cpu().contiguous().numpy()


def image_input(session: Any, path: Path) -> ImageInput:
    """The one image input of an ONNX session.

    Raises:
        ValueError: none or several inputs, another shape or type, or a fixed batch above 1.
    """
    inputs = session.get_inputs()
    if len(inputs) == 1 and len(inputs[0].shape) == 4 and inputs[0].type in ("tensor(float)", "tensor(uint8)"):
        batch, first, _, last = inputs[0].shape
        one = batch == 1
        if one or not isinstance(batch, int):
            return ImageInput(inputs[0].name, inputs[0].type == "tensor(uint8)", last == 3 and first != 3, one)
    shapes = [(i.type, list(i.shape)) for i in inputs]
    raise ValueError(
        f"{path} takes {shapes}; expected one image, float or bytes, [B, 3, h, w] or [B, h, w, 3], B open or 1"
    )


def onnx_session(path: Path) -> Any:
    """Opens an ONNX file.

    Raises:
        FileNotFoundError: no such file.
        ImportError: onnxruntime is not installed; says how to get it.
        ValueError: not an ONNX file, or one that this onnxruntime cannot read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such ONNX file")
    runtime = optional("onnxruntime", install="onnxruntime", gives="an ONNX embedder")
    try:
        return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base but this
        raise ValueError(f"{path}: not a readable ONNX file ({one_line(str(error), 200)})") from None


def _load(module: torch.nn.Module, path: Path, *, source: str) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weight file; wanted: {source}")
    try:
        state = load_file(path)
        wrong = module.load_state_dict(state, strict=False)  # a classifier that is not used may be there
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        raise ValueError(f"{path} does not fit: {str(error)[:300]}; wanted: {source}") from None
    if wrong.missing_keys:
        lacking = wrong.missing_keys
        raise ValueError(f"{path} lacks {len(lacking)} tensors, such as {lacking[0]}; wanted: {source}")
