"""The weights of a single file in its authors' layout, put into a pipeline of the same architecture.

What a trainer saves of a whole fine-tune says neither how it is sampled nor what it predicts; the base model does. So
the base is opened, and its UNet and text encoders take the file's weights. The autoencoder stays the base's.

Source: as of `exports.original_layout`, whose names these are; XL's second text encoder is OpenCLIP's with its
projection, transposed (Stability-AI/generative-models, `sgm/modules/encoders/modules.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from ..exports.original_layout import (
    CLIP,
    OPEN_CLIP,
    PROJECTION,
    QUERY,
    TEXT,
    UNET,
    XL_CLIP,
    XL_OPEN_CLIP,
    renamed,
    unet_names,
)
from .families.registry import tuned_parts

Get = Callable[[str], Tensor]


def load_original(pipe: Any, path: Path) -> None:
    """Puts the file's weights into the pipeline's UNet and text encoders.

    Args:
        pipe: the base model's pipeline, changed in place.
        path: a `.safetensors` file in the original layout.

    Raises:
        ValueError: the file lacks a weight of the base, or has one of another shape; the pipeline is then as it was.
    """
    with safe_open(path, "pt") as file:
        weights = {part: dict(_weights(pipe, part, file.get_tensor, set(file.keys()))) for part in tuned_parts(pipe)}
    for part, state in weights.items():
        for name, own in getattr(pipe, part).state_dict().items():
            if name in state and state[name].shape != own.shape:
                raise ValueError(f"{path}: its {part} has another {name} than the base; give its own base")
            if name not in state and not name.endswith("position_ids"):
                raise ValueError(f"{path}: no {name} of the {part} in it, which the base has; give its own base")
    for part, state in weights.items():
        getattr(pipe, part).load_state_dict(state, strict=False)


def _weights(pipe: Any, part: str, get: Get, names: set[str]) -> Iterator[tuple[str, Tensor]]:
    """The file's weights of one part, by diffusers' names; what it lacks is left out."""
    if part == "unet":
        originals = {name: f"{UNET}{original}" for name, original in unet_names(pipe.unet).items()}
        yield from ((name, get(key)) for name, key in originals.items() if key in names)
        return
    for name in getattr(pipe, part).state_dict():
        yield from _text_weight(name, part, "text_encoder_2" in tuned_parts(pipe), get, names)


def _text_weight(name: str, part: str, xl: bool, get: Get, names: set[str]) -> Iterator[tuple[str, Tensor]]:
    clip = "" if part == "text_encoder_2" else XL_CLIP if xl else CLIP
    inner = name.removeprefix("text_model.")
    if clip and f"{clip}{inner}" in names:
        yield name, get(f"{clip}{inner}")
        return
    prefix = XL_OPEN_CLIP if xl else OPEN_CLIP
    if name == PROJECTION and f"{prefix}text_projection" in names:
        yield name, get(f"{prefix}text_projection").T.contiguous()
        return
    query = QUERY.fullmatch(inner.replace(".k_proj.", ".q_proj.").replace(".v_proj.", ".q_proj."))
    key = prefix + renamed(f"{query[1]}.in_proj_{query[2]}" if query else inner, TEXT)
    if key in names:
        whole = get(key)
        yield name, whole.chunk(3)["qkv".index(name.rsplit(".", 2)[-2][0])] if query else whole
