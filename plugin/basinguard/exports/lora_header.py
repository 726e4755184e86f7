"""The header of a LoRA or single file: the record, and what managers and user interfaces show."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from .. import __version__
from ..core.record import Record
from .a1111 import ONE_STRENGTH
from .comfyui_strength import levels_hint
from .layout import HEADER_LORA_SHA256, HEADER_RECORD, HEADER_RECORD_SHA256, HEADER_STRENGTH, HEADER_TENSORS_SHA256
from .model_card import is_openrail, is_sd21
from .model_kind import STABLE_DIFFUSION, ModelKind
from .privacy import hub_id
from .sampler_grids import fits, steps_before
from .sentences import percent, rule_line, weights_line
from .ui_instructions import a1111_hint


@dataclass(frozen=True)
class LoraFacts:
    """What a header says of the tensors.

    Attributes:
        sha256: fingerprint, see `lora_formats.lora_sha256`.
        rank, alpha: the commonest of the file.
        strength: share of the trained strength that was saved.
        second_generation: whether the shapes are those of Stable Diffusion 2.
        kind: of the pipeline that it is for.
    """

    sha256: str
    rank: int
    alpha: float
    strength: float
    second_generation: bool
    kind: ModelKind = STABLE_DIFFUSION


def lora_header(record: Record, facts: LoraFacts, *, title: str) -> dict[str, str]:
    """The whole header; every value is text, as safetensors demands.

    Source: Stability-AI/ModelSpec 1.0.0 (`modelspec.*`); kohya-ss/sd-scripts (`ss_*`). Forge and A1111 know a LoRA
    for Stable Diffusion 2 by `ss_v2` alone.
    """
    architecture = f"{_architecture(record, facts.kind, second=_is_second(record, facts))}/lora"
    hint = usage_hint(record, strength=facts.strength, kind=facts.kind)
    spec = _modelspec(record, title, architecture, hint)
    return {"format": "pt"} | _ours(record, facts) | spec | _kohya(record, facts)


def model_header(
    record: Record, sha256: str, precision: str, *, kind: ModelKind, second: bool, title: str
) -> dict[str, str]:
    """The header of a whole model in one file.

    Args:
        record: the calibration.
        sha256: fingerprint of the tensors as they are stored.
        precision: what they are stored in, such as "float16".
        kind: of the pipeline.
        second: whether the model is of the shape of Stable Diffusion 2.
        title: the model's name.

    Source: Stability-AI/ModelSpec 1.0.0 (`modelspec.*`).
    """
    ours = record_rows(record) | {HEADER_TENSORS_SHA256: sha256, "basinguard.precision": precision}
    architecture = _architecture(record, kind, second=second)
    return {"format": "pt"} | ours | _modelspec(record, title, architecture, usage_hint(record, kind=kind))


def usage_hint(record: Record, *, strength: float = 1.0, kind: ModelKind = STABLE_DIFFUSION) -> str:
    """One paragraph that a person can follow in any tool."""
    filtered = f" It is {weights_line(record.product)}." if record.product.update_filter else ""
    return _how(record, strength=strength, kind=kind) + filtered


def _how(record: Record, *, strength: float, kind: ModelKind) -> str:
    """How it is sampled, and what it copies then."""
    rule, steps = record.guidance, record.sampler.timesteps
    risks = f"Copies of training images: {percent(record.risk)} so, {percent(record.plain)} with plain CFG"
    if schedule := record.product.strength_schedule:
        hint = (
            f"Strength of the LoRA: {schedule}; {rule_line(record)}. {levels_hint(schedule)} {ONE_STRENGTH}. {risks}."
        )
        return hint if strength == 1 else f"{hint} {_weaker(record, strength)}"
    if rule.plain:
        scale = f"CFG scale {record.scale:g}"
        hint = f"Plain CFG, {scale}. Copies of training images: {percent(record.risk)}."
        return hint if strength in (1, record.product.strength) else f"{hint} {_weaker(record, strength)}"
    hint = f"Guidance {rule.before:g} above timestep {rule.transition:g}, then your own CFG. "
    if fits(rule):
        hint += a1111_hint(record, kind) + _typed(rule.before, steps_before(rule, "simple", steps), steps)
    hint += f"{risks}."
    return hint if strength == 1 else f"{hint} {_weaker(record, strength)}"


def _weaker(record: Record, strength: float) -> str:
    """What strength 1 of the file is, and what was measured there."""
    safe = record.strength
    measured = safe is not None and safe.kind == "lora" and safe.value == strength
    risk = f", where plain CFG copied {percent(safe.risk)}" if measured and safe else ""
    return (
        f"Strength 1 of this file is {strength:g} of the trained one{risk}; the numbers before are those of "
        f"strength {1 / strength:.3g}."
    )


def _typed(before: float, switch: int, steps: int) -> str:
    cfg = f"cfg {before:g}" if before >= 0 else f"cfg {1 - before:g} with positive and negative swapped"
    return (
        f"At {steps} steps (scheduler simple) that is the first {switch} of them. "
        f"ComfyUI: KSamplerAdvanced with {cfg} up to step {switch}, a second one from there. "
    )


def record_rows(record: Record) -> dict[str, str]:
    """The record, its sum, and what wrote them."""
    text = record.to_json()
    return {
        "basinguard.version": __version__,
        HEADER_RECORD: text,
        HEADER_RECORD_SHA256: hashlib.sha256(text.encode()).hexdigest(),
    }


def _ours(record: Record, facts: LoraFacts) -> dict[str, str]:
    own = {HEADER_LORA_SHA256: facts.sha256, HEADER_STRENGTH: f"{facts.strength:g}"}
    return record_rows(record) | own


def _architecture(record: Record, kind: ModelKind, *, second: bool) -> str:
    if kind.xl:
        return "stable-diffusion-xl-v1-base"
    if not second:
        return "stable-diffusion-v1"
    return "stable-diffusion-v2-768-v" if _is_v(record) else "stable-diffusion-v2-512"


def _modelspec(record: Record, title: str, architecture: str, hint: str) -> dict[str, str]:
    v, side = _is_v(record), record.sampler.resolution
    header = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": "v" if v else "epsilon",
        "modelspec.usage_hint": hint,
    }
    return header | ({"modelspec.license": "openrail++"} if is_openrail(record.base) else {})


def _kohya(record: Record, facts: LoraFacts) -> dict[str, str]:
    second, side = _is_second(record, facts) and not facts.kind.xl, record.sampler.resolution
    generation = "sdxl_base_v1-0" if facts.kind.xl else f"sd_v{2 if second else 1}{'_v' if _is_v(record) else ''}"
    header = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(facts.rank),
        "ss_network_alpha": f"{facts.alpha:g}",
        "ss_v2": str(second),
        "ss_base_model_version": generation,
        "ss_resolution": f"({side}, {side})",
    }
    return header | ({"ss_sd_model_name": record.base} if hub_id(record.base) else {})


def _is_v(record: Record) -> bool:
    return record.sampler.prediction_type == "v_prediction"


def _is_second(record: Record, facts: LoraFacts) -> bool:
    return facts.second_generation or is_sd21(record.base)
