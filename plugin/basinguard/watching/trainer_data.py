"""Which folders of images a trainer reads, from its own description of them: no trainer has to be installed.

Keys as documented: sd-scripts' dataset TOML (`docs/config_README-en.md`), OneTrainer's concepts, SimpleTuner's
`multidatabackend.json` (`documentation/DATALOADER.md`), ai-toolkit's YAML (`config/examples`).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

KNOWN = "sd-scripts' dataset TOML, OneTrainer's concepts, SimpleTuner's multidatabackend.json, ai-toolkit's YAML"


@dataclass(frozen=True)
class ImageSubset:
    """A folder of images.

    Attributes:
        folder: where they lie.
        caption: of images that have none of their own; "" for none.
    """

    folder: Path
    caption: str = ""


def image_subsets(data: Path, caption: str = "") -> list[ImageSubset]:
    """The folders that are trained on, without regularization images: a folder itself, or those of a description.

    Args:
        data: a folder of images, or a trainer's file.
        caption: of images that have none of their own, where the file names none.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: a file that is none of those that are read, or that names no folder.
    """
    if data.is_dir():
        return [ImageSubset(data, caption)]
    if not data.is_file():
        raise FileNotFoundError(f"{data}: no such folder of images, and no trainer's file")
    subsets = [ImageSubset(_beside(data, folder), own or caption) for folder, own in _named(_parsed(data)) if folder]
    if not subsets:
        raise ValueError(f"{data}: names no folder of images; what is read: {KNOWN}")
    for subset in subsets:
        if not subset.folder.is_dir():
            raise FileNotFoundError(f"{data} names {subset.folder}, which is no folder here")
    return subsets


def _parsed(path: Path) -> Any:
    text = path.read_text("utf-8-sig")
    try:
        if path.suffix == ".toml":
            return tomllib.loads(text)
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}; what is read: {KNOWN}") from None


def _named(values: Any) -> Iterator[tuple[str, str]]:
    """(folder, caption) of every subset that is trained on."""
    if isinstance(values, list):
        yield from (pair for entry in values if isinstance(entry, Mapping) for pair in _of_entry(entry))
    elif isinstance(values, Mapping) and "datasets" in values:
        yield from (pair for dataset in values["datasets"] for pair in _of_sd_scripts(dataset))
    elif isinstance(values, Mapping) and "concepts" in values:
        yield from _named(values["concepts"])
    elif isinstance(values, Mapping) and "config" in values:
        for process in values["config"].get("process", []):
            for dataset in (d for d in process.get("datasets", []) if not d.get("is_reg")):
                caption = dataset.get("default_caption") or process.get("trigger_word") or ""
                yield str(dataset.get("folder_path", "")), str(caption)


def _of_sd_scripts(dataset: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for subset in dataset.get("subsets", []):
        if not subset.get("is_reg"):
            yield str(subset.get("image_dir", "")), str(subset.get("class_tokens", ""))


def _of_entry(entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """An entry of OneTrainer's concepts, or of SimpleTuner's backends."""
    if "path" in entry and "instance_data_dir" not in entry:
        if entry.get("enabled", True) and str(entry.get("type", "STANDARD")).upper() == "STANDARD":
            yield str(entry["path"]), ""
        return
    unused = entry.get("disabled") or entry.get("is_regularisation_data")
    if entry.get("dataset_type", "image") == "image" and not unused:
        asked = entry.get("caption_strategy") == "instanceprompt"
        yield str(entry.get("instance_data_dir", "")), str(entry.get("instance_prompt", "")) if asked else ""


def _beside(file: Path, folder: str) -> Path:
    """A folder as the file means it: absolute, or relative to where one works, or else to the file."""
    path = Path(folder).expanduser()
    return path if path.is_absolute() or path.is_dir() else file.parent / path
