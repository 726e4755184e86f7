"""Reading any export back: a directory, a record's JSON, a scheduler's config, the header of a LoRA file.

What is read may come from a stranger: sizes are bounded before anything is parsed, and texts are shown without their
control characters, so that a file cannot write to the terminal what it likes.
"""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..core.generation import NAMES, name_of
from ..core.record import Record, parse_record, read_record
from ..core.safetensors_header import Header, read_header
from ..core.schema import MAX_BYTES
from ..core.text import one_line
from .comfyui_strength import levels_hint
from .layout import HEADER_RECORD, RECORD_FILE, RECORD_KEY, SCHEDULER_FILE, record_in
from .lora_layout import is_adapter, layer_rows, lora_context_width, stored_layers
from .sentences import UNKNOWN, percent, product_line, strength_line, taught_line, triage_line, verdict

MAX_HEADER = 16 * 2**20
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
SHOWN = 160  # characters of one value that somebody else wrote
COLUMNS = 120  # of a line of ours
OF_TRAINERS = ("ss_base_model_version", "ss_sd_model_name", "ss_output_name", "modelspec.architecture", "software")


@dataclass(frozen=True)
class Inspection:
    """What a file says of itself.

    Attributes:
        path: what was read.
        kind: what it is.
        record: the calibration in it.
        header: everything else in a safetensors header; as untrusted as the file.
    """

    path: Path
    kind: Literal["directory", "record", "scheduler", "safetensors"]
    record: Record
    header: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return inspection_text(self)


