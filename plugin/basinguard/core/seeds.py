"""Every seed that something is measured on, in one table: what is tuned on is never what is measured on.

Each purpose owns a range that starts at its seed; `tests/core/test_seeds.py` proves that no two of them meet. Choices
that need no sample (which pairs are checked, in which order words are tried) are fixed where they are made.
"""

from __future__ import annotations

import numpy as np

PREDICTION_TYPE = 0  # noise that shows whether a network predicts epsilon or v; one seed
CONTROL_IMAGES = 900  # the base model's own samples of stand-in prompts; one seed
PROBE = 1_000
CALIBRATION = 1_000_000
SEARCH = 1_500_000  # what decides which products are tested is not what they are tested on
RANKING = 1_750_000  # what decides where a proof begins
VERIFICATION = 2_000_000
TRANSFER = 3_000_000
AUDIT = 4_000_000
TRIAGE = 5_000_000
CARD = 6_000_000
ATTACK = 7_000_000  # what an attacker samples with
MEMBERSHIP = 7_900_000  # noises that membership statistics are read at
TAUGHT_BASE = 8_000_000  # the base model's samples, which the rulers of a calibration are made with
TAUGHT_HELDOUT = 8_300_000  # held-out prompts: what ships was chosen on other prompts and other noise
TAUGHT_CHOICE = 8_600_000  # held-out prompts that decide between proven products
COMPARISON_REFERENCE = 9_000_000  # held-out prompts of a comparison, so that the base's own row is no copy of its ruler
COMPARISON_TAUGHT = 9_500_000  # the base model's samples of held-out prompts that a comparison's ruler is made with
CANARY = 10_000_000  # marked pictures, their captions and the samples that look for them
REDRAW = 20_000_000  # training images re-drawn from partial noise, to choose a copy detector by
PRIOR = 30_000_000  # the base model's own pictures that a fine-tune is held back with
TASK_TRAIN = 100_000_000  # scenes of a task that is trained on
TASK_TRUTH = 200_000_000  # fresh true scenes of a task, on captions that it is not trained on
TASK_CLASS = 300_000_000  # others of a subject's class

RANGES = {
    "prediction type": range(PREDICTION_TYPE, PREDICTION_TYPE + 1),
    "control images": range(CONTROL_IMAGES, PROBE),
    "probe": range(PROBE, CALIBRATION),
    "calibration": range(CALIBRATION, SEARCH),
    "search": range(SEARCH, RANKING),
    "ranking": range(RANKING, VERIFICATION),
    "verification": range(VERIFICATION, TRANSFER),
    "transfer": range(TRANSFER, AUDIT),
    "audit": range(AUDIT, TRIAGE),
    "triage": range(TRIAGE, CARD),
    "card": range(CARD, CARD + 1_000_000),
    "attack": range(ATTACK, MEMBERSHIP),
    "membership": range(MEMBERSHIP, TAUGHT_BASE),
    "taught, base": range(TAUGHT_BASE, TAUGHT_HELDOUT),
    "taught, held-out": range(TAUGHT_HELDOUT, TAUGHT_CHOICE),
    "taught, choice": range(TAUGHT_CHOICE, COMPARISON_REFERENCE),
    "comparison reference": range(COMPARISON_REFERENCE, COMPARISON_TAUGHT),
    "comparison, taught": range(COMPARISON_TAUGHT, COMPARISON_TAUGHT + 500_000),
    "canary": range(CANARY, CANARY + 1_000_000),
    "re-draw": range(REDRAW, REDRAW + 1_000_000),
    "prior": range(PRIOR, PRIOR + 1_000_000),
    "task training": range(TASK_TRAIN, TASK_TRUTH),
    "task truth": range(TASK_TRUTH, TASK_CLASS),
    "task class": range(TASK_CLASS, TASK_CLASS + 100_000_000),
}


def stream(seed: int, *counts: int) -> int:
    """A seed of its own for each (seed, counts), in 0..2^32 - 1: independent random streams from one seed.

    torch's CPU generator reads the lowest 32 bits of a seed alone, so counts cannot simply be shifted above them.

    Source: O'Neill, "Developing a seed_seq alternative" (2015), as numpy's SeedSequence.

    Example:
        >>> stream(0, 1) == stream(1, 0)
        False
    """
    return int(np.random.SeedSequence([seed, *counts]).generate_state(1)[0])
