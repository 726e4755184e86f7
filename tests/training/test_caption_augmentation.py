"""Rates 0 and 1 are exact; in between, shares of many draws lie within five standard deviations."""

import math
import random

import pytest
import torch

from basinguard.training import caption_augmentation as augmentation
from basinguard.training.encoding import add_noise

WORDS = ("one", "two", "three")
CAPTION = "a red cat sits on a blue mat"


@pytest.fixture
def rng():
    return random.Random(0)


@pytest.mark.parametrize(
    "change", [augmentation.replace_words, augmentation.insert_words, augmentation.replace_caption]
)
def test_rate_zero_changes_nothing_and_no_vocabulary_neither(change, rng):
    assert change(CAPTION, 0.0, WORDS, rng) == CAPTION
    assert change(CAPTION, 1.0, (), rng) == CAPTION


def test_rate_one(rng):
    assert set(augmentation.replace_words(CAPTION, 1.0, WORDS, rng).split()) <= set(WORDS)
    inserted = augmentation.insert_words(CAPTION, 1.0, WORDS, rng).split()
    assert inserted[::2] == CAPTION.split()
    assert set(inserted[1::2]) <= set(WORDS)
    assert set(augmentation.replace_caption(CAPTION, 1.0, WORDS, rng).split()) <= set(WORDS)
    assert sorted(augmentation.repeat_words(CAPTION, 1.0, rng).split()) == sorted(CAPTION.split() * 2)
    assert augmentation.repeat_words(CAPTION, 0.0, rng) == CAPTION
    assert augmentation.drop_caption(CAPTION, 1.0, rng) == ""


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_caption_dropout_happens_at_its_rate(rate, rng):
    n = 4000
    dropped = sum(augmentation.drop_caption(CAPTION, rate, rng) == "" for _ in range(n))
    assert abs(dropped / n - rate) < 5 * math.sqrt(rate * (1 - rate) / n)


def test_every_caption_is_drawn_equally_often(rng):
    drawn = [augmentation.draw_caption(WORDS, rng) for _ in range(3000)]
    assert all(abs(drawn.count(word) / 3000 - 1 / 3) < 0.05 for word in WORDS)
    assert augmentation.draw_caption((), rng) == ""


def test_noise_has_the_scale_asked_for():
    embeddings = torch.zeros(8, 77, 64, dtype=torch.float64)
    noisy = add_noise(embeddings, 0.1, torch.Generator().manual_seed(0))
    assert noisy.dtype == torch.float64
    assert float(noisy.std()) == pytest.approx(0.1, rel=0.02)
    assert torch.equal(noisy, add_noise(embeddings, 0.1, torch.Generator().manual_seed(0)))
    assert torch.equal(add_noise(embeddings, 0.0), embeddings)


def test_repeats_are_capped():
    assert augmentation.cap_repeats([1, 5, 10], most=5) == [1, 5, 5]
    with pytest.raises(ValueError, match="at least 1"):
        augmentation.cap_repeats([1], most=0)


def test_vocabulary_is_each_word_once():
    assert augmentation.vocabulary_of(["a cat", "a dog"]) == ("a", "cat", "dog")


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_is_a_probability(rate, rng):
    with pytest.raises(ValueError, match="probability"):
        augmentation.drop_caption(CAPTION, rate, rng)


def test_a_negative_scale_is_refused():
    with pytest.raises(ValueError, match="standard deviation"):
        add_noise(torch.zeros(1), -1.0)
