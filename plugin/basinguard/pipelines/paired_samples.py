"""What a protected model draws, beside plain CFG on the same noise, and how prompts pull."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..guidance.core import Constant, Observation, Rule
from ..pipelines.loading import locate
from ..pipelines.protect import last_trace, load, protect, rule_of
from ..pipelines.triage_sampling import gaps
from ..plots.contact_sheet import contact_sheet

FILES = ("contact_sheet.png", "gap.png", "samples.json")


@dataclass(frozen=True)
class Drawn:
    """Images [N, 3, H, W] in [0, 1] of one prompt under one rule, one for each seed, and what the rule saw."""

    prompt: str
    images: Tensor
    trace: list[Observation]


def draw_pairs(
    model: str | Path,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int] = (0, 1, 2, 3),
    timesteps: int = 50,
    scale: float = 7.5,
    rule: Rule | None = None,
    triage: bool = False,
    out: Path = Path("samples"),
) -> Path:
    """Draws every prompt with every seed, by plain CFG and by the rule; writes a contact sheet and the gap curve.

    Args:
        model: a directory or hub id of a diffusers pipeline.
        prompts: at least one.
        seeds: one image of each prompt for each; the noise of a seed is the same in both rows.
        timesteps: sampling steps.
        scale: of plain CFG, above 1.
        rule: instead of the one in the model's record.
        triage: let prompts that the record's triage takes for harmless keep plain CFG.
        out: folder that is created for `contact_sheet.png`, `gap.png` and `samples.json`.

    Returns:
        The contact sheet's path.

    Raises:
        ValueError: no prompt, no seed, or a guidance scale that is not above 1.
        FileExistsError: one of the files is already there; nothing is overwritten.
        FileNotFoundError: no rule given, and the model carries no record.
    """
    _check(prompts, seeds, scale, out)
    if rule is None:
        pipe = load(model, triage=triage)
    else:
        pipe = protect(DiffusionPipeline.from_pretrained(locate(model)), rule, triage=triage)
    rule = rule_of(pipe)
    options = {"num_inference_steps": timesteps, "guidance_scale": scale}
    pairs = []
    for prompt in prompts:
        plain = draw(protect(pipe, Constant(scale)), prompt, seeds, **options)
        pairs.append((plain, draw(protect(pipe, rule), prompt, seeds, **options)))
    out.mkdir(parents=True, exist_ok=True)
    sheet(pairs, seeds).save(out / FILES[0])
    gap_figure([plain for plain, _ in pairs], getattr(rule, "transition", None)).savefig(out / FILES[1], dpi=120)
    (out / FILES[2]).write_text(json.dumps([_numbers(plain, drawn, seeds) for plain, drawn in pairs], indent=2))
    return out / FILES[0]


def draw(pipe: Any, prompt: str, seeds: Sequence[int], **options: Any) -> Drawn:
    """One image of `prompt` for each seed from a protected pipeline; batch size never changes an image's noise."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images = pipe([prompt] * len(seeds), generator=generators, output_type="pt", **options).images
    return Drawn(prompt, images.float().cpu(), list(last_trace(pipe)))


def sheet(pairs: Sequence[tuple[Drawn, Drawn]], seeds: Sequence[int]) -> Image.Image:
    """One row a prompt; for each seed two columns, plain CFG and the rule."""
    columns = {}
    for number, seed in enumerate(seeds):
        for kind, column in (("CFG", 0), ("guarded", 1)):
            columns[f"{kind}, seed {seed}"] = torch.stack([pair[column].images[number] for pair in pairs])
    return contact_sheet(columns, [plain.prompt for plain, _ in pairs], {})


def gap_figure(plain: Sequence[Drawn], transition: float | Sequence[float] | None) -> Figure:
    """The gap of every prompt along plain CFG, median over seeds with the range behind it."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for drawn in plain:
        timesteps = [seen.timestep for seen in drawn.trace]
        rows = torch.stack([seen.gap for seen in drawn.trace if seen.gap is not None]).float().cpu()
        (line,) = axes.plot(timesteps, rows.median(1).values, label=drawn.prompt[:40])
        axes.fill_between(timesteps, rows.amin(1), rows.amax(1), color=line.get_color(), alpha=0.15, linewidth=0)
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
        "gap": [gaps(seen) for seen in plain.trace],
        "scale": [seen.scale.tolist() for seen in drawn.trace],
        "unet_evals": {"cfg": sum(s.unet_evals for s in plain.trace), "rule": sum(s.unet_evals for s in drawn.trace)},
    }


def _check(prompts: Sequence[str], seeds: Sequence[int], scale: float, out: Path) -> None:
    if isinstance(prompts, str) or not prompts or not seeds:
        raise ValueError(f"prompts={prompts!r}, seeds={seeds!r}: expected a list of at least one of each")
    if not scale > 1:
        raise ValueError(f"scale={scale}: plain CFG needs a scale above 1, the rule takes it lower")
    existing = [name for name in FILES if (out / name).exists()]
    if existing:
        raise FileExistsError(f"{out} already holds {', '.join(existing)}: name another folder, nothing is overwritten")
