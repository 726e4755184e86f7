"""A run's movement in words."""

import pytest

from basinguard.core.report import Report, last_search
from basinguard.core.stats import wilson
from basinguard.guard.changes import changes_table
from support.reports import changed


def report(epoch, hits, transition):
    measured = {"risk": wilson(hits, 20), "width": wilson(hits, 40), "transition": transition}
    return changed(Report.missed(epoch, epoch, ""), **measured)


def test_movement_since_the_probe_before_and_since_the_base():
    text = changes_table(
        [report(-1, 0, 999.0), report(0, 2, 999.0), Report.missed(1, 1, "no memory"), report(2, 8, 640.0)]
    )
    assert text.startswith("**epoch 3**, guidance may come on at timestep 640")
    assert "since epoch 1 | since the base model" in text
    assert "| risk under plain CFG | 0.4 [" in text
    assert "| +0.3 | +0.4 |" in text
    assert "| +0.15 | +0.2 |" in text


def test_no_transition_left_is_said():
    assert "too late" in changes_table([report(-1, 0, 999.0), report(3, 20, None)])


def test_gaps_alone_do_not_say_that_no_transition_protects():
    base, sampled = report(-1, 0, 999.0), report(2, 8, 640.0)
    only = {"gap": wilson(3, 20), "precision": "gap of 20 of 20 captions; no samples"}
    gaps = changed(Report.missed(3, 3, ""), **only)
    text = changes_table([base, sampled, gaps])
    assert text.startswith("**epoch 4**, guidance may come on at timestep 640, as of epoch 3")
    assert "| gap, training captions |" in text
    assert "risk" not in text
    assert "within the budget: gap of 20 of 20 captions; no samples" in text
    assert last_search([base, sampled, gaps]) is sampled
    assert "too late" not in changes_table([gaps])
    late = changes_table([base, report(2, 20, None), gaps])
    assert "no transition on the grid leaves a risk within the plan's, as of epoch 3" in late


def test_nothing_measured_is_refused():
    with pytest.raises(ValueError, match="1 reports and none"):
        changes_table([Report.missed(0, 0, "no memory")])
