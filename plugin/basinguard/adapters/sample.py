"""`basinguard sample`: what a protected model draws, beside ordinary CFG on the same noise, and how prompts pull."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from ..guidance import Constant, Observation, Rule
from .pipelines import last_trace, load, protect, rule_of, unprotect

FILES = ("contact_sheet.png", "gap.png", "samples.json")


@dataclass(frozen=True)
class Drawn:
    """Images of one prompt under one rule, one for each seed, and the trace of each evaluation."""

    prompt: str
    images: list[Image.Image]
    trace: list[Observation]


def sample(
    model: str | Path,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int] = (0, 1, 2, 3),
    timesteps: int = 50,
    guidance_scale: float = 7.5,
    rule: Rule | None = None,
    out: Path = Path("samples"),
) -> Path:
    """Draws every prompt with every seed, by ordinary CFG and by the rule; writes a contact sheet and the gap curve.

    Args:
        model: a directory or hub id of a diffusers pipeline.
        prompts: at least one.
        seeds: one image of each prompt for each; the noise of a seed is the same in both rows.
        timesteps: sampling steps.
        guidance_scale: of ordinary CFG, above 1.
        rule: instead of the one in the model's record.
        out: folder that is created for `contact_sheet.png`, `gap.png` and `samples.json`.

    Returns:
        The contact sheet's path.

    Raises:
        ValueError: no prompt, no seed, or a guidance scale that is not above 1.
        FileExistsError: one of the files is already there; nothing is overwritten.
        FileNotFoundError: no rule given, and the model carries no record.
    """
    _check(prompts, seeds, guidance_scale, out)
    pipe = load(model) if rule is None else protect(DiffusionPipeline.from_pretrained(model), rule)
    rule = rule_of(pipe)
    options = {"num_inference_steps": timesteps, "guidance_scale": guidance_scale}
    pairs = []
    for prompt in prompts:
        plain = draw(protect(pipe, Constant(guidance_scale)), prompt, seeds, **options)
        pairs.append((plain, draw(protect(pipe, rule), prompt, seeds, **options)))
    out.mkdir(parents=True, exist_ok=True)
    contact_sheet(pairs).save(out / FILES[0])
    gap_figure([plain for plain, _ in pairs], getattr(rule, "transition", None)).savefig(out / FILES[1], dpi=120)
    (out / FILES[2]).write_text(json.dumps([_numbers(plain, drawn, seeds) for plain, drawn in pairs], indent=2))
    return out / FILES[0]


def draw(pipe: Any, prompt: str, seeds: Sequence[int], **options: Any) -> Drawn:
    """One image of `prompt` for each seed from a protected pipeline; batch size never changes an image's noise."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images = pipe([prompt] * len(seeds), generator=generators, **options).images
    return Drawn(prompt, images, list(last_trace(pipe)))


def first_gap(pipe: Any, prompts: Sequence[str], seed: int = 0, **options: Any) -> tuple[float, list[float]]:
    """How strongly each prompt pulls at the start: one evaluation a prompt, for `triage.calibrate_triage`.

    Returns:
        The timestep, and the gap of each prompt there: the first that is not zero, as `schedules.Triage` reads it.
    """

    def stop(pipe: Any, index: int, timestep: Any, values: dict) -> dict:
        pipe._interrupt = min(_gaps(last_trace(pipe)[-1])) > 0
        return values

    scale = options.setdefault("guidance_scale", 7.5)
    options |= {"output_type": "latent", "callback_on_step_end": stop}
    generators = [torch.Generator().manual_seed(seed) for _ in prompts]
    before = pipe.__dict__.get("progress_bar")
    try:
        protect(pipe, Constant(scale))(list(prompts), generator=generators, **options)
        seen = last_trace(pipe)[-1]
    finally:
        unprotect(pipe)
        if before is not None:
            pipe.progress_bar = before
    return seen.timestep, _gaps(seen)


def _gaps(seen: Observation) -> list[float]:
    return [] if seen.gap is None else seen.gap.tolist()


def contact_sheet(pairs: Sequence[tuple[Drawn, Drawn]], cell: int = 160, margin: int = 8) -> Image.Image:
    """Two rows a prompt, ordinary CFG above the rule, one column a seed."""
    columns, label, title = len(pairs[0][0].images), 90, 26
    block = title + 2 * (cell + margin)
    sheet = Image.new("RGB", (label + columns * (cell + margin), len(pairs) * block), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, (plain, drawn) in enumerate(pairs):
        top = number * block
        pen.text((margin, top + 5), plain.prompt[:120], fill="black", font=font)
        for row, (name, images) in enumerate((("CFG", plain.images), ("guarded", drawn.images))):
            y = top + title + row * (cell + margin)
            pen.text((margin, y + cell // 2 - 8), name, fill="#555555", font=font)
            for column, image in enumerate(images):
                tile = image.convert("RGB").resize((cell, cell), Image.Resampling.LANCZOS)
                sheet.paste(tile, (label + column * (cell + margin), y))
    return sheet


def gap_figure(plain: Sequence[Drawn], transition: float | Sequence[float] | None) -> Figure:
    """The gap of every prompt along ordinary CFG, median over seeds with the range behind it."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for drawn in plain:
        timesteps = [seen.timestep for seen in drawn.trace]
        gaps = torch.stack([seen.gap for seen in drawn.trace if seen.gap is not None]).float().cpu()
        (line,) = axes.plot(timesteps, gaps.median(1).values, label=drawn.prompt[:40])
        axes.fill_between(timesteps, gaps.amin(1), gaps.amax(1), color=line.get_color(), alpha=0.15, linewidth=0)
    for point in [transition] if isinstance(transition, int | float) else transition or []:
        axes.axvline(point, color="black", linestyle="--", linewidth=1)
        axes.annotate(f"transition {point:g}", (point, 1), xycoords=("data", "axes fraction"), va="bottom", ha="center")
    seeds = len(plain[0].images)
    axes.set(xlabel="timestep (noisy → clean)", ylabel=f"gap, RMS of eps (median and range of {seeds} seeds)", ylim=0)
    axes.invert_xaxis()
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _numbers(plain: Drawn, drawn: Drawn, seeds: Sequence[int]) -> dict[str, Any]:
    return {
        "prompt": plain.prompt,
        "seeds": list(seeds),
        "timestep": [seen.timestep for seen in plain.trace],
        "gap": [_gaps(seen) for seen in plain.trace],
        "scale": [seen.scale.tolist() for seen in drawn.trace],
        "unet_evals": {"cfg": sum(s.unet_evals for s in plain.trace), "rule": sum(s.unet_evals for s in drawn.trace)},
    }


def _check(prompts: Sequence[str], seeds: Sequence[int], guidance_scale: float, out: Path) -> None:
    if isinstance(prompts, str) or not prompts or not seeds:
        raise ValueError(f"prompts={prompts!r}, seeds={seeds!r}: expected a list of at least one of each")
    if not guidance_scale > 1:
        raise ValueError(
            f"guidance_scale={guidance_scale}: ordinary CFG needs a scale above 1, the rule takes it lower"
        )
    there = [name for name in FILES if (out / name).exists()]
    if there:
        raise FileExistsError(f"{out} already holds {', '.join(there)}: name another folder, nothing is overwritten")
