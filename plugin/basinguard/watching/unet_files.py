"""The safetensors files of a UNet's folder: one, or parts, in full or half precision, as diffusers names them.

Source: diffusers, `models/modeling_utils.py` (`save_pretrained`) and `utils/hub_utils.py` (`_add_variant`).
"""

from __future__ import annotations

import re
from pathlib import Path

NAME = re.compile(
    r"diffusion_pytorch_model(?:\.(?P<variant>\w+))?(?:-(?P<part>\d+)-of-(?P<parts>\d+))?(?:\.(?P<older>\w+))?\.safetensors"
)
VARIANTS = ("", "fp32", "bf16", "fp16")  # the first of them that is there is read


def has_unet(folder: Path) -> bool:
    """Whether a folder holds a UNet's weights in its folder `unet`."""
    return any(NAME.fullmatch(path.name) for path in (folder / "unet").glob("diffusion_pytorch_model*.safetensors"))


def unet_files(folder: Path) -> list[Path]:
    """The files to read, all parts of one precision.

    Args:
        folder: of a checkpoint, with the UNet in its folder `unet`.

    Raises:
        ValueError: a part is missing, as it is while they are written, or only weights that are another model's.
    """
    variants: dict[str, dict[str, Path]] = {}
    for path in (folder / "unet").glob("diffusion_pytorch_model*.safetensors"):
        if match := NAME.fullmatch(path.name):
            parts = variants.setdefault(match["variant"] or match["older"] or "", {})
            parts["" if match["part"] is None else f"{match['part']} of {match['parts']}"] = path
    chosen = next((variants[variant] for variant in VARIANTS if variant in variants), None)
    if chosen is None:
        raise ValueError(
            f"{folder / 'unet'}: weights of {', '.join(sorted(variants))}, none of {', '.join(VARIANTS[1:])}"
        )
    if "" in chosen:
        return [chosen[""]]
    wanted = int(next(iter(chosen)).partition(" of ")[2])
    if len(chosen) != wanted:
        raise ValueError(
            f"{folder / 'unet'}: {len(chosen)} of {wanted} parts are there; the others may still be written"
        )
    return [chosen[part] for part in sorted(chosen)]
