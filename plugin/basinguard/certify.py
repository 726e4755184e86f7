"""From a guarded model to its `Record`: which rule it ships with, what that rule was measured to do, and on what.

Every `before` scale gets its own sequence of transitions and its share of delta; among all that are proven, the one
with the best alignment is shipped. If none is proven, the record says so in `promise` and carries the safest one tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from . import basin, stats
from .calibrate import Align, Candidate, best, calibration_pairs, frontier, shortfall
from .guard import Guard, Model
from .records import Guidance, Record, Sampler

FIRST_SEED = 1_000_000  # never used by the probes, so what was tuned on is not what is promised
VERSIONS = ("basinguard", "torch", "diffusers", "transformers", "peft", "lightning")


@dataclass(frozen=True)
class Terms:
    """What is to be promised.

    Attributes:
        alpha: risk that may not be exceeded, in (0, 1).
        delta: chance that the promise is broken, in (0, 1).
        pairs: (caption, seed) pairs to sample.
        before: scales above the transition to try.
        transitions: timesteps to try, each taken as the next grid timestep below; every grid timestep when empty.
    """

    alpha: float = 0.05
    delta: float = 0.05
    pairs: int = 128
    before: tuple[float, ...] = (0.0, -1.0)
    transitions: tuple[float, ...] = ()


@dataclass(frozen=True)
class Provenance:
    """Where a checkpoint comes from: base id, and hashes of its weights and data set."""

    base: str
    weights_sha256: str
    dataset_sha256: str
    prediction_type: str
    resolution: int


@torch.no_grad()
def certify(guard: Guard, model: Model, terms: Terms, provenance: Provenance) -> tuple[Record, list[Candidate]]:
    """Calibrates the transition of a model and writes down what was promised.

    Returns:
        The record, and every candidate that was tried, safest first within each `before`.

    Raises:
        ValueError: alpha or delta out of range, or no pairs.
    """
    captions = guard.training.captions
    probe = guard.probe(model, captions)
    pairs = calibration_pairs(len(captions), terms.pairs, model.latent_shape, FIRST_SEED)
    positions = grid_positions(probe.timesteps, terms.transitions)
    tried = [
        candidate
        for before in terms.before
        for candidate in frontier(
            probe,
            pairs,
            lambda latents, prompt: guard.is_copy(model.decode(latents)),
            alpha=terms.alpha,
            delta=terms.delta / len(terms.before),
            before=before,
            positions=positions,
            align=_aligner(guard, model),
        )
    ]
    chosen = best(tried)
    shipped = chosen or tried[0]
    plain, _ = basin.branch(probe, pairs.noise, pairs.prompt, torch.zeros_like(pairs.prompt))
    record = Record(
        guidance=Guidance(
            transition=shipped.transition, sigma=shipped.sigma, before=shipped.before, after=guard.plan.scale
        ),
        risk=shipped.risk,
        plain=stats.rate(guard.is_copy(model.decode(plain)), pairs.prompt),
        alignment=shipped.alignment,
        alpha=terms.alpha,
        delta=terms.delta,
        promise=_promise(terms) if chosen else "",
        population=_population(len(captions), len(pairs)) + _why_not(chosen, terms, len(pairs)),
        metric=guard.embedder.metric,
        sampler=Sampler(
            scheduler="ddim, trailing",
            timesteps=len(probe.timesteps),
            prediction_type=provenance.prediction_type,
            resolution=provenance.resolution,
            scale=guard.plan.scale,
        ),
        seeds=(int(pairs.seed[0]), int(pairs.seed[-1])),
        base=provenance.base,
        weights_sha256=provenance.weights_sha256,
        dataset_sha256=provenance.dataset_sha256,
        versions=versions(),
        history=tuple(guard.history),
    )
    return record, tried


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


def versions() -> dict[str, str]:
    """Installed versions of what a result depends on."""
    found = {}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _aligner(guard: Guard, model: Model) -> Align | None:
    if guard.align is None:
        return None
    score = guard.align

    def align(latents: Tensor, prompt: Tensor) -> Tensor:
        return score(model.decode(latents), [guard.training.captions[k] for k in prompt.tolist()])

    return align


def _promise(terms: Terms) -> str:
    return (
        f"the risk is at most {terms.alpha:.0%}, and this sentence is wrong with probability at most {terms.delta:.0%}"
    )


def _population(captions: int, pairs: int) -> str:
    each = f"each with {pairs // captions} of them" if pairs >= captions else f"{pairs} of them drawn at random"
    return f"all {captions} training captions x random seeds, {each}"


def _why_not(chosen: Candidate | None, terms: Terms, pairs: int) -> str:
    if chosen is not None:
        return ""
    few = shortfall(terms.alpha, terms.delta / len(terms.before), pairs)
    return "; " + (few or f"no promise: even the latest transition tried may leave a risk above {terms.alpha:.0%}")
