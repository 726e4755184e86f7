"""Refuses a fine-tune that cannot work, before any weight is loaded: all problems at once, each with its remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from transformers import CLIPTokenizer

from ..core.safetensors_header import read_header
from ..pipelines.architecture import Architecture, misfit, sd21_tokenizer, wrong_architecture
from ..pipelines.families.family import Family
from ..pipelines.families.flow import SCHEDULER, FlowFamily
from ..pipelines.forward_process import PREDICTION_TYPES
from ..pipelines.loading import family_at, locate, model_config, model_file, require_capability
from ..pipelines.schedulers import require_scheduler
from ..pipelines.single_file import prediction_type_of
from .data import ImageFolder
from .finetune_options import LossOptions
from .forward_processes import require_flow_loss


def check_fit(
    base: str | Path,
    images: ImageFolder | None = None,
    *,
    probe_images: int = 0,
    scheduler: str | None = None,
    architecture: Architecture = "any",
    prediction_type: str | None = None,
    loss: LossOptions = LossOptions(),
    exported: bool = False,
) -> None:
    """Checks everything a fit needs without loading weights; warns of oddities.

    Args:
        base: the model to fine-tune, as `load_pipeline` takes it.
        images: the training set.
        probe_images: how many training captions the guard wants to probe.
        scheduler: the sampler asked for, by diffusers' class name; None: the model's own.
        architecture: what the configuration is written for.
        prediction_type: what the configuration is written for; None: whatever the base predicts.
        loss: what counts in the loss.
        exported: the guard is to write a guarded directory.

    Raises:
        ValueError: one line for each problem, naming the file or value and what to do.
    """
    problems = [*base_problems(base, architecture, prediction_type)]
    if not problems and isinstance(family_at(base), FlowFamily):
        problems += _error_of(require_flow_loss, loss)
    if exported:
        problems += _error_of(require_capability, base, "exportable")
    if scheduler is not None:
        problems += _error_of(require_scheduler, scheduler)
    if images is not None:
        problems += [*images.source.problems, *_too_few(images, probe_images)]
        if not list(base_problems(base)):
            refused, warned = _fit_between(base, images)
            problems += refused
            for line in (*warned, *images.source.oddities):
                rank_zero_warn(line)
    if problems:
        lines = "\n".join(f"- {problem}" for problem in dict.fromkeys(problems))
        raise ValueError(f"nothing was trained; {len(set(problems))} problem(s) to solve first:\n{lines}")


def _too_few(images: ImageFolder, probe_images: int) -> Iterator[str]:
    if (count := images.secrets) < probe_images:
        yield (
            f"the guard is to probe {probe_images} training images, but there are {count}; lower its `captions` "
            f"(--trainer.callbacks.plan.captions {count} where it is the last), or add images"
        )


def base_problems(
    base: str | Path, architecture: Architecture = "any", prediction_type: str | None = None
) -> Iterator[str]:
    """What is wrong with a model, as far as its configuration files and the headers of its weights tell."""
    other_kind = _error_of(require_capability, base, "trainable")
    if other_kind:
        yield from other_kind
        return
    family = family_at(base)
    parts = family.network_names(model_config(base, "model_index.json"))
    names = ["scheduler/scheduler_config.json", *(f"{part}/config.json" for part in parts)]
    unreadable = [line for name in names for line in _error_of(model_config, base, name)]
    yield from unreadable
    if unreadable:
        return
    source, denoiser = locate(base), model_config(base, names[1])
    yield from wrong_architecture(str(base), family.class_name, denoiser, architecture)
    if isinstance(source, Path) and source.is_file():
        predicts = prediction_type_of(read_header(source))  # None: measured when it is loaded
    else:
        scheduler = model_config(base, names[0])
        yield from _scheduler_problems(base, scheduler, family)
        flow = isinstance(family, FlowFamily)
        predicts = "flow_prediction" if flow else scheduler.get("prediction_type", "epsilon")
    if prediction_type and predicts and predicts != prediction_type:
        yield (
            f"base {str(base)!r} predicts {predicts}, this configuration is for {prediction_type}; give such a base, "
            f"or set model.init_args.prediction_type to {predicts}"
        )
    if isinstance(source, Path) and source.is_dir():
        yield from _weight_problems(base, source, parts, denoiser)


def _weight_problems(
    base: str | Path, folder: Path, parts: Sequence[str], unet_config: dict[str, Any]
) -> Iterator[str]:
    """Weights that end too early, or that belong to another configuration."""
    for part in parts:
        for path in sorted((folder / part).glob("*.safetensors")):
            damaged = _error_of(read_header, path)
            yield from (f"base {str(base)!r}: {line}" for line in damaged)
            if part == "unet" and not damaged and (why := misfit(read_header(path), unet_config)):
                yield f"base {str(base)!r}: {path.name} does not fit: {why}; download or copy it again"


def _scheduler_problems(base: str | Path, config: dict[str, Any], family: Family) -> Iterator[str]:
    if isinstance(family, FlowFamily):
        if (name := config.get("_class_name")) != SCHEDULER:
            yield f"base {str(base)!r}: scheduler {name!r} of a flow model; expected {SCHEDULER}"
        return
    for line in _error_of(require_scheduler, str(config.get("_class_name"))):
        yield f"base {str(base)!r}: {line}"
    kind = config.get("prediction_type", "epsilon")
    if kind not in PREDICTION_TYPES:
        yield f"base {str(base)!r}: prediction type {kind!r} of its scheduler; accepted: {', '.join(PREDICTION_TYPES)}"


def _fit_between(base: str | Path, images: ImageFolder) -> tuple[list[str], list[str]]:
    """What is wrong, and what is odd, between a model and a training set."""
    factor = 2 ** (len(model_config(base, "vae/config.json").get("block_out_channels", [0])) - 1)
    factor *= model_config(base, f"{family_at(base).denoiser_name}/config.json").get("patch_size", 1)
    sides = [("resolution", side) for side in images.resolutions]
    sides += [("bucket_step", images.framing.bucket_step)] if images.buckets else []
    refused = [
        f"{name}={side} is not a multiple of {factor}, the model's downsampling factor"
        for name, side in sides
        if side % factor
    ]
    limit, counts = _token_counts(base, [caption for _, caption in images.items])
    long = [
        f"{label}: caption of {count} tokens, the model takes {limit}"
        for (label, _), count in zip(images.items, counts, strict=True)
        if count > limit
    ]
    if images.reading.long_captions == "refuse":
        return [*refused, *(f"{line}; shorten it, or set reading.long_captions: truncate" for line in long)], []
    return refused, [f"{line}; the rest is cut off" for line in long]


def _token_counts(base: str | Path, captions: list[str]) -> tuple[int, list[int]]:
    """The most tokens a caption may have, and how many each has, with their start and end marks."""
    source = locate(base)
    if isinstance(source, Path) and source.is_file():
        tokenizer = sd21_tokenizer()
    else:
        model_file(base, "tokenizer/tokenizer_config.json")
        tokenizer = CLIPTokenizer.from_pretrained(
            source, subfolder="tokenizer", local_files_only=isinstance(source, Path)
        )
    positions = int(model_config(base, "text_encoder/config.json")["max_position_embeddings"])
    limit = min(int(tokenizer.model_max_length), positions)
    ids = tokenizer(captions, truncation=False, verbose=False).input_ids if captions else []
    return limit, [len(row) for row in ids]


def _error_of(check: Callable[..., Any], *arguments: Any) -> list[str]:
    """The message of a check that raises: one line, or none."""
    try:
        check(*arguments)
    except (ValueError, OSError) as error:
        return [str(error)]
    return []