def inspect_file(path: str | Path) -> Inspection:
    """Reads the record out of whatever carries one.

    Raises:
        FileNotFoundError: no such file, or a directory without a record.
        ValueError: no record in it, one of another schema, a header over the size limit, or not such a file at all.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _directory(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file or directory")
    if path.suffix == ".safetensors":
        header = read_header(path, longest=MAX_HEADER).metadata
        if HEADER_RECORD not in header:
            raise ValueError(f"{path}: a safetensors file, but no {HEADER_RECORD!r} in its header: no export of ours")
        return Inspection(path, "safetensors", parse_record(header[HEADER_RECORD], path), header)
    if path.suffix in PICKLES:
        raise ValueError(f"{path}: {path.suffix} files may run code and are never opened; convert it to .safetensors")
    if path.name == Path(SCHEDULER_FILE).name:
        return Inspection(path, "scheduler", _in_scheduler(path))
    if _is_workflow(path):
        raise ValueError(
            f"{path}: a ComfyUI workflow, which carries no record; inspect the model or LoRA that it loads"
        )
    return Inspection(path, "record", read_record(path))


def _is_workflow(path: Path) -> bool:
    """Whether it is nodes of ComfyUI, in its API format, rather than a record."""
    if path.stat().st_size > MAX_BYTES:
        return False
    try:
        nodes = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(nodes, dict) and any(isinstance(n, dict) and "class_type" in n for n in nodes.values())


def describe_file(path: str | Path) -> str:
    """What any export, and any LoRA whoever trained it, says of itself, for a terminal.

    Raises:
        FileNotFoundError, ValueError: see `inspect_file`; a LoRA that cannot be audited says why.
    """
    path = Path(path).expanduser()
    if path.suffix != ".safetensors" or not path.is_file():
        return inspection_text(inspect_file(path))
    header = read_header(path, longest=MAX_HEADER)
    lora = _of_lora(path, header) if is_adapter(header) else []
    if lora and HEADER_RECORD not in header.metadata:
        return "\n".join([f"{'file':<12}  {path} (a LoRA, without a record of ours)", *lora])
    return "\n".join([inspection_text(inspect_file(path)), *lora])


def _of_lora(path: Path, header: Header) -> list[str]:
    """Rows of what lies in a LoRA, and the command that audits it, or why it cannot be."""
    said = {key: header.metadata[key] for key in OF_TRAINERS if header.metadata.get(key)}
    try:
        layers = stored_layers(path, header)
    except ValueError as error:
        return _rows(said | {"audit": f"not possible: {error}"})
    width = lora_context_width(layers)
    generation = "not said by these layers" if width is None else name_of(width)
    base = f"the {generation}" if width in NAMES else "the model"
    return [
        *_rows(dict(layer_rows(layers)) | {"trained for": generation} | said),
        f"does it copy? basinguard audit BASE --lora {shlex.quote(str(path))} --data IMAGES",
        f"              BASE: {base} it was trained on; IMAGES: a folder of its captioned training images",
    ]


def _rows(rows: Mapping[str, str]) -> list[str]:
    return [f"{key:<12}  {one_line(value, 2 * SHOWN)}" for key, value in rows.items()]


def inspection_text(inspection: Inspection) -> str:
    """A few lines for a terminal: the product, the risks, how sure, where it comes from."""
    r = inspection.record
    schedule = r.product.strength_schedule
    rows = {
        "verdict": verdict(r),
        "product": product_line(r),
        "risk": f"{percent(r.risk)}; {percent(r.plain)} by plain CFG without a guard",
        **({"unruled": f"{percent(r.unruled)} by plain CFG with these weights"} if r.unruled else {}),
        "taught": taught_line(r) or UNKNOWN,
        "verified": percent(r.verified),
        "alignment": UNKNOWN if r.alignment is None else str(r.alignment),
        "promise": r.promise or "none",
        "strength": strength_line(r) or "not calibrated",
        "triage": triage_line(r) or "not calibrated",
        **({"by timestep": f"{schedule}. {levels_hint(schedule)}"} if schedule else {}),
        "metric": f"{one_line(r.metric.embedder, SHOWN)} >= {r.metric.threshold:g}",
        "sampler": f"{one_line(r.sampler.scheduler, SHOWN)}, {r.sampler.timesteps} steps, scale {r.scale:g}",
        "base": r.base,
        "weights": r.weights_sha256,
        "data set": r.dataset_sha256,
        "epochs": str(len(r.history)),
    }
    header = {one_line(key, SHOWN): text for key, text in sorted(inspection.header.items()) if key != HEADER_RECORD}
    width = max(map(len, rows | header))
    lines = [f"{'file':<{width}}  {inspection.path} ({inspection.kind})"]
    lines += [f"{key:<{width}}  {_in_column(one_line(text, 6 * SHOWN), width + 2)}" for key, text in rows.items()]
    return "\n".join(lines + [f"{key:<{width}}  {one_line(text, SHOWN)}" for key, text in header.items()])


def _in_column(text: str, indent: int) -> str:
    """A sentence in as many lines as it takes, each under the first."""
    return textwrap.fill(text, COLUMNS - indent, break_long_words=False, break_on_hyphens=False).replace(
        "\n", "\n" + " " * indent
    )


def _directory(path: Path) -> Inspection:
    if (path / RECORD_FILE).is_file():
        return Inspection(path, "directory", read_record(path / RECORD_FILE))
    if (path / SCHEDULER_FILE).is_file():
        return Inspection(path, "directory", _in_scheduler(path / SCHEDULER_FILE))
    raise FileNotFoundError(f"{path}: neither {RECORD_FILE} nor {SCHEDULER_FILE}, so no basinguard export")


def _in_scheduler(path: Path) -> Record:
    text = path.read_bytes()[: 2 * MAX_BYTES + 1]
    if len(text) > 2 * MAX_BYTES:
        raise ValueError(f"{path}: more than {2 * MAX_BYTES} bytes; not a scheduler's config that we wrote")
    try:
        inside = record_in(json.loads(text))
    except (ValueError, AttributeError, RecursionError):
        raise ValueError(f"{path}: not a JSON object, so not a scheduler's config") from None
    if not isinstance(inside, str):
        raise ValueError(f"{path}: no {RECORD_KEY!r} entry, so this scheduler carries no record")
    return parse_record(inside, path)
