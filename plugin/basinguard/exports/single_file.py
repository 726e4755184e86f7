"""A whole model as one safetensors file in the original layout: for ComfyUI, A1111, Forge and model sites.

Such a file has no place for a rule. Its header carries the record; a workflow, a node or a person has to follow it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..core.files import whole_file
from ..core.generation import XL
from ..core.record import Record
from .directory import check_exportable
from .fingerprints import belonging, state_dict_sha256, weights_sha256
from .lora_header import model_header
from .model_kind import ModelKind, require_files
from .original_layout import original_state
from .privacy import public
from .sampler_grids import has_its_schedule

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor

Precision = Literal["float16", "float32"]
SECOND = {768: False, 1024: True}  # by the width of the text states: Stable Diffusion 1 or 2


def export_single_file(
    pipe: DiffusionPipeline,
    record: Record,
    out: str | Path,
    *,
    precision: Precision = "float16",
    overwrite: bool = False,
    share_private: bool = False,
) -> Path:
    """Writes a pipeline as one file, whole or not at all.

    Args:
        pipe: a diffusers `StableDiffusionPipeline` or `StableDiffusionXLPipeline` without adapters; see `merge.merged`.
        record: the calibration of exactly these weights; an empty `weights_sha256` is filled in.
        out: a `.safetensors` file.
        precision: "float16", as such files usually are, or "float32". What the record promises was measured on the
            weights before they were rounded.
        overwrite: replace an existing file.
        share_private: also write local paths and error texts.

    Returns:
        `out`.

    Raises:
        FileExistsError: `out` exists and `overwrite` is False.
        TypeError: neither Stable Diffusion nor XL.
        ValueError: the record belongs to other weights, the model is of another architecture or has a noise schedule
            that the layout's clients do not have, a strength by timestep, or weights that float16 cannot hold.
    """
    out = Path(out).expanduser()
    if out.suffix != ".safetensors" or precision not in ("float16", "float32"):
        raise ValueError(
            f"export_single_file(out={out.name!r}, precision={precision!r}): expected *.safetensors, float16 or float32"
        )
    if record.product.strength_schedule is not None:
        raise ValueError(
            "one file cannot hold a strength by timestep, which needs the LoRA apart: export the directory or the LoRA"
        )
    kind = require_files(check_exportable(pipe))
    second = _is_second(pipe, kind)
    record = belonging(record, weights_sha256(pipe), pipe.scheduler.config.get("prediction_type", "epsilon"))
    tensors = {name: _stored(name, value, precision) for name, value in original_state(pipe, second=second).items()}
    header = model_header(
        record if share_private else public(record), state_dict_sha256(tensors), precision, kind=kind,
        second=second, title=out.stem,
    )  # fmt: skip
    from safetensors.torch import save_file

    with whole_file(out, overwrite=overwrite) as partial:
        save_file(tensors, partial, metadata=header)
    return out


def _is_second(pipe: DiffusionPipeline, kind: ModelKind) -> bool:
    """Whether this is Stable Diffusion 2; what is neither 1, 2 nor XL, or has another noise schedule, is refused."""
    width = pipe.unet.config.cross_attention_dim
    if width not in ((XL,) if kind.xl else SECOND):
        raise ValueError(
            f"a {kind.pipeline} whose UNet attends to text states {width} wide: single files are Stable Diffusion 1's "
            f"(768), 2's (1024) and XL's ({XL}); export a directory instead"
        )
    if not has_its_schedule(pipe.scheduler.alphas_cumprod):
        raise ValueError(
            "this model's noise schedule is not Stable Diffusion's, the only one that loaders of single files have; "
            "export a directory instead"
        )
    return SECOND.get(width, False)


def _stored(name: str, value: Tensor, precision: Precision) -> Tensor:
    import torch

    if not value.is_floating_point():
        return value.detach().cpu().contiguous()
    stored = value.detach().to("cpu", getattr(torch, precision)).contiguous()
    if not torch.isfinite(stored).all():
        raise ValueError(f"{name!r} is not finite in {precision}; export with precision float32")
    return stored
