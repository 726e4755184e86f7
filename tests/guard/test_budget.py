"""Budgets, accounts and batches: what is promised is not exceeded, and what does not fit is halved."""

import dataclasses
import doctest
import warnings

import pytest
import torch

from basinguard.diffusion import batching, evaluation_count
from basinguard.diffusion.batching import Batched
from basinguard.guard import budget, probe_costs
from basinguard.guard.budget import STAGES, Account, Budget
from basinguard.guard.probe_costs import EVALUATIONS, SCALE_EVALS, ProbeCosts, affordable_probe, rotated


@pytest.mark.parametrize("module", [budget, probe_costs, batching, evaluation_count])
def test_examples(module):
    assert doctest.testmod(module, extraglobs={"torch": torch}).failed == 0


@pytest.mark.parametrize("wrong", [0.1, 0, -5, "", "five", "0%", "101%", "-1%", "5 percent", float("nan")])
def test_what_is_no_budget_is_refused(wrong):
    with pytest.raises(ValueError, match="expected a share of the training time such as '5%'"):
        Budget.parse(wrong)


MENU = ProbeCosts(captions=16, gap_captions=32, seeds=4, evaluations=20, heldout=8)
PADDED = dataclasses.replace(MENU, unit=8)


def test_no_probe_takes_more_than_its_span_pays_and_debts_are_paid_back():
    account, trained, spent, largest = Account(prices=dict.fromkeys(STAGES, 0.01)), 0.0, 0.0, 0.0
    for epoch in range(200):
        account.allow(0.05 * 60.0)
        trained += 60.0
        bought = affordable_probe(account.spendable(), PADDED, {stage: account.price(stage) for stage in STAGES})
        slower = 1.2 if epoch % 3 else 0.7  # than it was last time
        seconds = cost(bought, PADDED, dict.fromkeys(STAGES, 0.01 * slower)) if bought else 0.0
        account.balance -= seconds
        spent, largest = spent + seconds, max(largest, seconds)
    assert largest <= 0.05 * 60.0, "a fifth slower than expected is still within the span's share"
    assert 0.01 * trained < spent <= 0.05 * trained


def test_an_overdraft_is_paid_back_and_savings_are_not_kept():
    account = Account()
    account.allow(2.0)
    account.balance -= 5.0
    account.allow(2.0)
    assert account.spendable() == 0
    account.allow(2.0)
    account.allow(2.0)
    assert account.balance == 2.0


def test_prices_are_those_of_the_last_time():
    account = Account()
    account.learn({"gap": 2.0, "exits": 0.0}, {"gap": 100, "exits": 50})
    assert account.price("gap") == 0.02
    account.learn({"gap": 1.0, "samples": 3.0}, {"gap": 100, "samples": 100})
    assert account.price("gap") == 0.01
    assert account.price("samples") == 0.03
    account.learn({"gap": 0.5}, {"gap": 100})
    assert account.price("samples") == pytest.approx(0.015), "as the gap's did"


def cost(bought, menu, prices=EVALUATIONS):
    """What a purchase costs, added up again."""
    total = menu.gap(bought.gaps, bought.heldout) * prices["gap"] + menu.samples(bought.pairs) * prices["samples"]
    if bought.resolution:
        total += menu.exits(bought.pairs, bought.resolution) * prices["exits"]
    return total + bought.critical_scales * SCALE_EVALS * prices["critical_scales"]


@pytest.mark.parametrize("menu", [MENU, PADDED])
def test_a_purchase_is_within_its_allowance(menu):
    bought = {evals: affordable_probe(evals, menu) for evals in range(0, 20_000, 37)}
    assert all(cost(probe, menu) <= evals for evals, probe in bought.items() if probe)


def test_what_more_evaluations_buy():
    """Gaps, then samples, then their exits, then more of them; each at its price."""
    ladder = [affordable_probe(evals, MENU) for evals in (2, 20, 42, 150, 600, 2000, 20000)]
    assert ladder[0] is None
    assert [(b.gaps, b.pairs, b.resolution) for b in ladder[1:4]] == [(10, 0, 0), (32, 0, 0), (32, 2, 0)]
    assert all(b.resolution == 0 and b.missing > 1 for b in ladder[1:4])
    assert all(b.gaps == 32 and b.resolution and not b.missing for b in ladder[4:])
    assert (ladder[-1].captions, ladder[-1].seeds, ladder[-1].resolution) == (16, 4, 1)
    assert [b.pairs for b in ladder[1:]] == sorted(b.pairs for b in ladder[1:])


def test_held_out_prompts_are_left_out_before_the_epoch_stays_dark():
    few = affordable_probe(10, MENU)
    assert (few.gaps, few.heldout) == (9, False)
    assert few.precision(20, 32).startswith("gap of 9 of 32 captions, of no held-out prompts; no samples")
    assert affordable_probe(12, MENU).heldout


def test_critical_scales_are_bought_with_what_is_left():
    menu = dataclasses.replace(MENU, captions=4, seeds=1, critical_scales=3)
    assert affordable_probe(900, menu).critical_scales == 0
    assert affordable_probe(3000, menu).critical_scales == 3
    assert "critical scale of 3 images" in affordable_probe(3000, menu).precision(20, 32)


def test_what_was_out_of_reach_is_told_with_the_remedy():
    bought = affordable_probe(42, MENU)
    assert "no samples; exits take" in bought.precision(20, 32)
    again = affordable_probe(42 * bought.missing * 1.01, MENU)
    assert again.resolution == 8, "that many times the budget does buy exits"


def test_a_set_of_one_caption_is_bought_too():
    assert affordable_probe(100, ProbeCosts(captions=1, gap_captions=1, seeds=1, evaluations=20)).gaps == 1


def test_rotation_visits_every_caption_equally_often():
    indices = [i for turn in range(32) for i in rotated(32, 5, 5 * turn)]
    assert {indices.count(i) for i in range(32)} == {5}
    assert rotated(1, 1, 7) == [0]


def test_batches_are_padded_to_few_sizes():
    sizes = set()

    def function(x):
        sizes.add(len(x))
        return x * 2

    for count in range(1, 130):
        x = torch.arange(float(count))
        assert torch.equal(Batched(function, 64)(x), 2 * x)
    assert sizes == {1, 2, 4, *range(8, 65, 8)}


def test_memory_that_runs_out_halves_the_chunk_and_goes_on():
    calls = []

    def hungry(x, y):
        calls.append(len(x))
        if len(x) > 3:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")
        return x + y

    batched = Batched(hungry, 16)
    x = torch.arange(20.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert torch.equal(batched(x, x), 2 * x)
    assert batched.chunk <= 3
    assert any("exhausted the memory; going on with" in str(w.message) for w in caught)


def test_one_row_that_does_not_fit_is_an_error():
    def impossible(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.warns(match="exhausted the memory"), pytest.raises(torch.OutOfMemoryError):
        Batched(impossible, 4)(torch.zeros(4))


def test_another_error_is_not_swallowed():
    def broken(x):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        Batched(broken, 4)(torch.zeros(4))
    with pytest.raises(ValueError, match="chunk=0"):
        Batched(broken, 0)
