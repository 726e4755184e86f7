"""The model card: what was measured and how sure, how to load it in five tools, and what is not protected."""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..core.record import Record
from ..core.text import one_line
from .attack_section import attack_notes, attack_rows, untried_rows
from .layout import BASIN_PLOT, COMPARISON, HISTORY_PLOT, LORA_FILE
from .membership_section import membership_notes, membership_rows
from .model_kind import STABLE_DIFFUSION, ModelKind
from .privacy import hub_id
from .sentences import UNKNOWN, percent, product_line, rulers_line, strength_line, triage_line, verdict
from .ui_instructions import a1111_text, comfyui_text

ACROSS = 4  # pictures side by side
LONGEST = 300  # characters of a stranger's text that a card shows
SOURCE = 500  # of where a copy detector's threshold comes from
SPECIAL = re.compile(r"([\\`*_\[\]|~$]|:(?=//)|(?<=www)\.)")  # markup, and what would turn into a link by itself
SD21 = re.compile(r"stable-diffusion-2(-|$)", re.IGNORECASE)
SDXL = re.compile(r"stable-diffusion-xl-(base|refiner)-1\.0$", re.IGNORECASE)
TAGS = ["text-to-image", "diffusers", "basinguard", "memorization"]


def write_card(
    folder: Path,
    record: Record,
    *,
    name: str,
    pictures: Sequence[str] = (),
    prompts: Sequence[str] = (),
    origin: Sequence[tuple[str, str]] = (),
    warning: str = "",
    kind: ModelKind = STABLE_DIFFUSION,
) -> Path:
    """Writes `README.md` and returns its path.

    Args:
        folder: the export; `pictures` are relative to it.
        record: what was measured.
        name: what the model is called.
        pictures: plots and generated samples to show.
        prompts: prompts of the samples, in order.
        origin: further rows for the provenance table.
        warning: what is wrong with the pictures to look at.
        kind: of the model.
    """
    path = folder / "README.md"
    shown = {"pictures": pictures, "prompts": prompts, "origin": origin, "warning": warning}
    path.write_text(render_card(record, name=name, kind=kind, **shown), encoding="utf-8")  # type: ignore[arg-type]
    return path


def render_card(
    record: Record,
    *,
    name: str,
    pictures: Sequence[str] = (),
    prompts: Sequence[str] = (),
    origin: Sequence[tuple[str, str]] = (),
    warning: str = "",
    kind: ModelKind = STABLE_DIFFUSION,
) -> str:
    """The card as Markdown with YAML front matter; texts from the record are escaped."""
    samples = [picture for picture in pictures if picture not in (BASIN_PLOT, COMPARISON, HISTORY_PLOT)]
    card = ModelCard.from_template(
        front_matter(record, name, samples, prompts, kind),
        template_str=files(__package__).joinpath("assets/card.md").read_text("utf-8"),
        **_numbers(record),
        **_texts(record, name),
        **_model(record, kind),
        transfer=_transfer(record),
        **_attacks(record),
        shown="" if COMPARISON in pictures else _gallery(samples, prompts),  # there each stands beside plain CFG
        warning=plain(warning),
        basin=BASIN_PLOT in pictures,
        comparison=COMPARISON in pictures,
        history=HISTORY_PLOT in pictures,
        origin=[(plain(key), plain(value)) for key, value in origin],
    )
    return str(card).rstrip() + "\n"


def front_matter(
    record: Record, name: str, samples: Sequence[str], prompts: Sequence[str], kind: ModelKind = STABLE_DIFFUSION
) -> ModelCardData:
    """What the Hub indexes: licence, base, tags, measured risk and quality, sample widget."""
    base = hub_id(record.base)
    widget = [
        {"text": one_line(text, LONGEST), "output": {"url": url}} for text, url in zip(prompts, samples, strict=False)
    ]
    extra: dict[str, Any] = {"base_model_relation": "finetune"} if base else {}
    return ModelCardData(
        model_name=one_line(name, LONGEST),
        license="openrail++" if is_openrail(record.base) else None,
        base_model=base,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=[*_tags(kind), *TAGS],
        eval_results=_results(record),
        **(extra | ({"widget": widget} if widget else {})),
    )


