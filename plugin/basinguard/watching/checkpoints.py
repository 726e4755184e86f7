"""The checkpoints in a trainer's output folder, read off names and headers alone: nothing is loaded, nothing touched.

What is known of the trainers' names: sd-scripts `name-000002.safetensors` (epochs, from 1) and
`name-step00000400.safetensors`, both with `ss_epoch` and `ss_steps` in the header; diffusers' scripts and SimpleTuner
`checkpoint-400/`; ai-toolkit `name_000000400.safetensors` with `training_info` in the header; OneTrainer
`...save-400-2-0.safetensors` (step, epoch from 0, step in it).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..core.safetensors_header import Header, read_header
from ..exports.layout import SCHEDULER_FILE, lora_apart
from ..exports.lora_layout import is_adapter
from .unet_files import has_unet, unet_files

Kind = Literal["lora", "lora-in-unet", "unet", "model", "single-file"]
PIPELINE, TEXT = "model_index.json", "text_encoder"
STATE, FURTHER = "model.safetensors", re.compile(r"model_\d+\.safetensors")  # as accelerate saves models in training
LORA = "pytorch_lora_weights.safetensors"  # as diffusers' scripts and SimpleTuner save it, beside such a state
WRAPPED = ".base_layer."  # of a layer that has a LoRA beside it, where the whole UNet was saved with it
ORIGINAL = "model.diffusion_model."  # the UNet's tensors in the layout of single files
IGNORED = ("optimizer", "scheduler", "scaler", "random_states", "ema", "discriminator")  # of a trainer's own state
MEANS = ("ema", "unet_ema")  # folders of a running mean; what is in training is measured
PICKLES = re.compile(r".*\.ckpt|(?:pytorch_|diffusion_pytorch_|adapter_).*\.bin|.*(?:-|-step)\d{6,}\.pt")
PICKLED = "not a .safetensors file; others may run code and are never opened: have the trainer save safetensors"
SEVERAL = (
    "one of several models that were saved together, so it could only be measured in part; have the trainer save a "
    "LoRA file or a diffusers folder"
)
BY_TIMESTEP = (
    "an export whose LoRA follows the timestep, so its pipeline is the base model; `basinguard verify` measures both"
)
STEPS = re.compile(r"(?:checkpoint-|-step|-save-|_(?=\d{6,}$))(\d+)")
EPOCHS = re.compile(r"-(\d{6})$|-save-\d+-(\d+)-")  # counted as the trainer counts
DEPTH = 3  # folders below the output folder that are looked into


@dataclass(frozen=True)
class Checkpoint:
    """Something that a trainer saved.

    Attributes:
        path: a file, or a folder.
        kind: "lora", "lora-in-unet" (the UNet's own weights beside it, as accelerate saves a state), "unet" (a folder
            with the whole UNet, and with the text encoder where that is trained, or a UNet's state as accelerate saves
            it), "model" (a pipeline's folder), or "single-file".
        train_step: updates so far; None where neither name nor header tells.
        epoch: passes so far, counted from 1; None where it is not told.
        size: bytes of all its files.
        modified: when the youngest of them was written, in nanoseconds.
    """

    path: Path
    kind: Kind
    train_step: int | None
    epoch: int | None
    size: int
    modified: int

    @property
    def order(self) -> tuple[float, float, int]:
        """Where it stands in the run: by updates, else by epochs, else by when it was written."""
        last = float("inf")  # a final file that tells nothing comes after those that do
        return (
            last if self.train_step is None else self.train_step,
            last if self.epoch is None else self.epoch,
            self.modified,
        )

    @property
    def key(self) -> str:
        """Tells whether this very state was probed before."""
        return f"{self.path}|{self.size}|{self.modified}"


@dataclass(frozen=True)
class OutputScan:
    """What an output folder holds now.

    Attributes:
        checkpoints: that are whole, in their order.
        partial: files that end too early, cannot be read yet or are never opened, with the reason.
    """

    checkpoints: tuple[Checkpoint, ...]
    partial: Mapping[Path, str]


def scan(output: Path, leave_out: Path | None = None) -> OutputScan:
    """Looks through an output folder, a few folders deep.

    Args:
        output: where the trainer saves; may not be there yet.
        leave_out: a folder in it that is not looked into.
    """
    whole, partial = [], {}
    for path in _candidates(output, leave_out):
        if path.suffix in (".ckpt", ".bin", ".pt"):
            partial[path] = PICKLED
            continue
        try:
            checkpoint = describe(path)
        except FileNotFoundError:
            continue  # deleted meanwhile
        except (OSError, ValueError) as error:
            partial[path] = str(error)
            continue
        if checkpoint is not None:
            whole.append(checkpoint)
    return OutputScan(tuple(sorted(whole, key=lambda c: c.order)), partial)


def _candidates(folder: Path, leave_out: Path | None, depth: int = DEPTH) -> Iterator[Path]:
    """Safetensors files that stand for themselves, and folders that are a model."""
    if not folder.is_dir() or folder == leave_out:
        return
    components: frozenset[str] = frozenset()
    if (folder / PIPELINE).is_file():
        yield folder
        if _by_timestep(folder):
            return
        components = _components(folder)  # beside them there may be checkpoints: scripts save their last model above
    elif has_unet(folder):
        yield folder
        return
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return  # deleted meanwhile, as trainers do with their oldest, or nobody's to read
    for path in entries:
        named_so = path.suffix == ".safetensors" or PICKLES.fullmatch(path.name)
        if named_so and not path.name.startswith((".", *IGNORED)):
            if not (FURTHER.fullmatch(path.name) or (path.name == STATE and (folder / LORA).is_file())):
                yield path
        elif depth and path.is_dir() and not path.is_symlink() and not path.name.startswith((".", *components, *MEANS)):
            yield from _candidates(path, leave_out, depth - 1)


def _by_timestep(folder: Path) -> bool:
    """Whether a folder is an export of ours whose LoRA lies beside the base model."""
    try:
        config = json.loads((folder / SCHEDULER_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and lora_apart(config)


def _components(folder: Path) -> frozenset[str]:
    """Folders of a pipeline's parts, by its index."""
    try:
        index = json.loads((folder / PIPELINE).read_text("utf-8"))
    except (OSError, ValueError):
        index = {}
    return frozenset(("unet", "vae", "text_encoder", *(index if isinstance(index, dict) else ())))


def _own_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint, without those of checkpoints below a pipeline's folder.

    Raises:
        ValueError: a part of a UNet is missing.
    """
    if path.is_file():
        return [path]
    if has_unet(path):
        unet_files(path)
    parts = _components(path) if (path / PIPELINE).is_file() else {"unet", TEXT}
    return sorted(file for part in parts for file in (path / part).glob("*.safetensors"))


def is_as_described(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is what it was when it was found: trainers write their newest one again and again."""
    try:
        now = describe(checkpoint.path)
    except (OSError, ValueError):
        return False
    return now is not None and now.key == checkpoint.key


def describe(path: Path) -> Checkpoint | None:
    """A checkpoint by its name and headers; None for a safetensors file that is something else.

    Raises:
        FileNotFoundError: it is not there any more.
        ValueError: a file that ends too early, or an export whose LoRA lies beside the base model.
    """
    if _by_timestep(path):
        raise ValueError(f"{path}: {BY_TIMESTEP}")
    files = _own_files(path)
    headers = {file: read_header(file) for file in files}
    header = headers[path] if path in headers else Header({}, {})
    kind = _kind(path, header)
    if kind is None or not files:
        return None
    step, epoch = _from_header(header.metadata)
    if path.name == STATE and any(FURTHER.fullmatch(sibling.name) for sibling in path.parent.iterdir()):
        raise ValueError(f"{path}: {SEVERAL}")
    stats = [file.stat() for file in files]
    return Checkpoint(
        path=path,
        kind=kind,
        train_step=step if step is not None else _from_name(path, STEPS),
        epoch=epoch if epoch is not None else _epoch_from_name(path),
        size=sum(stat.st_size for stat in stats),
        modified=max(stat.st_mtime_ns for stat in stats),
    )


def _kind(path: Path, header: Header) -> Kind | None:
    if path.is_dir():
        return "model" if (path / PIPELINE).is_file() else "unet"
    if is_adapter(header):
        return "lora-in-unet" if any(WRAPPED in name for name in header.shapes) else "lora"
    if path.name == STATE and "conv_in.weight" in header.shapes:
        return "unet"
    return "single-file" if any(name.startswith(ORIGINAL) for name in header.shapes) else None


def _from_header(metadata: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Updates and epochs, as sd-scripts and ai-toolkit write them; whatever does not parse says nothing."""
    try:
        info = json.loads(metadata.get("training_info", "{}"))
    except ValueError:
        info = {}
    info = info if isinstance(info, dict) else {}
    step, epoch = metadata.get("ss_steps", info.get("step")), metadata.get("ss_epoch", info.get("epoch"))
    return _whole(step), _whole(epoch) or None  # ai-toolkit counts epochs from 0 and often leaves them there


def _whole(value: object) -> int | None:
    text = str(value)
    return int(text) if text.isdecimal() else None


def _from_name(path: Path, pattern: re.Pattern[str]) -> int | None:
    """The first number that a pattern finds in the name, without its ending, or in that of the folder around it."""
    names = (path.stem if path.is_file() else path.name, path.parent.name)
    numbers = (number for name in names if (match := pattern.search(name)) for number in match.groups() if number)
    return next(map(int, numbers), None)


def _epoch_from_name(path: Path) -> int | None:
    epoch = _from_name(path, EPOCHS)
    return None if epoch is None else epoch + ("-save-" in path.name)  # OneTrainer counts from 0
