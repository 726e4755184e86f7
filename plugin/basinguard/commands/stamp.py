"""`basinguard stamp LORA RECORD OUT`: puts a record into a LoRA's header, after seeing that it belongs there."""

from __future__ import annotations

from pathlib import Path


def stamp(
    lora: Path,
    record: Path,
    out: Path,
    base: str | None = None,
    overwrite: bool = False,
    share_private: bool = False,
) -> Path:
    """Puts a record into the header of a LoRA, whoever trained it; tensors and the trainer's own header stay.

    Args:
        lora: a LoRA file.
        record: the JSON that `calibrate MODEL --lora LORA` wrote.
        out: the file to write; the LoRA itself with `--overwrite`.
        base: the model that it was calibrated on; the one that the record names by default.
        overwrite: replace an existing file.
        share_private: also write local paths and error texts.

    Raises:
        FileExistsError: `out` exists and `overwrite` was not asked for.
        FileNotFoundError: no such LoRA, record or base.
        ValueError: the record belongs to another LoRA, or to a share or a filtered part of this one.
    """
    from ..core.record import read_record
    from ..exports.lora import lora_layers, of_lora
    from ..exports.model_kind import kind_of, require_files
    from ..exports.sentences import weights_line
    from ..exports.stamp import stamp_lora
    from ..pipelines.loading import load_pipeline

    measured = read_record(record)
    if not measured.product.whole:
        raise ValueError(
            f"{record}: is of {weights_line(measured.product)}; a stamped file has all of it at strength 1: use "
            "`basinguard export --kind kohya`"
        )
    pipe = load_pipeline(base or measured.base, lora=lora)
    kind = require_files(kind_of(pipe))
    matching = of_lora(measured, pipe, lora_layers(pipe))
    return stamp_lora(lora, matching, out, overwrite=overwrite, share_private=share_private, kind=kind)


def show(path: Path, arguments: object) -> None:
    """Prints where it is."""
    print(f"written: {path}")
