"""A run's movement in words."""

import pytest

from basinguard.records import Report
from basinguard.stats import wilson
from basinguard.words import moved


def report(epoch, hits, transition):
    measured = {"risk": wilson(hits, 20), "width": wilson(hits, 40), "transition": transition}
    return Report.missed(epoch, epoch, "").model_copy(update=measured)


def test_movement_since_the_probe_before_and_since_the_base():
    text = moved([report(-1, 0, 999.0), report(0, 2, 999.0), Report.missed(1, 1, "no memory"), report(2, 8, 640.0)])
    assert text.startswith("**epoch 2**, guidance may come on at timestep 640")
    assert "since epoch 0 | since the base model" in text
    assert "| risk under plain CFG | 0.4 [" in text
    assert "| +0.3 | +0.4 |" in text
    assert "| +0.15 | +0.2 |" in text


def test_no_transition_left_is_said():
    assert "too late" in moved([report(-1, 0, 999.0), report(3, 20, None)])


def test_nothing_measured_is_refused():
    with pytest.raises(ValueError, match="1 reports and none"):
        moved([Report.missed(0, 0, "no memory")])