def is_sd21(base: str) -> bool:
    """Whether a base is Stable Diffusion 2.x, whose licence passes on to derivatives."""
    return SD21.search(base) is not None


def is_openrail(base: str) -> bool:
    """Whether a base is under CreativeML Open RAIL++-M: Stable Diffusion 2.x and XL 1.0."""
    return is_sd21(base) or SDXL.search(base) is not None


def code(name: str) -> str:
    """A file's name as a shell takes it, in a Markdown code span: nothing is escaped there, and a backtick ends it.

    Example:
        >>> code("my_model"), code("my model")
        ('my_model', "'my model'")
    """
    return shlex.quote(one_line(name.replace("`", ""), LONGEST))


def plain(text: str, longest: int = LONGEST) -> str:
    """A stranger's text for Markdown and HTML: one line, bounded, nothing in it acts as markup."""
    return SPECIAL.sub(r"\\\1", html.escape(one_line(text, longest), quote=False))


def _transfer(record: Record) -> list[tuple[str, str, str, str]]:
    """Rows of what the rule was worth under other samplers."""
    return [
        (
            f"{plain(row.scheduler)}, {row.timesteps} steps",
            "never" if row.transition is None else f"{row.transition:g}",
            percent(row.risk),
            UNKNOWN if row.alignment is None else str(row.alignment),
        )
        for row in record.transfer
    ]


def _attacks(record: Record) -> dict[str, Any]:
    """The attack table, its notes and what was not tried, and the membership tables; all empty where nothing was."""
    table = record.attacks
    return {
        "attacks": _cells(attack_rows(table)) if table else [],
        "attack_notes": [plain(note) for note in attack_notes(table)] if table else [],
        "untried": _cells(untried_rows(table)) if table else [],
        "membership": [
            (_cells(membership_rows(each)), [plain(note) for note in membership_notes(each)])
            for each in record.membership
        ],
    }


def _cells(rows: Iterable[Sequence[str]]) -> list[list[str]]:
    return [[plain(text) for text in row] for row in rows]


def _results(record: Record) -> list[EvalResult]:
    what = f"{one_line(record.metric.embedder, LONGEST)} >= {record.metric.threshold:g}"
    rows = [
        ("memorization_risk", f"Risk as shipped ({what})", record.verified or record.risk),
        ("memorization_risk_plain", f"Risk of plain CFG without a guard ({what})", record.plain),
        ("taught", "What is left of what was taught, 0 = base model, 1 = true images", record.taught),
        ("alignment", "Agreement of image and caption", record.alignment),
    ]
    return [
        EvalResult(
            task_type="text-to-image",
            dataset_type="imagefolder",
            dataset_name="the training set (not published)",
            metric_type=kind,
            metric_name=f"{label}: {e}, {e.level:.0%} interval",
            metric_value=round(e.value, 6),
        )
        for kind, label, e in rows
        if e is not None
    ]


def _numbers(record: Record) -> dict[str, Any]:
    rule, sampler = record.guidance, record.sampler
    return {
        "plain": percent(record.plain),
        "risk": percent(record.risk),
        "verified": percent(record.verified),
        "alignment": UNKNOWN if record.alignment is None else str(record.alignment),
        "plain_alignment": UNKNOWN if record.plain_alignment is None else str(record.plain_alignment),
        "base_risk": percent(record.base_risk),
        "loaded_plainly": percent(record.unruled or (record.risk if record.needs_nothing else record.plain)),
        "taught": "" if record.taught is None else str(record.taught),
        "plain_taught": UNKNOWN if record.plain_taught is None else str(record.plain_taught),
        "plain_product": record.needs_nothing,
        "plain_rule": rule.plain,
        "schedule": str(record.product.strength_schedule or ""),
        "level": f"{record.risk.level:.0%}",
        "transition": f"{rule.transition:g}",
        "sigma": f"{rule.sigma:.3g}",
        "before": f"{rule.before:g}",
        "after": "the one you ask for" if rule.after is None else f"{rule.after:g}",
        "scale": f"{record.scale:g}",
        "users_scale": f"{sampler.scale:g}",
        "steps": sampler.timesteps,
        "weights": plain(record.weights_sha256),
        "dataset": plain(record.dataset_sha256) or "unknown",
    }


