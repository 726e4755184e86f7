"""Sets that say the same, or nearly, of every image (DreamBooth): nothing is counted twice, and proofs are true."""

from __future__ import annotations

import pytest
import torch

from basinguard.basin.trajectories import pairs_of
from basinguard.calibration.trial import calibration_pairs
from basinguard.core import seeds as seed_table
from basinguard.core import stats
from basinguard.guard.checkpoint_selection import choose_checkpoint
from basinguard.guard.control_prompts import recombined_prompts
from basinguard.guard.guard import Guard
from basinguard.guard.plan import ProbePlan
from basinguard.guard.training_set import TrainingSet
from support.reports import base, report
from support.toy_guard import STRONG, Nearness, Points

IMAGES, EACH = 16, 4
CAPTION = "a photo of sks dog"


def one_caption(text="point 0", count=IMAGES):
    return TrainingSet(STRONG.points[:count].reshape(-1, 3, 2, 2), (text,) * count)


def test_images_of_one_caption_take_turns_and_case_and_spaces_say_nothing():
    training = TrainingSet(torch.zeros(5, 3, 2, 2), ("a dog", "A  dog", "a cat", "a dog", "a cat"))
    assert training.first_of == (0, 0, 2, 0, 2)
    assert training.rank_of == (0, 1, 0, 2, 1)


def test_no_two_pairs_share_noise_and_a_caption_keeps_its_own():
    pool = seed_table.RANGES["probe"]
    together = pairs_of(range(IMAGES), pool, EACH, (1,))
    assert len(together.seed.unique()) == IMAGES * EACH
    assert torch.equal(pairs_of([2], pool, 2, (1,), stride=EACH).seed, together.seed[2 * EACH : 2 * EACH + 2])


def proven_share(pairs, *, captions=1, risk=0.2, alpha=0.1, runs=150):
    """Share of runs in which "at most alpha" is proven; a seed is a copy or not, whichever caption samples it."""
    random, proven = torch.Generator().manual_seed(0), 0
    for _ in range(runs):
        hits = (torch.rand(4096, generator=random) < risk)[pairs.seed]
        rate = stats.rate(hits, pairs.prompt % captions)
        choice = choose_checkpoint([base(), report(0, risk=rate)], alpha, "plain")
        proven += choice is not None and choice.proven
    return proven / runs


@pytest.mark.parametrize(
    "captions",
    [
        pytest.param(1, id="one caption"),
        pytest.param(IMAGES, id="captions that differ by a word", marks=pytest.mark.long),
    ],
)
def test_what_a_probe_proves_is_true_where_the_seed_alone_decides(captions):
    """True risk 0.2, alpha 0.1: a proof is wrong in at most 5 % of runs. With 8 shared seeds it is in 14 to 18 %."""
    ours, shared = (pairs_of(range(IMAGES), seeds, EACH, (1,)) for seeds in (range(4096), range(8)))
    assert proven_share(shared, captions=captions) > 0.1, "else this test could not fail"
    assert proven_share(ours, captions=captions) <= 0.05


def test_what_calibration_proves_under_one_caption_is_true():
    seed = calibration_pairs(IMAGES, 96, (1,), 0).seed
    assert len(seed.unique()) == len(seed)
    random, wrong = torch.Generator().manual_seed(1), 0
    for _ in range(300):
        hits = int((torch.rand(len(seed), generator=random) < 0.2).sum())
        wrong += stats.binomial_p_value(hits, len(seed), 0.1) <= 0.05
    assert wrong / 300 <= 0.05


@pytest.fixture(scope="module")
def measured():
    guard = Guard(one_caption(), Nearness(), ProbePlan(captions=IMAGES, seeds=2, timesteps=6))
    start = guard.measure(Points(), epoch=-1, train_step=0)
    return start, guard.measure(Points(), epoch=0, train_step=1)


def test_a_probe_samples_every_pair_on_noise_of_its_own(measured):
    _, later = measured
    assert len({exit_.seed for exit_ in later.basin.exits}) == later.samples.risk.n == 2 * IMAGES


def test_the_gap_of_one_caption_is_several_noises_and_one_caption(measured):
    _, later = measured
    assert later.gaps.train.n == IMAGES
    assert later.gaps.train.low < later.gaps.train.value < later.gaps.train.high, "not one value repeated"
    assert later.gaps.since_base.value == 0.0, "the same weights on the same noise"


def test_two_captions_of_eight_images_each_are_two_captions():
    texts = ("point 0",) * 8 + ("point 1",) * 8
    training = TrainingSet(STRONG.points[:16].reshape(-1, 3, 2, 2), texts)
    guard = Guard(training, Nearness(), ProbePlan(captions=16, seeds=2, timesteps=6))
    report = guard.measure(Points(), epoch=-1, train_step=0)
    assert report.gaps.train.n == 2
    assert {group.name: group.captions for group in report.groups} == {"duplicated": 2}


def test_control_prompts_of_one_caption_are_near_the_subject():
    prompts = recombined_prompts([CAPTION] * 5, most=4)
    assert all(prompt.startswith(f"{CAPTION} ") for prompt in prompts)
