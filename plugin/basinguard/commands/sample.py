"""`basinguard sample MODEL PROMPTS`: what a protected model draws, beside plain CFG on the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..diffusion.sampling_options import SamplingOptions


def sample(
    model: str,
    prompts: Sequence[str],
    seeds: Sequence[int] = (0, 1, 2, 3),
    sampling: SamplingOptions = SamplingOptions(timesteps=50),
    triage: bool = False,
    out: Path = Path("samples"),
) -> Path:
    """Draws prompts by plain CFG and by the model's own rule; writes a contact sheet and the gap curve.

    Args:
        model: a directory or hub id that carries a record.
        prompts: a JSON list, such as '["a red ball", "a blue box"]'.
        seeds: one image of each prompt for each.
        sampling: how both are sampled.
        triage: let prompts that the record's triage takes for harmless keep plain CFG.
        out: folder that is created for the results.

    Returns:
        The contact sheet's path.
    """
    from ..pipelines.paired_samples import draw_pairs

    return draw_pairs(model, prompts, seeds=seeds, sampling=sampling, triage=triage, out=out)
