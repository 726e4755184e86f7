"""The verdict: five states, the evidence for each, and silence where evidence is missing."""

import time

import pytest

from basinguard.core.report import Report
from basinguard.core.stats import wilson
from basinguard.guard.verdict import newest_known, sureness, verdict_on
from support.reports import base, near, report

ALLOWED = 0.15


def test_a_run_that_copies_nothing_is_safe():
    verdict = verdict_on([base(), report(4, n=60)], ALLOWED)
    assert (verdict.state, verdict.level, verdict.epoch) == ("safe", 0, 4)
    assert verdict.confidence > 0.97
    assert "0.00 [0.00, 0.06] of 60 samples against 0.15 allowed" in verdict.evidence[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gap_excess": near(0.004, 0.003)}, "gap has risen"),
        ({"sigma_c_excess": near(0.9, 0.3)}, "log critical scale has risen"),
        ({"hits": 1, "width": near(0.0, 0.0)}, "samples already copy"),
    ],
)
def test_an_early_alarm_says_that_a_basin_is_forming(changes, words):
    verdict = verdict_on([base(), report(4, **changes)], ALLOWED)
    assert verdict.state == "basin forming"
    assert any(words in line for line in verdict.evidence)
    assert not verdict.breaches()


def test_an_alarm_whose_interval_reaches_zero_is_none():
    assert verdict_on([base(), report(4, gap_excess=near(0.004, 0.005))], ALLOWED).state == "safe"


def test_memorizing_while_a_transition_is_left_and_too_late_when_none_is():
    left = verdict_on([base(), report(4, 12, transition=640.0)], ALLOWED)
    assert left.state == "memorizing"
    assert "guidance from timestep 640 on still keeps it" in left.evidence
    none = verdict_on([base(), report(4, 12, transition=None)], ALLOWED)
    assert none.state == "too late for delayed guidance"
    empty = verdict_on([base(), report(4, 12, transition=640.0, risk_uncond=wilson(5, 8))], ALLOWED)
    assert empty.state == "too late for delayed guidance"
    assert "the empty prompt itself reproduces" in empty.evidence[1]
    assert left.breaches()
    assert not left.breaches("guarded")
    assert none.breaches("guarded")


def test_a_risk_just_above_the_allowed_one_is_no_breach_yet():
    verdict = verdict_on([base(), report(4, 4, transition=640.0)], ALLOWED)  # 0.167 [0.07, 0.36]
    assert verdict.state == "memorizing"
    assert 0.5 < verdict.confidence < 0.9
    assert not verdict.breaches()


def test_confidence_is_that_of_a_normal_interval():
    assert sureness(near(0.3, 0.1), 0.2) == pytest.approx(0.975, abs=1e-3)
    assert sureness(near(0.3, 0.1), 0.3) == 0.5
    assert sureness(near(0.3, 0.0), 0.2) == 1.0


UNKNOWN = [
    ([], "nothing has been measured"),
    ([Report.missed(-1, 0, "no memory")], "the probe of the base model failed: no memory"),
    ([base(), Report.missed(0, 8, "no memory")], "the probe of epoch 1 failed: no memory"),
    ([base(), report(0, 20), Report.missed(1, 16, "no memory")], "the probe of epoch 2 failed"),
    ([report(3, 20)], "the base model was not measured; there is nothing to compare with"),
    ([Report.missed(-1, 0, "resumed with another training set"), report(3, 20)], "(resumed with another training set)"),
    ([base(), report(3, risk=None)], "no samples at this probe, so no risk"),
    ([base(hits=12), report(3, 20)], "the base model itself seems to copy"),
    (
        [base(), *(report(k, gap=0.1 - 0.001 * (k + 1), similarity_p95=near(0.5)) for k in (0, 1))],
        "no number has moved since the base model in 2 probes",
    ),
]


@pytest.mark.parametrize(("history", "why"), UNKNOWN)
def test_missing_evidence_is_unknown_and_never_a_breach(history, why):
    verdict = verdict_on(history, ALLOWED)
    assert (verdict.state, verdict.level, verdict.confidence) == ("unknown", -1, None)
    assert why in verdict.evidence[0]
    assert not verdict.breaches()
    assert not verdict.breaches("guarded")


def test_a_flat_risk_alone_is_no_flat_metric():
    assert verdict_on([base(), report(0), report(1), report(2)], ALLOWED).state == "safe"


def test_a_probe_without_samples_speaks_by_its_alarms_unless_the_last_samples_said_worse():
    gap_only = {"risk": None, "width": None, "transition": None}
    alarmed = report(5, gap_excess=near(0.004, 0.003), **gap_only)
    verdict = verdict_on([base(), report(4, n=60), alarmed], ALLOWED)
    assert verdict.state == "basin forming"
    assert verdict.evidence[-1] == "no samples at this probe, so no risk"
    worse = verdict_on([base(), report(4, 12, transition=640.0), alarmed], ALLOWED)
    assert worse.state == "unknown"
    assert worse.evidence[0].endswith("at epoch 5 it was memorizing")
    assert not worse.breaches()


def test_samples_without_exits_never_say_too_late():
    sampled = report(5, 12, width=None, transition=None)
    assert (
        "whether a transition still keeps it is not known"
        in verdict_on([base(width=None), sampled], ALLOWED).evidence[1]
    )
    verdict = verdict_on([base(), report(4, 1, transition=640.0), sampled], ALLOWED)
    assert verdict.state == "memorizing"
    assert verdict.evidence[1] == "guidance from timestep 640 on still keeps it, as of epoch 5"


def test_a_long_run_of_probes_without_samples_is_judged_in_no_time():
    gap_only = {"risk": None, "width": None, "transition": None}
    history = [base(), *(report(k, **gap_only) for k in range(300))]
    begin = time.process_time()
    assert newest_known(history, ALLOWED) is not None
    assert time.process_time() - begin < 2


def test_the_newest_known_verdict_passes_over_gaps():
    history = [base(), report(0, 12, transition=640.0), Report.missed(1, 16, "no memory")]
    assert newest_known(history, ALLOWED).state == "memorizing"
    assert newest_known([Report.missed(-1, 0, "no memory")], ALLOWED) is None


def test_a_verdict_survives_json_and_takes_milliseconds():
    history = [base(), *(report(k, k // 4) for k in range(60))]
    start = time.process_time()
    verdict = verdict_on(history, ALLOWED)
    assert time.process_time() - start < 0.25, "0.3 ms on an idle core"
    assert type(verdict).from_json(verdict.to_json()) == verdict


@pytest.mark.parametrize("allowed", [0.0, 1.0])
def test_an_allowed_risk_that_is_no_share_is_refused(allowed):
    with pytest.raises(ValueError, match="expected a share in"):
        verdict_on([base()], allowed)


def test_copies_of_images_with_other_captions_are_not_said_to_be_kept_by_a_transition():
    copied = report(4, 6, transition=999.0, curve=((500.0, near(0.0)), (999.0, near(0.0))))
    (_, words) = verdict_on([base(), copied], 0.1).evidence
    assert words == "the copies are of images that have other captions: no transition is looked for against those"
    later = report(5, 6, transition=None, curve=(), width=None)
    (_, words) = verdict_on([base(), copied, later], 0.1).evidence
    assert words == "exits were last looked for at epoch 5, when no transition was needed"
