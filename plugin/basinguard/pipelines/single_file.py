"""One .safetensors file in the original layout, as Stability AI and the user interfaces ship Stable Diffusion 2."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from ..core.generation import XL, name_of
from ..core.safetensors_header import Header, read_header
from .architecture import context_width, sd21_tokenizer

UNET, TEXT = "model.diffusion_model.", "cond_stage_model.model."  # the second is OpenCLIP's, Stable Diffusion 2 alone
SAYS_TYPE = ("modelspec.prediction_type", "prediction_type", "ss_prediction_type")
SPELLINGS = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}


def require_single_file(path: Path) -> Header:
    """Refuses a file that is not a whole Stable Diffusion 2 model.

    Raises:
        ValueError: a pickle, damaged, a LoRA, of another architecture, or of one part alone; says which.
    """
    subject = f"base {str(path)!r}"
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{subject}: a {path.suffix or 'nameless'} file is never opened, it may run code; convert it to "
            ".safetensors"
        )
    header = read_header(path)
    width = context_width(header.shapes)
    if any("lora" in name for name in header.shapes):
        kind = f" for {name_of(width)}" if width else ""
        raise ValueError(f"{subject} is a LoRA{kind}; give its base model, and this file as the LoRA")
    if not any(name.startswith(UNET) for name in header.shapes):
        raise ValueError(
            f"{subject}: no tensor {UNET}*, so not a whole model in the original layout; "
            f"give a diffusers directory instead{' (this is one part of one)' if width else ''}"
        )
    if width != 1024 or not any(name.startswith(TEXT) for name in header.shapes):
        raise ValueError(f"{subject} is {name_of(width)}; single files work for {name_of(1024)}, {_instead(width)}")
    return header


def _instead(width: int | None) -> str:
    """What to give where a file of this width is not opened."""
    if width != XL:
        return "give a directory"
    return "give a directory, as StableDiffusionXLPipeline.from_single_file(FILE).save_pretrained(DIR) writes one"


def prediction_type_of(header: Header) -> str | None:
    """What a file's own metadata says it predicts; None if nothing, or nothing known."""
    for key in SAYS_TYPE:
        if key in header.metadata:
            return SPELLINGS.get(header.metadata[key].lower())
    if "ss_v_parameterization" in header.metadata or "modelspec.predict_key" in header.metadata:
        is_v = (
            header.metadata.get("ss_v_parameterization", "").lower() == "true"
            or header.metadata.get("modelspec.predict_key") == "v"
        )
        return "v_prediction" if is_v else "epsilon"
    return None


def load_single_file(path: Path, prediction_type: str, *, dtype: torch.dtype, config: Path) -> StableDiffusionPipeline:
    """Loads a file of `require_single_file`; touches no network.

    Args:
        path: the file.
        prediction_type: what its network predicts, "epsilon" or "v_prediction".
        dtype: of all weights.
        config: directory of diffusers configurations, such as the packaged ones.
    """
    with TemporaryDirectory() as folder:
        own = Path(folder) / "config"
        shutil.copytree(config, own)
        if not (own / "tokenizer").is_dir():
            sd21_tokenizer().save_pretrained(own / "tokenizer")
        pipe: Any = StableDiffusionPipeline.from_single_file(
            str(path), config=str(own), dtype=dtype, local_files_only=True
        )
    set_prediction_type(pipe, prediction_type)
    return pipe


def set_prediction_type(pipe: StableDiffusionPipeline, prediction_type: str) -> None:
    """Sets what a pipeline's scheduler takes the network's output for."""
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type=prediction_type)