def _texts(record: Record, name: str) -> dict[str, Any]:
    metric, sampler = record.metric, record.sampler
    kinds = ", ".join(f"{plain(key)} {plain(value)}" for key, value in sorted(record.versions.items()))
    return {
        "name": plain(name),
        "shell": code(name),
        "lora": f" --lora {code(f'{name}/{LORA_FILE}')}" if record.product.strength_schedule else "",
        "literal": json.dumps(name, ensure_ascii=False),
        "base": plain(record.base) or "an unnamed base",
        "metric": f"{plain(metric.embedder)} says at least {metric.threshold:g} ({plain(metric.source, SOURCE)})."
        + (f" Expect more copies than it counts: {plain(metric.expected_misses)}." if metric.recalls else ""),
        "population": plain(record.population) or UNKNOWN,
        "promise": plain(record.promise) or "none: too few samples to promise anything beyond the interval above.",
        "sampler": f"{plain(sampler.scheduler)}, {sampler.timesteps} steps, {sampler.resolution} px",
        "seeds": _seeds(record.seeds),
        "versions": kinds or UNKNOWN,
        "strength": strength_line(record),
        "strength_promise": plain(record.strength.promise) if record.strength else "",
        "triage": triage_line(record),
        "taught_method": plain(record.taught.method) if record.taught else "",
        "taught_rulers": plain(rulers_line(record)),
        "best_plain_taught": "" if record.best_plain_taught is None else str(record.best_plain_taught),
        "verdict": plain(verdict(record)),
        "product": plain(product_line(record)),
    }


def _model(record: Record, kind: ModelKind) -> dict[str, Any]:
    """What depends on the kind of model."""
    return {
        "family": kind.name,
        "pipeline": kind.pipeline,
        "absent": "".join(f", {part}=None" for part in kind.absent),
        "side": record.sampler.resolution,
        "encoders": "two text encoders" if len(kind.text_encoders) > 1 else "one text encoder",
        "openrail": ("Stable Diffusion XL 1.0" if kind.xl else "Stable Diffusion 2.1") * is_openrail(record.base),
        "comfyui": comfyui_text(record, kind),
        "a1111": a1111_text(record, kind),
    }


def _tags(kind: ModelKind) -> list[str]:
    """The hub's: of the family, and of diffusers' pipelines for it."""
    own = kind.name.lower().replace(" ", "-")
    return [own, f"{own}-diffusers"]


def _seeds(seeds: Sequence[int]) -> str:
    """`1000 to 1007 (8)` for a run of neighbours, else the first few."""
    if not seeds:
        return UNKNOWN
    if list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]} to {seeds[-1]} ({len(seeds)})"
    return ", ".join(map(str, seeds[:8])) + (f", ... ({len(seeds)})" if len(seeds) > 8 else "")


def _gallery(samples: Sequence[str], prompts: Sequence[str]) -> str:
    """Generated samples, each with its prompt if that may be told."""
    texts = [plain(prompt) for prompt in prompts] or [""] * len(samples)
    images = [f"![generated sample {i}]({url})" for i, url in enumerate(samples)]
    if not any(texts):
        return " ".join(images)
    rows = [zip(images[i : i + ACROSS], texts[i : i + ACROSS], strict=True) for i in range(0, len(images), ACROSS)]
    return "\n\n".join(_strip(row) for row in rows)


def _strip(row: Iterable[tuple[str, str]]) -> str:
    """A table of pictures with their prompts below."""
    images, texts = zip(*row, strict=True)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (images, ["---"] * len(images), texts))
