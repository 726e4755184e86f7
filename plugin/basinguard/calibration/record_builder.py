"""From a guarded model to its `Record`: which rule it ships with, what that rule was measured to do, and on what.

Every setting that is tested gets its own sequence of transitions and its share of delta; among all that are proven,
the best by alignment, then quality is shipped, one that a stock pipeline can apply if there is any. With more settings
than `CalibrationTerms.finalists`, pilot pairs decide which are tested. If none is proven, the record says so in `promise` and
carries the safest one tried.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .. import basin
from ..core import seeds as seed_table
from ..core import stats
from ..core.estimate import Estimate
from ..core.provenance import Provenance
from ..core.record import Guidance, Record, Sampler
from ..core.versions import versions
from ..diffusion.model import Model
from ..guard.guard import Guard
from ..similarity.kernel_distance import KernelDistance
from .candidate import Candidate
from .rule_search import best, explore, finalists, frontier, shortfall
from .terms import CalibrationTerms
from .trial import Align, Trial, calibration_pairs, quality_of


@torch.no_grad()
def certify(
    guard: Guard,
    model: Model,
    terms: CalibrationTerms,
    provenance: Provenance,
    *,
    anchored: Model | None = None,
    quality: KernelDistance | None = None,
) -> tuple[Record, list[Candidate]]:
    """Calibrates the rule of a model and writes down what was promised.

    Args:
        guard: knows the training images.
        model: what is calibrated.
        terms: what is to be promised.
        provenance: goes into the record.
        anchored: the model whose unconditional branch is the base's; needed by `terms.anchor`.
        quality: distance of images to images that were not trained on; decides between rules that align alike.

    Returns:
        The record, and every candidate that was tried: those tested, safest first within each setting, then the
        pilot's.

    Raises:
        ValueError: alpha or delta out of range, no pairs, an anchor that the model cannot have, or finer steps that
            the sampler cannot take.
    """
    trial = trial_of(guard, model, terms.pairs, seed_table.CALIBRATION, anchored, quality)
    for setting in terms.settings:
        trial.set_to(setting)  # refuses what cannot be measured before anything is
    positions = grid_positions(trial.probe.timesteps, terms.transitions)
    settings, pilot = list(terms.settings), []
    if len(settings) > terms.finalists:
        first = trial_of(guard, model, terms.pilot_pairs, seed_table.PILOT, anchored, quality)
        pilot = explore(first, settings, alpha=terms.alpha, positions=positions)
        allowed = stats.largest_proven(terms.alpha, terms.share, len(trial.pairs)) / len(trial.pairs)
        settings = finalists(pilot, terms.finalists, allowed)
    tested = [
        candidate
        for setting in settings
        for candidate in frontier(trial, setting, alpha=terms.alpha, delta=terms.share, positions=positions)
    ]
    chosen = best(c for c in tested if c.setting.stock) or best(tested)
    return _record(guard, terms, provenance, trial, chosen, chosen or tested[0]), tested + pilot


def trial_of(
    guard: Guard,
    model: Model,
    pairs: int,
    first_seed: int,
    anchored: Model | None = None,
    quality: KernelDistance | None = None,
) -> Trial:
    """A model on the training captions, with pairs of its own."""
    captions = guard.training.captions
    even = pairs >= len(captions)  # otherwise the pairs' captions are random draws
    images = lru_cache(maxsize=1)(model.decode)  # several eyes look at the same latents, one after the other
    return Trial(
        probe=guard.probe(model, captions),
        pairs=calibration_pairs(len(captions), pairs, model.latent_shape, first_seed),
        judge=lambda latents, prompt: guard.is_copy(images(latents)),
        align=_aligner(guard, images),
        anchored=None if anchored is None else anchored.denoiser(captions),
        distance=None
        if quality is None
        else lambda latents, prompt: quality(images(latents), prompt if even else None),
        distance_method="" if quality is None else quality.method,
    )


@dataclass(frozen=True)
class Ordinary:
    """What ordinary CFG gives on a trial's pairs: which copy, [N] bool, agreement with the captions, and quality."""

    hits: Tensor
    alignment: Estimate | None
    quality: Estimate | None


