"""What exports must know of a pipeline beside its record: its class, its text encoders, and its empty prompt."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.generation import XL
from ..core.safetensors_header import Header, read_header

SD_CLASS, XL_CLASS = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
SD3_CLASS = "StableDiffusion3Pipeline"
NAMES = {SD_CLASS: "Stable Diffusion", XL_CLASS: "Stable Diffusion XL", SD3_CLASS: "Stable Diffusion 3"}
THIRD = ("text_encoder_3", "tokenizer_3")  # of Stable Diffusion 3
XL_TEXT = "conditioner.embedders.1."  # in a single file of the original layout: XL's alone
TO_TEXT = "attn2.to_k.weight"


@dataclass(frozen=True)
class ModelKind:
    """Which stock pipeline opens a model.

    Attributes:
        pipeline: diffusers' name of its class, one of `KINDS`.
        zero_empty: whether it samples with zeros for the empty prompt, as XL's usually does, and not with its text.
        absent: components that it was made without and that diffusers must be told of, as most Stable Diffusion 3's
            third text encoder, which is larger than all the rest.
    """

    pipeline: str = SD_CLASS
    zero_empty: bool = False
    absent: tuple[str, ...] = ()

    @property
    def xl(self) -> bool:
        """Whether it is Stable Diffusion XL."""
        return self.pipeline == XL_CLASS

    @property
    def name(self) -> str:
        """What people call it."""
        return NAMES[self.pipeline]

    @property
    def flow(self) -> bool:
        """Whether it is a flow: it denoises by a transformer, and only diffusers opens what is exported of it."""
        return self.pipeline == SD3_CLASS

    @property
    def denoiser(self) -> str:
        """Its component that denoises."""
        return "transformer" if self.flow else "unet"

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """Its components that read the prompt; the third of Stable Diffusion 3 may be left out, and is never tuned."""
        return ("text_encoder",) if self.pipeline == SD_CLASS else ("text_encoder", "text_encoder_2")

    @property
    def parts(self) -> tuple[str, ...]:
        """Its components that a fine-tune may change."""
        return self.denoiser, *self.text_encoders

    def prediction_type(self, scheduler: Any) -> str:
        """What it predicts, as records say it."""
        return "flow_prediction" if self.flow else str(scheduler.config.get("prediction_type", "epsilon"))


KINDS = tuple(NAMES)
STABLE_DIFFUSION = ModelKind()


def kind_of(pipe: Any) -> ModelKind:
    """The kind of a pipeline, or of one derived from such.

    Raises:
        TypeError: neither is exported here.
    """
    classes = [kind.__name__ for kind in type(pipe).__mro__]
    name = next((name for name in classes if name in KINDS), None)
    if name is None:
        raise TypeError(f"cannot export a {classes[0]}; expected a diffusers {' or '.join(KINDS)}")
    zero = name == XL_CLASS and bool(pipe.config.get("force_zeros_for_empty_prompt", True))
    return ModelKind(name, zero, tuple(part for part in THIRD if name == SD3_CLASS and getattr(pipe, part) is None))


def require_files(kind: ModelKind) -> ModelKind:
    """Refuses what is exported as a directory only, where a file or a workflow is asked for.

    Raises:
        ValueError: of a flow.
    """
    if kind.flow:
        raise ValueError(
            f"a {kind.pipeline} is exported as a directory; LoRA files, single files and workflows of {kind.name} are "
            "not written here"
        )
    return kind


def kind_at(path: Path) -> ModelKind:
    """The kind of a diffusers directory, or of a single file, by its index or header alone.

    Raises:
        ValueError: the directory is of another class, or its index is damaged; the file is not safetensors.
    """
    if path.is_dir():
        return _of_index(path / "model_index.json")
    xl = path.suffix == ".safetensors" and _has_xl(read_header(path))
    return ModelKind(XL_CLASS, zero_empty=True) if xl else STABLE_DIFFUSION


def _of_index(path: Path) -> ModelKind:
    try:
        index = json.loads(path.read_text("utf-8")) if path.is_file() else {"_class_name": SD_CLASS}
        name, zero = index["_class_name"], bool(index.get("force_zeros_for_empty_prompt", True))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise ValueError(f"{path}: not the index of a diffusers pipeline; download or copy it again") from None
    if name not in KINDS:
        raise ValueError(f"{path}: a {str(name)[:80]!r}; what is exported here is one of {', '.join(KINDS)}")
    absent = (part for part in THIRD if name == SD3_CLASS and index.get(part, [None])[0] is None)
    return ModelKind(name, name == XL_CLASS and zero, tuple(absent))


def _has_xl(header: Header) -> bool:
    widths = {shape[1] for name, shape in header.shapes.items() if name.endswith(TO_TEXT) and len(shape) > 1}
    return widths == {XL} or any(name.startswith(XL_TEXT) for name in header.shapes)
