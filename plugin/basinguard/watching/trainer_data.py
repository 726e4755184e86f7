"""Which folders of images a trainer reads, from its own description of them: no trainer has to be installed.

Keys as documented: sd-scripts' dataset TOML (`docs/config_README-en.md`), OneTrainer's concepts, SimpleTuner's
`multidatabackend.json` (`documentation/DATALOADER.md`), ai-toolkit's YAML (`config/examples`). A trainer's main
configuration that names such a file is followed to it.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from .caption_tables import Captions, by_folder, sd_scripts_captions, simpletuner_captions

KNOWN = "sd-scripts' dataset TOML, OneTrainer's concepts, SimpleTuner's multidatabackend.json, ai-toolkit's YAML"
MAIN = ("dataset_config", "concept_file_name", "data_backend_config", "--data_backend_config")  # of another file
ASKED = "write each beside its image, as a .txt of the same name, and give the folder"
TRIGGERS = ("[trigger]", "[name]")  # in captions of ai-toolkit


@dataclass(frozen=True)
class ImageSubset:
    """A folder of images, and what a trainer makes of their captions.

    Attributes:
        folder: where they lie.
        caption: of images that have none of their own; "" for none.
        named: where none has one of its own: "stem" for the files' names, "words" for these with spaces for
            underscores, "caption" for `caption`, "table" for `captions`.
        prefix: stands before every caption.
        trigger: stands for ai-toolkit's "[trigger]", and before captions that lack it.
        captions: from a table, by path; where there is one, other images of the folder are not trained on.
        lines: each line of a text beside an image is a caption of its own. Only the first one is asked for, which is
            what sd-scripts trains with unless `enable_wildcard` makes it draw one.
    """

    folder: Path
    caption: str = ""
    named: Literal["", "stem", "words", "caption", "table"] = ""
    prefix: str = ""
    trigger: str = ""
    captions: Captions | None = None
    lines: bool = False

    def includes(self, path: str) -> bool:
        """Whether an image of the folder is trained on."""
        return self.captions is None or self._place(path) is not None

    def _place(self, path: str) -> Path | None:
        """Where an image stands in the table."""
        whole = Path(path).resolve()
        return next((p for p in (whole, whole.with_suffix("")) if p in (self.captions or {})), None)

    def trained(self, path: str, caption: str) -> str:
        """What an image is trained with.

        Example:
            >>> ImageSubset(Path("a"), trigger="sks").trained("a/1.png", "a [trigger] dog")
            'a sks dog'
            >>> ImageSubset(Path("a"), named="words", prefix="photo of").trained("a/red_ball.png", "")
            'photo of red ball'
        """
        stem, place = Path(path).stem, self._place(path)
        tabled = self.captions[place] if self.captions and place else ""
        names = {"stem": stem, "words": stem.replace("_", " "), "caption": self.caption, "table": tabled}
        caption = names.get(self.named, caption)
        if self.trigger:
            for written in TRIGGERS:
                caption = caption.replace(written, self.trigger)
            caption = caption if self.trigger in caption else f"{self.trigger} {caption}"
        return f"{self.prefix} {caption}".strip()


def image_subsets(data: Path, caption: str = "") -> list[ImageSubset]:
    """The folders that are trained on, without regularization images: a folder itself, or those of a description.

    Args:
        data: a folder of images, or a trainer's file.
        caption: of images that have none of their own, where the file names none.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: a file that is none of those that are read, that names no folder, or that has captions elsewhere.
    """
    if data.is_dir():
        return [ImageSubset(data, caption)]
    if not data.is_file():
        raise FileNotFoundError(f"{data}: no such folder of images, and no trainer's file")
    data, values = _followed(data, _parsed(data))
    try:
        named = [subset for subset in _named(values, data) if subset.folder != Path()]
    except (AttributeError, KeyError, TypeError):
        raise ValueError(f"{data}: not laid out as any of those that are read: {KNOWN}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{data}: {error}") from None
    if not named:
        raise ValueError(f"{data}: names no folder of images; what is read: {KNOWN}")
    subsets = [replace(s, folder=_beside(data, s.folder), caption=s.caption or caption) for s in named]
    for subset in subsets:
        if not subset.folder.is_dir():
            raise FileNotFoundError(f"{data} names {subset.folder}, which is no folder here")
    return subsets


def _parsed(path: Path) -> Any:
    try:
        text = path.read_text("utf-8-sig")
        if path.suffix == ".toml":
            return tomllib.loads(text)
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}; what is read: {KNOWN}") from None


def _followed(path: Path, values: Any) -> tuple[Path, Any]:
    """The description of the images and what it says, where a trainer's main configuration names it.

    Raises:
        FileNotFoundError: it is not there.
    """
    if not isinstance(values, dict) or values.get("concepts"):
        return path, values
    tables = (table for table in values.values() if isinstance(table, dict))  # sd-scripts: no matter under what heading
    flat = {key: value for table in (*tables, values) for key, value in table.items()}
    other = next((str(flat[key]) for key in MAIN if flat.get(key)), "")
    if not other:
        return path, {"train_data_dir": flat["train_data_dir"]} if flat.get("train_data_dir") else values
    there = _beside(path, Path(other))
    if not there.is_file():
        raise FileNotFoundError(f"{path} names {other}, which is no file here")
    return there, _parsed(there)


def _named(values: Any, file: Path) -> Iterator[ImageSubset]:
    """Every subset that is trained on."""
    if isinstance(values, list):
        yield from (pair for entry in values if isinstance(entry, Mapping) for pair in _of_entry(entry, file))
    elif isinstance(values, Mapping) and "train_data_dir" in values:
        yield ImageSubset(Path(values["train_data_dir"]), lines=True)
    elif isinstance(values, Mapping) and "datasets" in values:
        general = values.get("general", {})
        yield from (pair for dataset in values["datasets"] for pair in _of_sd_scripts({**general, **dataset}, file))
    elif isinstance(values, Mapping) and "concepts" in values:
        yield from _named(values["concepts"], file)
    elif isinstance(values, Mapping) and "config" in values:
        for process in values["config"].get("process", []):
            trigger = process.get("trigger_word") or ""
            for dataset in (d for d in process.get("datasets", []) if not d.get("is_reg")):
                caption = dataset.get("default_caption") or trigger
                folder = Path(dataset.get("folder_path") or dataset.get("dataset_path") or "")
                yield ImageSubset(folder, str(caption), trigger=str(trigger))


def _of_sd_scripts(dataset: Mapping[str, Any], file: Path) -> Iterator[ImageSubset]:
    for subset in ({**dataset, **subset} for subset in dataset.get("subsets", [])):
        prefix = str(subset.get("caption_prefix") or "")
        if subset.get("metadata_file"):
            images = subset.get("image_dir")
            captions = sd_scripts_captions(
                _beside(file, Path(subset["metadata_file"])),
                str(_beside(file, Path(images))) if images else "",
                subset.get("caption_separator", ", "),
                bool(subset.get("enable_wildcard")),
            )
            yield from _tabled(captions, prefix)
        elif not subset.get("is_reg"):
            folder, tokens = Path(subset.get("image_dir", "")), str(subset.get("class_tokens") or "")
            yield ImageSubset(folder, tokens, prefix=prefix, lines=True)


def _tabled(captions: Captions, prefix: str = "") -> Iterator[ImageSubset]:
    """The folders of the images in a table."""
    resolved = {path.resolve(): caption for path, caption in captions.items()}
    for folder, own in by_folder(resolved).items():
        yield ImageSubset(folder, named="table", prefix=prefix, captions=own)


def _of_entry(entry: Mapping[str, Any], file: Path) -> Iterator[ImageSubset]:
    """An entry of OneTrainer's concepts, or of SimpleTuner's backends."""
    if "path" in entry and "instance_data_dir" not in entry:
        if entry.get("enabled", True) and str(entry.get("type", "STANDARD")).upper() == "STANDARD":
            yield _of_concept(Path(entry["path"]), entry.get("text") or {})
        return
    unused = entry.get("disabled") or entry.get("is_regularisation_data")
    if entry.get("dataset_type", "image") == "image" and not unused:
        folder, strategy = Path(entry.get("instance_data_dir") or ""), entry.get("caption_strategy") or "filename"
        instance = str(entry.get("instance_prompt") or "")
        if strategy == "instanceprompt":
            yield ImageSubset(folder, instance, "caption")
            return
        if strategy == "parquet":
            images, table = _beside(file, folder), _beside(file, Path(entry["parquet"]["path"]))
            yield from _tabled(simpletuner_captions({**entry, "instance_data_dir": images}, table))
            return
        if strategy not in ("filename", "textfile"):
            raise ValueError(f"captions by caption_strategy={strategy!r} are not read; {ASKED}")
        prefix = instance if entry.get("prepend_instance_prompt") else ""
        yield ImageSubset(folder, named="words" if strategy == "filename" else "", prefix=prefix, lines=True)


def _of_concept(folder: Path, text: Mapping[str, Any]) -> ImageSubset:
    """OneTrainer's: a text beside each image, the image's own name, or one text for all (the first of its lines)."""
    source = text.get("prompt_source", "sample")
    if source != "concept":
        return ImageSubset(folder, named="stem" if source == "filename" else "", lines=True)
    path = Path(text.get("prompt_path") or "").expanduser()
    lines = path.read_text("utf-8-sig").split("\n") if path.is_file() else []
    caption = next((line.strip() for line in lines if line.strip()), "")
    if not caption:
        raise ValueError(f"{folder} has its captions in {path} (prompt_path), where there is none")
    return ImageSubset(folder, caption, "caption")


def _beside(file: Path, folder: Path) -> Path:
    """A path as the file means it: absolute, or relative to where one works, or else to the file."""
    path = folder.expanduser()
    return path if path.is_absolute() or path.exists() else file.parent / path