def ordinary(trial: Trial) -> Ordinary:
    """Samples with ordinary CFG from the start."""
    prompt = trial.pairs.prompt
    ends, _ = basin.branch(trial.probe, trial.probe.path.begin(trial.pairs.noise), prompt, torch.zeros_like(prompt))
    alignment = stats.cluster_bootstrap(trial.align(ends, prompt), prompt) if trial.align else None
    return Ordinary(trial.judge(ends, prompt), alignment, quality_of(trial, ends))


def _record(
    guard: Guard,
    terms: CalibrationTerms,
    provenance: Provenance,
    trial: Trial,
    chosen: Candidate | None,
    shipped: Candidate,
) -> Record:
    pairs, scale = trial.pairs, guard.plan.scale
    plain = ordinary(trial)
    return Record(
        guidance=Guidance(
            transition=shipped.transition,
            sigma=shipped.sigma,
            before=shipped.before,
            after=scale if shipped.after is None else shipped.after,
            refine=shipped.setting.refine,
            anchor=shipped.setting.anchor,
        ),
        risk=shipped.risk,
        plain=stats.rate(plain.hits, pairs.prompt),
        alignment=shipped.alignment,
        plain_alignment=plain.alignment,
        quality=shipped.quality,
        plain_quality=plain.quality,
        alpha=terms.alpha,
        delta=terms.delta,
        promise=promise(terms.alpha, terms.delta) if chosen else "",
        population=population(len(guard.training.captions), len(pairs)) + _why_not(chosen, terms, len(pairs)),
        metric=guard.embedder.metric,
        sampler=Sampler(
            scheduler=f"{trial.probe.solver}, trailing",
            timesteps=len(trial.probe.timesteps),
            prediction_type=provenance.prediction_type,
            resolution=provenance.resolution,
            scale=scale,
        ),
        seeds=(int(pairs.seed[0]), int(pairs.seed[-1])),
        base=provenance.base,
        weights_sha256=provenance.weights_sha256,
        dataset_sha256=provenance.dataset_sha256,
        versions=versions(),
        history=tuple(guard.history),
    )


def grid_positions(timesteps: Tensor, transitions: tuple[float, ...]) -> list[int]:
    """Positions on the sampler's grid of the transitions to try; all but the first when none is named.

    Raises:
        ValueError: a transition below the whole grid.

    Example:
        >>> grid_positions(torch.tensor([999, 749, 499, 249]), (500, 800))
        [1, 2]
    """
    if not transitions:
        return list(range(1, len(timesteps)))
    found = sorted({int((timesteps > transition).sum()) for transition in transitions})
    if found[-1] >= len(timesteps):
        raise ValueError(f"transition {min(transitions)} lies below the sampler's last timestep {int(timesteps[-1])}")
    return found


def _aligner(guard: Guard, images: Callable[[Tensor], Tensor]) -> Align | None:
    if guard.align is None:
        return None
    score = guard.align

    def align(latents: Tensor, prompt: Tensor) -> Tensor:
        return score(images(latents), [guard.training.captions[k] for k in prompt.tolist()])

    return align


def promise(alpha: float, delta: float) -> str:
    """The promise in words."""
    return f"the risk is at most {alpha:.0%}, and this sentence is wrong with probability at most {delta:.0%}"


def population(captions: int, pairs: int) -> str:
    """What the promise covers, and how it was sampled.

    Example:
        >>> population(32, 96)
        'all 32 training captions x random seeds, each with 3 of them'
    """
    drawn = f"each with {pairs // captions} of them" if pairs >= captions else f"{pairs} pairs of them drawn at random"
    return f"all {captions} training captions x random seeds, {drawn}"


def _why_not(chosen: Candidate | None, terms: CalibrationTerms, pairs: int) -> str:
    if chosen is not None:
        return ""
    few = shortfall(terms.alpha, terms.share, pairs)
    return "; " + (few or f"no promise: even the latest transition tried may leave a risk above {terms.alpha:.0%}")
