"""What a protected model draws, beside plain CFG on the same noise, and how prompts pull."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from matplotlib.figure import Figure
from PIL import Image

from ..core.files import whole_file, write_text
from ..core.record import ALWAYS_ON
from ..diffusion.sampling_options import SamplingOptions
from ..guidance.core import Constant, Rule
from ..plots.contact_sheet import contact_sheet
from .families.registry import scale_of
from .loading import locate
from .protect import load, protect, rule_of
from .stock_sampling import StockSamples, sample_as_is, sample_batch
from .triage_sampling import gaps

FILES = ("contact_sheet.png", "gap.png", "samples.json")


def draw_pairs(
    model: str | Path,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int] = (0, 1, 2, 3),
    sampling: SamplingOptions = SamplingOptions(timesteps=50),
    rule: Rule | None = None,
    triage: bool = False,
    out: Path = Path("samples"),
) -> Path:
    """Draws every prompt with every seed, by plain CFG and by the rule; writes a contact sheet and the gap curve.

    Args:
        model: a directory or hub id of a diffusers pipeline.
        prompts: at least one.
        seeds: one image of each prompt for each; the noise of a seed is the same in both rows.
        sampling: how both are sampled.
        rule: instead of the one in the model's record.
        triage: let prompts that the record's triage takes for harmless keep plain CFG.
        out: folder that is created for `contact_sheet.png`, `gap.png` and `samples.json`.

    Returns:
        The contact sheet's path.

    Raises:
        ValueError: no prompt or no seed.
        FileExistsError: one of the files is already there; nothing is overwritten.
        FileNotFoundError: no rule given, and the model carries no record.
    """
    _check(prompts, seeds, out)
    if rule is None:
        pipe = load(model, triage=triage)
    else:
        pipe = protect(DiffusionPipeline.from_pretrained(locate(model), use_safetensors=True), rule, triage=triage)
    rule = rule_of(pipe)
    plain_cfg, batches = Constant(scale_of(pipe, sampling)), [[text] * len(seeds) for text in prompts]
    plain = [sample_batch(pipe, batch, seeds, plain_cfg, sampling) for batch in batches]
    guarded = [sample_as_is(pipe, batch, seeds, sampling) for batch in batches]
    with whole_file(out / FILES[0], overwrite=True) as partial:
        sheet(prompts, seeds, plain, guarded).save(partial)
    with whole_file(out / FILES[1], overwrite=True) as partial:
        gap_figure(prompts, plain, getattr(rule, "transition", None)).savefig(partial, dpi=120)
    rows = [_numbers(*row, seeds) for row in zip(prompts, plain, guarded, strict=True)]
    write_text(out / FILES[2], json.dumps(rows, indent=2))
    return out / FILES[0]


def sheet(
    prompts: Sequence[str], seeds: Sequence[int], plain: Sequence[StockSamples], guarded: Sequence[StockSamples]
) -> Image.Image:
    """One row a prompt; for each seed two columns, plain CFG and the rule."""
    columns = {}
    for number, seed in enumerate(seeds):
        for kind, column in (("CFG", plain), ("guarded", guarded)):
            columns[f"{kind}, seed {seed}"] = torch.stack([samples.images[number] for samples in column])
    return contact_sheet(columns, prompts, {})


def gap_figure(
    prompts: Sequence[str], plain: Sequence[StockSamples], transition: float | Sequence[float] | None
) -> Figure:
    """The gap of every prompt along plain CFG, median over seeds with the range behind it."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for text, samples in zip(prompts, plain, strict=True):
        timesteps = [o.timestep for o in samples.trace]
        rows = torch.stack([o.gap for o in samples.trace if o.gap is not None]).float().cpu()
        (line,) = axes.plot(timesteps, rows.median(1).values, label=text[:40])
        axes.fill_between(timesteps, rows.amin(1), rows.amax(1), color=line.get_color(), alpha=0.15, linewidth=0)
    for point in [transition] if isinstance(transition, int | float) else transition or []:
        if point >= ALWAYS_ON:  # plain CFG
            continue
        axes.axvline(point, color="black", linestyle="--", linewidth=1)
        axes.annotate(f"transition {point:g}", (point, 1), xycoords=("data", "axes fraction"), va="bottom", ha="center")
    seeds = len(plain[0].images)
    axes.set(xlabel="timestep (noisy → clean)", ylabel=f"gap, RMS of eps (median and range of {seeds} seeds)", ylim=0)
    axes.invert_xaxis()
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _numbers(text: str, plain: StockSamples, guarded: StockSamples, seeds: Sequence[int]) -> dict[str, Any]:
    return {
        "prompt": text,
        "seeds": list(seeds),
        "timestep": [o.timestep for o in plain.trace],
        "gap": [gaps(o) for o in plain.trace],
        "scale": [o.scale.tolist() for o in guarded.trace],
        "unet_evals": {"cfg": plain.unet_evals, "rule": guarded.unet_evals},
    }


def _check(prompts: Sequence[str], seeds: Sequence[int], out: Path) -> None:
    if isinstance(prompts, str) or not prompts or not seeds:
        raise ValueError(f"prompts={prompts!r}, seeds={seeds!r}: expected a list of at least one of each")
    existing = [name for name in FILES if (out / name).exists()]
    if existing:
        raise FileExistsError(f"{out} already holds {', '.join(existing)}: name another folder, nothing is overwritten")
