"""This package's own: a transition or a strength of proven risk, a base-anchored branch, triage, a base-led prefix.

- `ours`: the boldest transition, with or without opposite guidance before it, whose risk is proven to be at most the
  intensity alpha with 95 % confidence (`calibration.rule_search`), on pairs that are not those of the comparison.
- `ours-strength`: plain CFG at the largest share of the fine-tune whose risk is proven likewise
  (`calibration.strength`), the rest of the weights being the base's.
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

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ..basin.gap import top_gap
from ..basin.trajectories import pairs_of
from ..calibration.candidate import RuleCandidate, StrengthCandidate
from ..calibration.fixed_sequence import proven
from ..calibration.rule_search import best, frontier
from ..calibration.strength import strengths
from ..calibration.terms import STRENGTHS, CalibrationTerms, Setting
from ..calibration.trial import trial_of
from ..core import seeds as seed_table
from ..diffusion.model import Model
from ..guidance.core import SwitchAt
from ..guidance.triage import Triage
from .base import Mitigation, needs_base
from .less_finetuning import INTERPOLATE, strength_of
from .stock_pipeline import empty, routed, sample_pipeline
from .testbed import Batch, Testbed

TRANSITIONS = (950.0, 850.0, 750.0, 650.0, 500.0)
ALPHAS = (0.3, 0.2, 0.15, 0.1, 0.05)
CONFIDENCE = 0.95
PAIRS = 96
SAME = 1e-2  # text states of one prompt differ in their last digits from batch to batch
MIDDLE = 650.0  # transition of triage: what its intensity does not vary


def calibration(testbed: Testbed) -> list[list[RuleCandidate]]:
    """Chains of candidates, one for each scale before the transition, safest first; measured once for each testbed."""
    return testbed.cached("ours", lambda: [_chain(testbed, before) for before in (0.0, -2.0 * testbed.units)])


def _chain(testbed: Testbed, before: float) -> list[RuleCandidate]:
    trial = trial_of(testbed.guard, testbed.model, PAIRS, seed_table.CALIBRATION)
    every_other = list(range(1, len(trial.probe.timesteps), 2))
    delta = (1 - CONFIDENCE) / 2
    return list(frontier(trial, Setting(before), alpha=max(ALPHAS), delta=delta, positions=every_other))


def chosen(chains: list[list[RuleCandidate]], alpha: float) -> tuple[RuleCandidate, bool]:
    """The best candidate whose risk is at most `alpha`, and whether that is proven; else the safest one tried.

    Each chain is a fixed sequence of its own at half the error, so the promise covers both: Learn-then-Test,
    arXiv 2110.01052, section 3.2.
    """
    share = (1 - CONFIDENCE) / 2
    boldest = best(c for chain in chains for c in proven((c.retested(alpha) for c in chain), share))
    return (boldest, True) if boldest else (chains[0][0], False)


def tried_strengths(testbed: Testbed) -> list[StrengthCandidate]:
    """Plain CFG from the smallest strength to the first that exceeds the largest alpha; measured once a testbed."""

    @contextmanager
    def at(share: float) -> Iterator[Model]:
        with strength_of(testbed, share):
            yield testbed.model

    terms = CalibrationTerms(alpha=max(ALPHAS), delta=1 - CONFIDENCE, pairs=PAIRS, strengths=STRENGTHS)
    return testbed.cached("strengths", lambda: list(strengths(testbed.guard, at, terms)))


def strongest(tried: Sequence[StrengthCandidate], alpha: float) -> tuple[StrengthCandidate, bool]:
    """The largest strength whose risk is at most `alpha`, and whether that is proven; else the smallest one tried."""
    safe = proven((candidate.retested(alpha) for candidate in tried), 1 - CONFIDENCE)
    return (safe[-1], True) if safe else (tried[0], False)


def _strength(testbed: Testbed, batch: Batch, alpha: float) -> Tensor:
    candidate, _ = strongest(tried_strengths(testbed), alpha)
    return INTERPOLATE.sampler(testbed, batch, candidate.strength)


def _strength_note(testbed: Testbed, alpha: float) -> str:
    candidate, is_proven = strongest(tried_strengths(testbed), alpha)
    promise = f"risk at most {alpha:.0%} proven" if is_proven else f"a risk of {alpha:.0%} could not be proven"
    return f"{candidate.strength:g} of the fine-tune; {promise} on {candidate.risk.n} other pairs"


def _ours(testbed: Testbed, batch: Batch, alpha: float) -> Tensor:
    candidate, _ = chosen(calibration(testbed), alpha)
    return sample_pipeline(testbed, batch, SwitchAt(candidate.guidance.transition, candidate.guidance.before, None))


def _ours_note(testbed: Testbed, alpha: float) -> str:
    candidate, is_proven = chosen(calibration(testbed), alpha)
    promise = f"risk at most {alpha:.0%} proven" if is_proven else f"a risk of {alpha:.0%} could not be proven"
    rule = candidate.guidance
    return f"transition {rule.transition:g}, {rule.before:g} before it; {promise} on {candidate.risk.n} other pairs"


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
    f"{HERE}, proven rule",
    "proven risk alpha",
    ALPHAS,
    0.1,
    _ours,
    note=_ours_note,
    prepare=calibration,
    ours=True,
)
STRENGTH = Mitigation(
    "ours-strength",
    f"{HERE}, proven strength",
    "proven risk alpha",
    ALPHAS,
    0.1,
    _strength,
    needs_base,
    _strength_note,
    tried_strengths,
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
