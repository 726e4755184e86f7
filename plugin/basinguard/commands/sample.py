"""`basinguard sample MODEL PROMPTS`: what a protected model draws, beside plain CFG on the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def sample(
    model: str,
    prompts: Sequence[str],
    seeds: Sequence[int] = (0, 1, 2, 3),
    timesteps: int = 50,
    scale: float = 7.5,
    triage: bool = False,
    out: Path = Path("samples"),
) -> Path:
    """Draws prompts by plain CFG and by the model's own rule; writes a contact sheet and the gap curve.

    Args:
        model: a directory or hub id that carries a record.
        prompts: a JSON list, such as '["a red ball", "a blue box"]'.
        seeds: one image of each prompt for each.
        timesteps: sampling steps.
        scale: of plain CFG, above 1.
        triage: let prompts that the record's triage takes for harmless keep plain CFG.
        out: folder that is created for the results.

    Returns:
        The contact sheet's path.
    """
    from ..pipelines.paired_samples import draw_pairs

    return draw_pairs(model, prompts, seeds=seeds, timesteps=timesteps, scale=scale, triage=triage, out=out)
