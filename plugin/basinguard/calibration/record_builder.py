"""From a guarded model to its `Record`: which rule it ships with, what that rule was measured to do, and on what.

Every setting that is tested gets its own sequence of transitions and its share of delta; among all that are proven,
the best by alignment, then quality is shipped, one that a stock pipeline can apply if there is any. With more settings
than `CalibrationTerms.finalists`, pilot pairs decide which are tested. If none is proven, the record says so in
`promise` and carries the safest one tried.
"""

from __future__ import annotations

import torch

from ..core import seeds as seed_table
from ..core import stats
from ..core.provenance import Provenance, versions
from ..core.record import Record, Sampler
from ..diffusion.model import Model
from ..guard.guard import Guard
from ..similarity.kernel_distance import KernelDistance
from .candidate import Candidate, RuleCandidate
from .grids import grid_positions
from .promise import no_promise, population, promise
from .rule_search import best, explore, finalists, frontier
from .terms import CalibrationTerms, Setting
from .trial import Trial, trial_of


@torch.no_grad()
def certify(
    guard: Guard,
    model: Model,
    terms: CalibrationTerms,
    provenance: Provenance,
    *,
    anchored: Model | None = None,
    quality: KernelDistance | None = None,
) -> tuple[Record, list[RuleCandidate]]:
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
        settings = _finalists(pilot, terms, len(trial.pairs))
    tested = [
        candidate
        for setting in settings
        for candidate in frontier(trial, setting, alpha=terms.alpha, delta=terms.share, positions=positions)
    ]
    chosen = best(c for c in tested if c.setting.stock) or best(tested)
    return _record(guard, terms, provenance, trial, chosen or tested[0]), tested + pilot


def _finalists(pilot: list[RuleCandidate], terms: CalibrationTerms, pairs: int) -> list[Setting]:
    allowed = stats.largest_proven(terms.alpha, terms.share, pairs) / pairs
    return finalists(pilot, terms.finalists, allowed)


def _record(
    guard: Guard, terms: CalibrationTerms, provenance: Provenance, trial: Trial, shipped: RuleCandidate
) -> Record:
    pairs, scale, rule = trial.pairs, guard.plan.scale, shipped.guidance
    plain = trial.measure(Candidate, trial.sample_plain(), terms.alpha)
    covered = population(len(guard.training.captions), len(pairs))
    return Record(
        guidance=rule if rule.after is not None else rule.model_copy(update={"after": scale}),
        risk=shipped.risk,
        plain=plain.risk,
        alignment=shipped.alignment,
        plain_alignment=plain.alignment,
        quality=shipped.quality,
        plain_quality=plain.quality,
        alpha=terms.alpha,
        delta=terms.delta,
        promise=promise(terms.alpha, terms.delta) if shipped.proven else "",
        population=covered if shipped.proven else f"{covered}; {no_promise(terms.alpha, terms.share, len(pairs))}",
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
