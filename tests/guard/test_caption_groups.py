"""Which captions speak of which subject; every right value is read off the captions."""

import doctest

import pytest

from basinguard.guard import caption_groups as module
from basinguard.guard.caption_groups import caption_groups

PLACES = ("a lake", "a street", "the snow", "a room", "the rain", "a field")


def test_example():
    assert doctest.testmod(module).failed == 0


def test_captions_that_say_the_same_are_a_subject():
    captions = ["A photo of sks dog"] * 5 + ["a photo of  zwx cat."] * 6
    assert caption_groups(captions) == {
        "a photo of sks dog": (0, 1, 2, 3, 4),
        "a photo of zwx cat": tuple(range(5, 11)),
    }


def test_three_subjects_that_are_mixed_are_told_apart():
    captions = [f"{name} at {place}" for place in PLACES for name in ("Anna", "Ben-Ali", "Cléo")]
    assert caption_groups(captions) == {
        "anna": tuple(range(0, 18, 3)), "ben-ali": tuple(range(1, 18, 3)), "cléo": tuple(range(2, 18, 3))
    }  # fmt: skip


@pytest.mark.parametrize(
    "captions",
    [
        [],
        [f"sks dog at {place}" for place in PLACES] * 2,
        ["a photo of sks dog"] * 12,
        [f"{name} {k}" for name in ("dog", "cat") for k in range(4)],
        [*(f"dog {k}" for k in range(6)), *(f"cat {k}" for k in range(6)), "dog and cat"],
    ],
    ids=["none", "one subject", "one caption", "too few of each", "one shows both"],
)
def test_one_subject_or_none_that_divides_the_set_is_no_group(captions):
    assert caption_groups(captions) == {}
