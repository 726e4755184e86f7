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
need a calibration for each alpha, which the rows do not count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from weakref import finalize

import numpy as np
import torch
from torch import Tensor, nn

from ..basin.gap import top_gap
from ..basin.trajectories import pairs_of
from ..calibration.candidate import ProductCandidate
from ..calibration.certification import Certification
from ..calibration.choice import best
from ..calibration.ladders import chains
from ..calibration.lessons import truth_of
from ..calibration.sample_archive import SampleArchive
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


@dataclass(frozen=True)
class Chosen:
    """What a calibration ships, and whether its risk is proven; else the safest that was tested."""

    candidate: ProductCandidate
    proven: bool


def calibrated(testbed: Testbed, alpha: float) -> Chosen:
    """The product that a calibration at `alpha` ships; measured once for each testbed."""
    return testbed.cached(f"ours, {alpha}", lambda: _calibrated(testbed, alpha, before=(0.0, -2.0 * testbed.units)))


def calibrated_plain(testbed: Testbed, alpha: float) -> Chosen:
    """The same of plain CFG alone, at strengths and guidance scales."""
    return testbed.cached(f"ours, plain, {alpha}", lambda: _calibrated(testbed, alpha, before=()))


def _calibrated(testbed: Testbed, alpha: float, before: tuple[float, ...]) -> Chosen:
    terms = CalibrationTerms(alpha=alpha, delta=1 - CONFIDENCE, pairs=PAIRS, before=before)
    truth = truth_of(testbed.guard.training, feature_sets())
    work = Certification(testbed.guard, TestedWeights(testbed), terms, truth, _archive(testbed))
    tested = [c for ladder in work.prove(chains(work.rank(work.search()), terms, work.design)) for c in ladder]
    proven = best(tested, work.compared(tested))
    return Chosen(proven or min(tested, key=lambda c: c.risk.value), proven is not None)


def _archive(testbed: Testbed) -> SampleArchive:
    """Calibrations at other risks try the same products on the same pairs first; it goes with the testbed."""

    def temporary() -> Path:
        folder = mkdtemp(prefix="basinguard-")
        finalize(testbed, rmtree, folder, ignore_errors=True)
        return Path(folder)

    return SampleArchive(testbed.cached("samples", temporary))


Calibrate = Callable[[Testbed, float], Chosen]


def _sampler(calibrate: Calibrate) -> Callable[[Testbed, Batch, float], Tensor]:
    def sampled(testbed: Testbed, batch: Batch, alpha: float) -> Tensor:
        product = calibrate(testbed, alpha).candidate.product
        rule = product.guidance
        plain = rule.plain and product.scale == testbed.scale
        steered = None if plain else SwitchAt(rule.transition, rule.before, rule.after)
        with state(testbed, product.epoch, product.strength) as pipe:
            return sample_pipeline(testbed, batch, steered, pipe=pipe)

    return sampled


def _networks(calibrate: Calibrate) -> Callable[[Testbed, float], list[nn.Module]]:
    def unets(testbed: Testbed, alpha: float) -> list[nn.Module]:
        epoch = calibrate(testbed, alpha).candidate.product.epoch
        return [] if epoch is None else [checkpoint(testbed, index_of(testbed, epoch)).unet]

    return unets


def _noted(calibrate: Calibrate) -> Callable[[Testbed, float], str]:
    def note(testbed: Testbed, alpha: float) -> str:
        chosen = calibrate(testbed, alpha)
        product = chosen.candidate.product
        where = "" if product.epoch is None else f"{checkpoint_name(testbed, index_of(testbed, product.epoch))}, "
        promise = f"risk at most {alpha:.0%} proven" if chosen.proven else f"a risk of {alpha:.0%} could not be proven"
        return f"{where}{replace(product, epoch=None)}; {promise} on {chosen.candidate.risk.n} other pairs"

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
    _sampler(calibrated),
    note=_noted(calibrated),
    prepare=calibrated,
    extra_unets=_networks(calibrated),
    ours=True,
)
STRENGTH = Mitigation(
    "ours-strength",
    f"{HERE}, proven plain product",
    "proven risk alpha",
    ALPHAS,
    0.1,
    _sampler(calibrated_plain),
    needs_base,
    _noted(calibrated_plain),
    calibrated_plain,
    _networks(calibrated_plain),
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
    prepare=lambda testbed, harmless: _first_gaps(testbed),
    ours=True,
)
