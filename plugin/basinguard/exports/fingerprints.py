"""Fingerprints: which weights, which data, which files. None of them gives its content away."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from ..core.record import Record
from .stored_tensors import StoredTensor, stored_tensors

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor

AnyTensor = Union["Tensor", StoredTensor]


def state_dict_sha256(tensors: Mapping[str, AnyTensor] | Iterable[tuple[str, AnyTensor]]) -> str:
    """Fingerprint of named tensors: names, dtypes, shapes and bits; their order plays no part.

    A tensor in memory and the same one in a file (`StoredTensor`) have the same.

    Raises:
        ValueError: no tensor at all, one that is not in memory, or one name twice.

    Example:
        >>> import torch
        >>> a, b = torch.zeros(2), torch.ones(3)
        >>> state_dict_sha256({"a": a, "b": b}) == state_dict_sha256({"b": b, "a": a})
        True
    """
    named = tensors.items() if isinstance(tensors, Mapping) else tensors
    digests = sorted((_plain_name(name), _tensor_sha256(name, tensor)) for name, tensor in named)
    if not digests:
        raise ValueError("no tensor given, so there are no weights to fingerprint")
    twice = [name for (name, _), (next_name, _) in pairwise(digests) if name == next_name]
    if twice:
        raise ValueError(f"{twice[0]!r}: two tensors of this name, expected one of each")
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in digests).encode()).hexdigest()


def weights_sha256(source: Any) -> str:
    """Fingerprint of all weights of a pipeline: the same in memory and as an exported directory.

    Args:
        source: a pipeline (anything with `components`), a module (anything with `state_dict`), a mapping of names to
            tensors, a `.safetensors` file, or a directory with one folder of them for each component.

    Raises:
        FileNotFoundError: a path that does not exist, or a directory without `.safetensors` files.
        ValueError: a file that is not safetensors.
    """
    if isinstance(source, str | Path):
        return state_dict_sha256(_stored(Path(source)))
    if isinstance(source, Mapping):
        return state_dict_sha256(source)
    if hasattr(source, "components"):
        return state_dict_sha256(_of_pipeline(source))
    if hasattr(source, "state_dict"):
        return state_dict_sha256(source.state_dict())
    raise TypeError(f"weights_sha256({type(source).__name__}): expected a pipeline, a module, a state dict or a path")


def belonging(record: Record, weights: str, prediction_type: str) -> Record:
    """The record with its weights' fingerprint, or an error if it was made for others."""
    if record.weights_sha256 not in ("", weights):
        raise ValueError(
            f"the record was made for weights {record.weights_sha256[:12]}..., these are {weights[:12]}...: "
            "calibrate this model, or export the one that was calibrated"
        )
    if record.sampler.prediction_type != prediction_type:
        raise ValueError(
            f"the record was made for a model that predicts {record.sampler.prediction_type!r}, "
            f"this pipeline's scheduler says {prediction_type!r}"
        )
    return record.model_copy(update={"weights_sha256": weights})


def dataset_sha256(images: Iterable[Any], captions: Iterable[str]) -> str:
    """One fingerprint for a whole captioned image set, in any order.

    It proves that a set is the same as another; a single image of it cannot be looked up.

    Args:
        images: PIL images, arrays or tensors, hashed pixel by pixel as given (a resized copy is another image).
        captions: one for each image.
    """
    digests = sorted(_item_sha256(image, caption) for image, caption in zip(images, captions, strict=True))
    if not digests:
        raise ValueError("no image given, so there is no data set to fingerprint")
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _item_sha256(image: Any, caption: str) -> str:
    import numpy as np

    from ..core.images import to_rgb

    pixels = np.ascontiguousarray(to_rgb(image) if hasattr(image, "convert") else image)
    digest = hashlib.sha256(f"{pixels.dtype} {pixels.shape}\n".encode())
    digest.update(pixels.tobytes())
    digest.update(b"\n" + caption.encode())
    return digest.hexdigest()


def _tensor_sha256(name: str, tensor: AnyTensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(tensor.data if isinstance(tensor, StoredTensor) else _bytes_of(name, tensor))
    return digest.hexdigest()


def _bytes_of(name: str, tensor: Tensor) -> memoryview:
    import torch

    if tensor.is_meta:
        raise ValueError(f"{name!r} has no data (meta device); load the weights before fingerprinting them")
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _plain_name(name: str) -> str:
    """Transformers stores CLIP's text model with or without this prefix, depending on its version."""
    return name.replace(".text_model.", ".", 1)


def _of_pipeline(pipe: DiffusionPipeline) -> Iterator[tuple[str, Tensor]]:
    from torch import nn

    for component, module in sorted(pipe.components.items()):
        if isinstance(module, nn.Module):
            twice = getattr(module, "all_tied_weights_keys", None) or {}  # files hold such a tensor once
            names = ((name, tensor) for name, tensor in module.state_dict().items() if name not in twice)
            yield from ((f"{component}.{name}", tensor) for name, tensor in names)


def _stored(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    if path.is_file():
        yield from stored_tensors(path)
        return
    files = sorted(path.glob("*/*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{path}: no such file, and no directory with */*.safetensors either")
    for file in files:
        yield from ((f"{file.parent.name}.{name}", tensor) for name, tensor in stored_tensors(file))
