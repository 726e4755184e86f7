"""Which epoch is shipped: the best of those that keep the risk, decided as the run goes on."""

import pytest

from basinguard.core.report import Report
from basinguard.core.stats import wilson
from basinguard.guard.checkpoint_selection import choose_checkpoint, guarded_risk
from support.reports import base, near, report

ALLOWED = 0.15


def picked(history, how="plain", **changes):
    choice = choose_checkpoint(history, ALLOWED, how, **changes)
    return None if choice is None else choice.epoch


def test_the_latest_epoch_that_keeps_the_risk_where_nothing_else_was_measured():
    history = [base(), report(0), report(1), report(2, 12, transition=500.0)]
    assert picked(history) == 1
    assert picked(history, "guarded") == 2, "its curve is within the allowed risk at 500"


def test_the_base_model_is_no_candidate_and_nothing_may_be_left():
    assert picked([base()]) is None
    assert picked([base(), report(0, 20, transition=None)]) is None
    assert picked([base(), report(0, 20, transition=None)], "guarded") is None
    assert picked([]) is None


def test_what_was_taught_decides_before_everything_else_that_is_kept():
    """An early epoch is ugly (below the base), a middling one has learnt most, a late one copies and keeps less."""
    taught = [-0.3, 0.5, 0.4]
    rows = [(k, {"alignment_heldout": near(0.9 - 0.1 * k), "taught": near(taught[k])}) for k in range(3)]
    history = [base(), *(report(k, **row) for k, row in rows)]
    assert picked(history) == 1
    assert picked(history, latest=True) == 2
    assert "taught 0.5" in choose_checkpoint(history, ALLOWED, "plain").why


def test_where_taught_was_not_measured_the_latest_that_aligns_as_well_as_the_best():
    history = [base(), *(report(k, alignment=near(a)) for k, a in enumerate((0.70, 0.80, 0.79, 0.75)))]
    assert picked(history) == 2
    assert picked(history, latest=True) == 3
    assert "taught was not measured" in choose_checkpoint(history, ALLOWED, "plain").why


def test_an_epoch_that_proves_the_risk_beats_one_that_only_measures_it():
    history = [base(), report(0, n=60), report(1, 5, n=60)]  # [0, 0.06] and 0.083 [0.036, 0.18]
    choice = choose_checkpoint(history, ALLOWED, "plain")
    assert (choice.epoch, choice.proven) == (0, True)
    unsure = choose_checkpoint([base(), report(1, 5, n=60)], ALLOWED, "plain")
    assert not unsure.proven
    assert "the interval reaches 0.18" in unsure.why


def test_guarded_sampling_needs_an_empty_prompt_that_does_not_copy():
    history = [base(), report(0), report(1, 12, transition=500.0, risk_uncond=wilson(6, 8))]
    assert picked(history, "guarded") == 0


def test_guarded_risk_is_read_off_the_curve():
    assert guarded_risk(report(0, 12, transition=500.0)).value == 3 / 24
    assert guarded_risk(report(0, 12, transition=None)) is None
    assert guarded_risk(report(0, 2, transition=999.0)).value == 2 / 24


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("how", ["plain", "guarded"])
def test_what_was_kept_on_the_way_is_what_is_chosen_at_the_end(how, measured):
    """One set of weights is enough: replaying a run epoch by epoch ends with the weights of the final choice."""
    hits = (0, 1, 0, 2, 0, 1, 3, 0)
    align = (0.7, 0.9, 0.8, 0.88, 0.89, 0.6, 0.9, 0.91)
    taught = (0.1, 0.2, 0.5, 0.3, 0.6, 0.9, 0.4, 0.55)
    history, last_choice = [base()], None
    for k in range(8):
        more = {"taught": near(taught[k])} if measured else {}
        history.append(report(k, hits[k], alignment_heldout=near(align[k]), **more))
        history.append(Report.missed(k, 0, "a gap"))
        choice = choose_checkpoint(history, ALLOWED, how)
        if choice is not None and choice.epoch == k:
            last_choice = k
    assert last_choice == picked(history, how)


def test_an_epoch_that_copies_images_of_other_captions_is_not_kept_by_guidance_from_the_start():
    copied = report(1, 12, curve=((500.0, near(0.0)), (999.0, near(0.0))))
    assert picked([base(), report(0), copied], "guarded") == 0
