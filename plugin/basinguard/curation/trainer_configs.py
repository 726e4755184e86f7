"""A curation as the data configs of four trainers: sd-scripts, OneTrainer, SimpleTuner and ai-toolkit.

Each names the folders of `trainer_folders` and keeps their repeats, class tokens and regularization. Where an image has
several captions, sd-scripts draws one (and gives `{a|b}` in it a meaning), OneTrainer and SimpleTuner take one a line,
and ai-toolkit is given the first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from .trainer_folders import FIRST_CAPTION, TrainerFolders, TrainerSubset, words_file


def trainer_files(folders: TrainerFolders, *, resolution: int) -> dict[str, bytes]:
    """The configs by file name; they are written beside the folders."""
    caches = folders.root.parent / "simpletuner-cache"
    texts = {
        "kohya.toml": kohya_config(folders, resolution),
        "onetrainer.json": _json(onetrainer_concepts(folders)),
        "simpletuner.json": _json(simpletuner_backends(folders, resolution, caches)),
        "ai-toolkit.yaml": yaml.safe_dump(ai_toolkit_job(folders, resolution), sort_keys=False, allow_unicode=True),
    }
    return {name: text.encode() for name, text in texts.items()}


def kohya_config(folders: TrainerFolders, resolution: int) -> str:
    """A dataset config for `--dataset_config`.

    Source: kohya-ss/sd-scripts, docs/config_README-en.md, "DreamBooth-specific options" and "Multi-line captions".
    """
    lines = ["[general]", 'caption_extension = ".txt"', "", "[[datasets]]"]
    lines += [f"resolution = {resolution}", "enable_bucket = true"]
    for subset in folders.subsets:
        lines += ["", "  [[datasets.subsets]]", f"  image_dir = {_toml(str(subset.folder))}"]
        lines += [f"  num_repeats = {subset.repeats}"]
        lines += [f"  class_tokens = {_toml(subset.words)}"] if subset.words else []
        lines += ["  enable_wildcard = true"] if subset.variants else []
        lines += ["  is_reg = true"] if subset.regularization else []
    return "\n".join(lines) + "\n"


def onetrainer_concepts(folders: TrainerFolders) -> list[dict[str, Any]]:
    """Concepts for `concept_file_name`; regularization as prior prediction, which older versions train as any other.

    Source: Nerogar/OneTrainer, modules/util/config/ConceptConfig.py, version 1.
    """
    return [
        {
            "__version": 1,
            "name": subset.folder.name,
            "path": str(subset.folder),
            "enabled": True,
            "type": "PRIOR_PREDICTION" if subset.regularization else "STANDARD",
            "include_subdirectories": False,
            "balancing": float(subset.repeats),
            "balancing_strategy": "REPEATS",
            "text": _onetrainer_text(folders, subset),
        }
        for subset in folders.subsets
    ]


def _onetrainer_text(folders: TrainerFolders, subset: TrainerSubset) -> dict[str, str]:
    if subset.captioned:
        return {"prompt_source": "sample"}
    return {"prompt_source": "concept", "prompt_path": str(folders.root / words_file(subset))}


def simpletuner_backends(folders: TrainerFolders, resolution: int, caches: Path) -> list[dict[str, Any]]:
    """Data backends; SimpleTuner counts repeats from 0.

    Source: bghira/SimpleTuner, documentation/DATALOADER.md, "caption_strategy", "repeats", "is_regularisation_data".
    """
    backends = [
        {
            "id": f"basinguard-{number}-{subset.folder.name}",
            "type": "local",
            "instance_data_dir": str(subset.folder),
            **_simpletuner_captions(subset),
            "resolution": resolution,
            "resolution_type": "pixel",
            "cache_dir_vae": str(caches / f"vae-{number}"),
            "repeats": subset.repeats - 1,
        }
        for number, subset in enumerate(folders.subsets, start=1)
    ]
    text_embeds = {
        "id": "basinguard-text-embeds",
        "type": "local",
        "dataset_type": "text_embeds",
        "default": True,
        "cache_dir": str(caches / "text"),
    }
    return [*backends, text_embeds]


def _simpletuner_captions(subset: TrainerSubset) -> dict[str, Any]:
    prior = {"is_regularisation_data": True} if subset.regularization else {}
    if subset.captioned:
        return {"caption_strategy": "textfile", **prior}
    return {"caption_strategy": "instanceprompt", "instance_prompt": subset.words, **prior}


def ai_toolkit_job(folders: TrainerFolders, resolution: int) -> dict[str, Any]:
    """A job with the datasets alone, to be joined with the rest of one.

    Source: ostris/ai-toolkit, config/examples/train_lora_flux_24gb.yaml and toolkit/config_modules.py, DatasetConfig.
    """
    datasets = [
        {
            "folder_path": str(subset.folder),
            "caption_ext": FIRST_CAPTION.removeprefix(".") if subset.variants else "txt",
            **({"default_caption": subset.words} if subset.words else {}),
            "num_repeats": subset.repeats,
            **({"is_reg": True} if subset.regularization else {}),
            "resolution": [resolution],
        }
        for subset in folders.subsets
    ]
    return {
        "job": "extension",
        "config": {"name": "curated", "process": [{"type": "sd_trainer", "datasets": datasets}]},
    }


def _json(values: Any) -> str:
    return json.dumps(values, ensure_ascii=False, indent=2) + "\n"


def _toml(text: str) -> str:
    """A TOML basic string; its escapes are JSON's, besides DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
