"""How many canaries came back, at which repetition, and how many that were never trained on: a run's own yardstick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from ..basin.plain_run import run_plain
from ..calibration.trial import calibration_pairs
from ..core import seeds as seed_table
from ..core.estimate import Estimate
from ..core.schema import Finite, Schema
from ..core.stats import clopper_pearson
from ..guard.measured_model import guided_model
from ..guard.plan import ProbePlan
from ..similarity.copy_detector import CopyDetector
from ..similarity.embedder import Embedder
from ..training.canary_images import Canary
from .denoising_loss import denoising_loss

SEEDS = 4  # samples of each canary's caption
FIRST_SAMPLE = 100_000  # seeds before it draw the canaries themselves


class CanaryRow(Schema):
    """Canaries of one number of repeats; 0 repeats are the controls.

    Attributes:
        repeats: how often an epoch showed each.
        turns: how often all of them were to be shown in the run, as it was set up.
        steps: optimizer steps that each was in, counted while it ran; of the one that was in fewest.
        came_back: share of them that some sample of their caption reproduces.
        loss, loss_before: mean denoising loss of the trained and the base model.
        learned: whether each was in some step and their loss fell further than the controls'; without that, that none
            came back says nothing.
    """

    repeats: Annotated[int, Field(ge=0)]
    turns: Annotated[int, Field(ge=0)]
    steps: Annotated[int, Field(ge=0)]
    came_back: Estimate
    loss: Finite
    loss_before: Finite
    learned: bool


@dataclass(frozen=True)
class CanaryBench:
    """What canaries are judged with.

    Attributes:
        model, base: the trained one and what it began as; `diffusion.model.Model` with `encode`.
        embedder: of the copy detector.
        plan: sampler and scale.
        resolution: side of the images.
    """

    model: Any
    base: Any
    embedder: Embedder
    plan: ProbePlan
    resolution: int


@torch.no_grad()
def judge_canaries(
    canaries: Sequence[Canary], turns: Sequence[int], steps: Sequence[int], bench: CanaryBench
) -> tuple[CanaryRow, ...]:
    """Each number of repeats, the controls first.

    Args:
        canaries: planted ones and controls.
        turns: how often each was to be shown in the run.
        steps: optimizer steps that each was in.
        bench: what they are judged with.
    """
    pixels = torch.stack([canary.pixels(bench.resolution) for canary in canaries])
    back = came_back(canaries, pixels, bench)
    after, before = (losses(canaries, pixels, model, bench.plan) for model in (bench.model, bench.base))
    controls = torch.tensor([canary.repeats == 0 for canary in canaries])
    fallen_of_controls = float((before - after)[controls].mean())
    rows = []
    for repeats in sorted({canary.repeats for canary in canaries}):
        own = torch.tensor([canary.repeats == repeats for canary in canaries])
        places = own.nonzero().flatten().tolist()
        fewest = min(steps[place] for place in places)
        fallen = float((before - after)[own].mean())
        rows.append(
            CanaryRow(
                repeats=repeats,
                turns=sum(turns[place] for place in places),
                steps=fewest,
                came_back=clopper_pearson(int(back[own].sum()), int(own.sum())),
                loss=float(after[own].mean()),
                loss_before=float(before[own].mean()),
                learned=fewest > 0 and fallen > fallen_of_controls,
            )
        )
    return tuple(rows)


def came_back(canaries: Sequence[Canary], pixels: Tensor, bench: CanaryBench) -> Tensor:
    """Whether some sample of each canary's caption reproduces it, [N] bool."""
    captions = [canary.caption for canary in canaries]
    detector = CopyDetector(pixels, captions, bench.embedder)
    shape, first = bench.model.latent_shape, seed_table.CANARY + FIRST_SAMPLE
    pairs = calibration_pairs(len(captions), SEEDS * len(captions), shape, first)
    images = bench.model.decode(run_plain(guided_model(bench.model, captions, bench.plan), pairs).ends)
    matches = detector.matches(images)
    own = detector.copied(matches) & (torch.tensor([match.index for match in matches]) == pairs.prompt)
    return torch.zeros(len(captions), dtype=torch.bool).index_put((pairs.prompt[own],), torch.tensor(True))


def losses(canaries: Sequence[Canary], pixels: Tensor, model: Any, plan: ProbePlan) -> Tensor:
    """Denoising loss of each canary under its caption, [N]."""
    guided = guided_model(model, [canary.caption for canary in canaries], plan)
    return denoising_loss(guided, model.encode(pixels).cpu(), torch.arange(len(canaries)))


def canary_text(rows: Sequence[CanaryRow]) -> str:
    """The rows for a terminal, and what they mean."""
    lines = [f"{'canaries shown':>14}  {'steps each':>10}  {'came back':30} {'loss, before':>14}"]
    for row in rows:
        name = "never" if row.repeats == 0 else f"{row.repeats}x"
        note = "" if row.repeats == 0 or row.learned else "  NOT LEARNED: that none came back says nothing"
        lines.append(
            f"{name:>14}  {row.steps:>10}  {row.came_back.percent(0):30} {row.loss:.4f}, {row.loss_before:.4f}{note}"
        )
    least = min((row.repeats for row in rows if row.repeats and row.came_back.value > 0), default=0)
    meaning = f"planted images come back from {least} repeats on" if least else "no planted image came back"
    return "\n".join([*lines, meaning])
