"""A round of attacks: planned by its budget before it starts, and a table that also says what was not tried."""

from contextlib import contextmanager

import pytest

from basinguard.attacks.options import AttackOptions
from basinguard.attacks.plan import LEAST, SAMPLES, AttackPlan, affordable, attempts, cost_of
from basinguard.attacks.registry import ATTACKS, NOT_BUILT
from basinguard.attacks.round import Lineup, run_round
from basinguard.attacks.target import Target
from basinguard.core.attack_table import AttackTable
from basinguard.diffusion.toy import gaussian_memorizer
from basinguard.guidance.core import Constant
from support.toy_guard import Points, make_guard

SAME = gaussian_memorizer(count=64, dim=12, leak=63 / 64)  # every prompt weighs all points alike
CHOSEN = [attack for attack in ATTACKS if attack.name in ("training captions", "high scale")]


def holding(target):
    @contextmanager
    def opened():
        yield target

    return opened


def lineup(**absent):
    base = Points(SAME)
    targets = {
        "base": Target("base", base, base=base),
        "plain": Target("plain", Points(), base=base),
        "guarded": Target("guarded", Points(), Constant(1.0), base),
    }
    return Lineup({name: holding(target) for name, target in targets.items()}, absent)


def test_a_round_says_what_came_out_of_whom_and_what_was_not_tried():
    shown = []
    guard = make_guard(heldout=(), timesteps=10, scale=2.0)
    table = run_round(
        lineup(**{"safe weights": "none proven"}), guard, AttackPlan("quick", 8 * 120), CHOSEN, shown.append
    )
    assert AttackTable.from_json(table.to_json()) == table
    captions, high = table.rows
    assert [outcome.target for outcome in captions.outcomes] == ["base", "plain", "guarded"]
    assert [outcome.target for outcome in high.outcomes] == ["base", "plain"], "by its rule there is no scale to choose"
    assert captions.outcome("plain").copies.value == 1
    assert (captions.outcome("plain").images, table.images_total) == (4, 4)
    assert captions.telling == (captions.outcome("base").copies.value == 0)
    reasons = {(row.attack, row.target): row.reason for row in table.untried}
    assert "needs the weights" in reasons["high scale (2 times the usual scale)", "guarded"]
    assert reasons["all", "safe weights"] == "none proven"
    assert {attack for attack, target in reasons if target == "all"} >= set(NOT_BUILT)
    assert (len(shown), table.evaluations) == (5, sum(extraction.evaluations for extraction in shown))
    assert table.targets == ("base", "plain", "guarded")


def test_every_attack_gets_as_many_samples_as_the_budget_pays_for():
    planned, untried = attempts(ATTACKS, AttackPlan("quick", 10_000), steps=10, models=2, captions=4)
    per_sample = 2 * sum(cost_of(attempt.attack, 10) for attempt in planned)
    assert {attempt.samples for attempt in planned} == {10_000 // per_sample // 4 * 4}, "equally many a caption"
    assert [row.reason for row in untried] == ["of the full round"] * 3
    assert len(attempts(ATTACKS, AttackPlan("full"), steps=10, models=2, captions=4)[0]) == len(ATTACKS)
    assert affordable(1000, AttackPlan("full")) == SAMPLES["full"] > SAMPLES["quick"] > LEAST


def test_a_budget_too_small_for_anything_is_one_line():
    with pytest.raises(ValueError, match=r"attack_budget=500: too small for anything: 8 samples .* take 800 UNet"):
        affordable(100, AttackPlan("quick", 500))
    with pytest.raises(ValueError, match="attack='hard': expected none, quick, full"):
        AttackOptions("hard")
    with pytest.raises(ValueError, match="attack_budget=-1: expected"):
        AttackOptions("quick", -1)
    with pytest.raises(ValueError, match="attack_budget=100 without an attack"):
        AttackOptions(attack_budget=100)


def test_models_that_a_budget_does_not_pay_for_are_left_out_and_told():
    guard, cost = make_guard(heldout=(), timesteps=10, scale=2.0), 2 * 2 * 10 * LEAST  # of two attacks on a model
    table = run_round(lineup(), guard, AttackPlan("quick", 2 * cost), CHOSEN)
    assert table.targets == ("base", "plain")
    assert table.evaluations == 2 * cost
    assert [row.reason for row in table.untried if row.target == "guarded"] == ["the budget did not pay for it"]
    others = {name: opening for name, opening in lineup().opening.items() if name != "base"}
    assert run_round(Lineup(others, {}), guard, AttackPlan("quick", cost), CHOSEN).targets == ("plain",)
