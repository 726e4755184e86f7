"""This package's own: a product, or a plain product, of proven risk, a base-anchored branch, triage, a base-led prefix.

- `ours`: of all products (checkpoint of the run, share of its fine-tune, rule or plain CFG, guidance scale) whose risk
  is proven to be at most the intensity alpha with 95 % confidence, the one with the most of what was taught
  (`calibration.record_builder`); on pairs that are not those of the comparison.
- `ours-strength`: the same of plain CFG alone: a checkpoint, a share of it and a guidance scale, for plain loaders.
- `ours-anchored`: static transition, the unconditional branch from the base model, which never saw the images.
- `ours-triage`: static transition for the prompts that pull most, plain CFG for the share that pulls
  least by the first gap (`guidance.triage`).
- `ours-base-led`: above the transition the whole prediction, both branches under plain CFG, comes from the base
  model, below it from the fine-tuned one. Layout from the base, details and style from the fine-tune: the prompt is
  followed from the first step, so alignment need not be paid for, and what the base cannot know cannot be laid out.

Cost: a static transition saves evaluations; base-led costs those of plain CFG and, for a full fine-tune, the memory
of a second UNet; with a LoRA nothing, the base being the same network with its adapters off. `ours` and `ours-strength`
need their calibration once for each checkpoint, which the rows do not count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ..basin.gap import top_gap
from ..basin.trajectories import pairs_of
from ..calibration.candidate import ProductCandidate
from ..calibration.certification import Certification
from ..calibration.choice import best
from ..calibration.fixed_sequence import fixed_sequence
from ..calibration.ladders import chains
from ..calibration.lessons import truth_of
from ..calibration.terms import CalibrationTerms
from ..core import seeds as seed_table
from ..guidance.core import SwitchAt
from ..guidance.triage import Triage
from ..similarity.rulers import feature_sets
from .base import Mitigation, needs_base
from .checkpoints import TestedWeights, checkpoint, checkpoint_name, index_of, state
from .stock_pipeline import empty, routed, sample_pipeline
from .testbed import Batch, Testbed

TRANSITIONS = (950.0, 850.0, 750.0, 650.0, 500.0)
ALPHAS = (0.3, 0.2, 0.15, 0.1, 0.05)
CONFIDENCE = 0.95
PAIRS = 96
SAME = 1e-2  # text states of one prompt differ in their last digits from batch to batch
MIDDLE = 650.0  # transition of triage: what its intensity does not vary


Ladders = list[list[ProductCandidate]]


def calibration(testbed: Testbed) -> Ladders:
    """Ladders of products, safest first, tested at the largest alpha; measured once for each testbed."""
    return testbed.cached("ours", lambda: _ladders(testbed, before=(0.0, -2.0 * testbed.units)))


def plain_calibration(testbed: Testbed) -> Ladders:
    """The same of plain CFG alone, at strengths and guidance scales."""
    return testbed.cached("ours, plain", lambda: _ladders(testbed, before=()))


def _ladders(testbed: Testbed, before: tuple[float, ...]) -> Ladders:
    terms = CalibrationTerms(alpha=max(ALPHAS), delta=1 - CONFIDENCE, pairs=PAIRS, design="fixed", before=before)
    truth = truth_of(testbed.guard.training, feature_sets())
    work = Certification(testbed.guard, TestedWeights(testbed), terms, truth)
    return work.prove(chains(work.rank(work.search()), terms, work.design))


def chosen(ladders: Ladders, alpha: float) -> tuple[ProductCandidate, bool]:
    """The best product whose risk is at most `alpha`, and whether that is proven; else the safest one tried.

    Each ladder is a fixed sequence of its own at its share of the error, so the promise covers all: Learn-then-Test,
    arXiv 2110.01052, section 3.2.
    """
    share = (1 - CONFIDENCE) / len(ladders)
    safe = best(c for ladder in ladders for c in fixed_sequence((c.retested(alpha) for c in ladder), share))
    return (safe, True) if safe else (ladders[0][0], False)


def _sampler(calibrate: Callable[[Testbed], Ladders]) -> Callable[[Testbed, Batch, float], Tensor]:
    def sampled(testbed: Testbed, batch: Batch, alpha: float) -> Tensor:
        product = chosen(calibrate(testbed), alpha)[0].product
        rule = product.guidance
        plain = rule.plain and product.scale == testbed.scale
        steered = None if plain else SwitchAt(rule.transition, rule.before, rule.after)
        if product.epoch is None and product.strength == 1:
            return sample_pipeline(testbed, batch, steered)
        with state(testbed, product.epoch, product.strength) as pipe:
            return sample_pipeline(testbed, batch, steered, pipe=pipe)

    return sampled


def _networks(calibrate: Callable[[Testbed], Ladders]) -> Callable[[Testbed, float], list[nn.Module]]:
    def unets(testbed: Testbed, alpha: float) -> list[nn.Module]:
        epoch = chosen(calibrate(testbed), alpha)[0].product.epoch
        return [] if epoch is None else [checkpoint(testbed, index_of(testbed, epoch)).unet]

    return unets


def _noted(calibrate: Callable[[Testbed], Ladders]) -> Callable[[Testbed, float], str]:
    def note(testbed: Testbed, alpha: float) -> str:
        candidate, is_proven = chosen(calibrate(testbed), alpha)
        product = candidate.product
        where = "" if product.epoch is None else f"{checkpoint_name(testbed, index_of(testbed, product.epoch))}, "
        promise = f"risk at most {alpha:.0%} proven" if is_proven else f"a risk of {alpha:.0%} could not be proven"
        return f"{where}{replace(product, epoch=None)}; {promise} on {candidate.risk.n} other pairs"

    return note


def _anchored(testbed: Testbed, batch: Batch, transition: float) -> Tensor:
    nothing = empty(testbed, 1)

    def uncond(timestep: float, text_states: Tensor) -> Tensor:
        return (text_states - nothing).abs().flatten(1).amax(1) < SAME

    with routed(testbed, uncond):
        return sample_pipeline(testbed, batch, SwitchAt(transition, 0.0, None))


def _base_led(testbed: Testbed, batch: Batch, transition: float) -> Tensor:
    def early(timestep: float, text_states: Tensor) -> Tensor:
        return torch.full((len(text_states),), timestep > transition)

    with routed(testbed, early):
        return sample_pipeline(testbed, batch)


def _triage(testbed: Testbed, batch: Batch, harmless: float) -> Tensor:
    threshold = float(np.quantile(_first_gaps(testbed), harmless))
    return sample_pipeline(testbed, batch, Triage(SwitchAt(MIDDLE, 0.0, None), max(threshold, 1e-9), None))


def _first_gaps(testbed: Testbed) -> Tensor:
    captions = testbed.guard.training.captions
    pairs = pairs_of(len(captions), [seed_table.CALIBRATION], 1, testbed.model.latent_shape)
    return testbed.cached("gaps", lambda: top_gap(testbed.guard.guided_model(testbed.model, captions), pairs)[0])


HERE = "basinguard"
OURS = Mitigation(
    "ours",
    f"{HERE}, proven product",
    "proven risk alpha",
    ALPHAS,
    0.1,
    _sampler(calibration),
    note=_noted(calibration),
    prepare=calibration,
    extra_unets=_networks(calibration),
    ours=True,
)
STRENGTH = Mitigation(
    "ours-strength",
    f"{HERE}, proven plain product",
    "proven risk alpha",
    ALPHAS,
    0.1,
    _sampler(plain_calibration),
    needs_base,
    _noted(plain_calibration),
    plain_calibration,
    _networks(plain_calibration),
    ours=True,
)
ANCHORED = Mitigation(
    "ours-anchored",
    f"{HERE}, base-anchored",
    "transition, timestep",
    TRANSITIONS,
    650.0,
    _anchored,
    needs_base,
    ours=True,
)
BASE_LED = Mitigation(
    "ours-base-led",
    f"{HERE}, base-led prefix",
    "transition, timestep",
    TRANSITIONS,
    650.0,
    _base_led,
    needs_base,
    ours=True,
)
TRIAGE = Mitigation(
    "ours-triage",
    f"{HERE}, triage, transition {MIDDLE:g}",
    "share of prompts left alone",
    (0.75, 0.5, 0.25, 0.1, 0.0),
    0.25,
    _triage,
    prepare=_first_gaps,
    ours=True,
)
