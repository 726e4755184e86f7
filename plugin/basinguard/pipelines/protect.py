"""A rule inside a stock diffusers pipeline: `protect(pipe, rule)`, `unprotect(pipe)`, `load(directory)`.

The rule belongs to the pipeline and its copies: a protected one is of its own class with one method more, and its rule
is an attribute that `copy`, `deepcopy`, `pickle` and `spawn` carry along. Its denoising loop runs inside
`with self.progress_bar(...)`, so that is where the denoiser is steered, for this thread, and, whatever happens,
restored: outside the loop the UNet carries no hook, and another pipeline that shares it is not affected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from ..core.record import Record, parse_record, read_record
from ..core.text import one_line
from ..exports.layout import LORA_FILE, RECORD_FILE, RECORD_KEY, record_in
from ..guidance.core import Observation, Rule
from ..guidance.strength import scalable_layers
from ..guidance.triage import Triage
from .attachment import RULE, Attached, denoiser, fitting, schedule_of, steering
from .families.registry import FAMILIES, family_or_none, in_lists, why_no_rule
from .loading import absent_parts, locate
from .loading_messages import without_notice
from .lora_files import load_lora

BATCHED = frozenset(
    f"StableDiffusion{kind}Pipeline"
    for kind in (
        *("", "Img2Img", "Inpaint", "ControlNet", "ControlNetImg2Img", "ControlNetInpaint", "3"),
        *("XL", "XLImg2Img", "XLInpaint", "XLControlNet", "XLControlNetImg2Img", "XLControlNetInpaint"),
    )
)


def protect(pipe: DiffusionPipeline, rule: Rule | Record, *, triage: bool = False) -> Any:
    """Makes `pipe` sample by `rule`; returns the same object, changed in place. Protecting again replaces the rule.

    Call the pipeline as before, with a `guidance_scale` above 1 (Z-Image's above 0, which counts one less): it is what
    `after=None` stands for.

    Args:
        pipe: a diffusers pipeline whose class (or a base of it) is in `BATCHED`, or Z-Image's.
        rule: a rule, or the record of a calibration made on this model. With a `strength_schedule` that is the base
            model with its LoRA unmerged, whose strength then follows the timestep.
        triage: prompts that the record's triage takes for harmless keep plain CFG; the share of pulling ones among
            them, its miss rate, comes on top of the risk that the record promises.

    Raises:
        TypeError: not a pipeline that evaluates both branches of its guidance in one batch.
        ValueError: a guidance-distilled model, a record made for another prediction type or noise schedule, strengths
            by timestep for a model whose LoRA is merged or cannot be scaled, or `triage` without a record that has it.

    Example:
        `protect(pipe, SwitchAt(600, before=-2.0, after=None))("a red circle", guidance_scale=7.5)`
    """
    _check(pipe)
    record = rule if isinstance(rule, Record) else None
    _require_schedulable(pipe, record)
    if triage:
        rule = _triaged(pipe, rule)
    elif isinstance(rule, Record):
        rule = fitting(pipe, rule)
    if not callable(getattr(rule, "scale", None)):
        raise TypeError(f"protect(pipe, {rule!r}): expected a rule, such as SwitchAt(600), or a Record")
    unprotect(pipe)
    own = pipe.__dict__.pop("progress_bar", None)
    pipe.__dict__[RULE] = Attached(rule, record, own)
    pipe.__class__ = steering(pipe.__class__)
    return pipe


def unprotect(pipe: DiffusionPipeline) -> Any:
    """Takes the rule off `pipe` again, leaving exactly what `protect` was given; returns the same object."""
    attached = pipe.__dict__.pop(RULE, None)
    if attached is not None:
        pipe.__class__ = type(pipe).__mro__[1]
        if attached.own is not None:
            pipe.__dict__.setdefault("progress_bar", attached.own)
    return pipe


@contextmanager
def protected(pipe: DiffusionPipeline, rule: Rule | Record | None) -> Iterator[None]:
    """Inside, `pipe` samples by `rule`, or unprotected by None; afterwards it carries what it carried before."""
    before = pipe.__dict__.get(RULE)
    unprotect(pipe)
    try:
        if rule is not None:
            protect(pipe, rule)
        yield
    finally:
        unprotect(pipe)
        if before is not None:
            pipe.__dict__.pop("progress_bar", None)
            pipe.__dict__[RULE] = before
            pipe.__class__ = steering(pipe.__class__)


def is_protected(pipe: DiffusionPipeline) -> bool:
    """Whether `pipe` samples by a rule: `protect` was called on it, or on what it is a copy of.

    A pipeline made of a protected one's `components`, or `from_pipe`, is none: protect it too.
    """
    return RULE in pipe.__dict__ and "progress_bar" not in pipe.__dict__


def rule_of(pipe: DiffusionPipeline) -> Rule:
    """The rule of a protected pipeline."""
    return _attached(pipe).rule


def last_trace(pipe: DiffusionPipeline) -> list[Observation]:
    """What the rule saw and decided in the latest call of a protected pipeline, one entry per evaluation."""
    return _attached(pipe).trace


def _attached(pipe: DiffusionPipeline) -> Attached:
    if not is_protected(pipe):
        raise ValueError("this pipeline carries no rule; protect(pipe, rule) first")
    attached: Attached = pipe.__dict__[RULE]
    return attached


def load(source: str | Path, *, triage: bool = False, **options: Any) -> Any:
    """A protected pipeline from a directory or hub id that carries a record; no remote code is run.

    Args:
        source: a directory, or a hub id `owner/name`.
        triage: see `protect`.
        options: as `DiffusionPipeline.from_pretrained` takes them.

    Raises:
        FileNotFoundError: no such directory, or neither `basinguard.json` nor a record in the scheduler's config.
        ValueError: the pipeline or its record cannot be read, or they do not fit each other.
    """
    if options.pop("trust_remote_code", False) or "custom_pipeline" in options:
        raise ValueError("basinguard.load runs no remote code: leave out custom_pipeline and trust_remote_code")
    if not options.setdefault("use_safetensors", True):
        raise ValueError("basinguard.load opens no pickle, which may run code: leave out use_safetensors")
    place = locate(source)
    absent = absent_parts(place) if isinstance(place, Path) else {}
    try:
        with without_notice():
            pipe = DiffusionPipeline.from_pretrained(place, **(absent | options))
    except Exception as error:  # a loader meets every kind of damage, a hub every kind of refusal
        cause = f"{type(error).__name__}: {one_line(str(error), 300)}"
        raise ValueError(
            f"{source}: cannot be loaded as a diffusers pipeline ({cause}); "
            "download or copy it again, or check the hub id and the network"
        ) from error
    record = _find_record(place, pipe, options)
    if schedule_of(record) is not None and (lora := _stored(place, LORA_FILE, options)) is not None:
        load_lora(pipe, lora)
    return protect(pipe, record, triage=triage)


def _check(pipe: DiffusionPipeline) -> None:
    kinds = {kind.__name__ for kind in type(pipe).__mro__}
    own = family_or_none(pipe)
    if own is not None and own.distilled(pipe):
        raise ValueError(why_no_rule(pipe))
    if not (kinds & BATCHED or in_lists(pipe)):
        guided = own is not None and own.capabilities.guidance == "guider"
        raise TypeError(
            f"{type(pipe).__name__} does not evaluate both branches of its guidance in one batch, so a rule has "
            f"nothing to act on; {'give its modular pipeline a RuleGuider; ' if guided else ''}"
            f"pipelines that do: {', '.join(sorted(BATCHED | {f.class_name for f in FAMILIES if f.in_lists}))}"
        )
    if hasattr(type(pipe), "basinguard_rule"):
        raise TypeError(f"{type(pipe).__name__} already steers itself by its own record; load it without pipeline.py")
    config = denoiser(pipe).config
    if config.get("time_cond_proj_dim") is not None or config.get("guidance_embeds"):
        raise ValueError("this model is guidance-distilled: it has no unconditional branch, so no rule can act on it")


def _require_schedulable(pipe: DiffusionPipeline, record: Record | None) -> None:
    """Refuses strengths by timestep where there is no LoRA to scale, or the timesteps cannot be followed."""
    if schedule_of(record) is None:
        return
    if in_lists(pipe):
        raise ValueError(f"a strength_schedule cannot follow the timesteps of a {type(pipe).__name__}")
    scalable_layers(denoiser(pipe))


def _triaged(pipe: DiffusionPipeline, record: Any) -> Triage:
    triage = record.triage if isinstance(record, Record) else None
    if triage is None:
        raise ValueError(
            "triage=True needs a record with a calibrated triage, and this has none: `basinguard triage` makes one, "
            "or protect(pipe, Triage(rule, threshold)) with a threshold of your own"
        )
    return Triage(fitting(pipe, record), triage.threshold, record.guidance.after, triage.timestep)


def _find_record(source: str | Path, pipe: DiffusionPipeline, options: Mapping[str, Any]) -> Record:
    if (path := _stored(source, RECORD_FILE, options)) is not None:
        return read_record(path)
    inside = record_in(pipe.scheduler.config)
    if inside is None:
        raise FileNotFoundError(
            f"{source}: neither {RECORD_FILE} nor a {RECORD_KEY!r} entry in the scheduler's config, so there is no "
            "rule to protect it by; calibrate it first, or protect(pipe, rule) with a rule of your own"
        )
    return parse_record(str(inside), f"{source}: the {RECORD_KEY!r} entry in the scheduler's config")


def _stored(source: str | Path, name: str, options: Mapping[str, Any]) -> Path | None:
    """A file of a directory or hub id beside the pipeline's own; None where there is none."""
    if isinstance(source, Path):
        return source / name if (source / name).is_file() else None
    of_the_hub = ("revision", "token", "cache_dir", "local_files_only")
    try:
        return Path(hf_hub_download(source, name, **{key: options[key] for key in of_the_hub if key in options}))
    except EntryNotFoundError:
        return None
