"""Budgets, accounts and batches: what is promised is not exceeded, and what does not fit is halved."""

import doctest
import warnings

import pytest
import torch

from basinguard import batching, budget
from basinguard.batching import Batched
from basinguard.budget import Account, Budget, buy, rotated


@pytest.mark.parametrize("module", [budget, batching])
def test_examples(module):
    assert doctest.testmod(module, extraglobs={"torch": torch}).failed == 0


@pytest.mark.parametrize("wrong", [0.1, 0, -5, "", "five", "0%", "101%", "-1%", "5 percent", float("nan")])
def test_what_is_no_budget_is_refused(wrong):
    with pytest.raises(ValueError, match="expected a share of the training time such as '5%'"):
        Budget.parse(wrong)


def test_a_share_holds_over_the_run_whatever_a_probe_costs():
    account, trained, probes = Account(rate=100.0), 0.0, 0
    for epoch in range(200):
        account.pay_in(0.05, 10.0)
        trained += 10.0
        evals = account.affordable()
        if buy(evals, captions=16, gap_captions=32, seeds=2, timesteps=20, heldout=8) is None:
            continue
        probes += 1
        account.pay_out(evals / (60 if epoch % 3 else 150), evals)  # often slower than it was
    assert probes > 5
    assert account.spent <= 0.05 * trained * 1.25, "an overdraft is paid back by the next probes"


def test_the_base_probe_is_not_charged_but_teaches_the_rate():
    account = Account()
    account.pay_out(20.0, 3000, charged=False)
    account.pay_in(0.05, 100.0)
    assert account.affordable() == 750


@pytest.mark.parametrize("evals", [50, 200, 500, 1000, 3000, 10000])
def test_more_evaluations_never_buy_less(evals):
    settings = {"captions": 16, "gap_captions": 32, "seeds": 4, "timesteps": 20, "heldout": 8}
    small, large = buy(evals, **settings), buy(2 * evals, **settings)
    if small is None:
        return
    assert large.gaps >= small.gaps
    assert large.pairs >= small.pairs
    assert large.pairs <= 16 * 4


def test_too_little_buys_nothing():
    assert buy(10, captions=16, gap_captions=32, seeds=2, timesteps=20, heldout=8) is None


def test_rotation_visits_every_caption_equally_often():
    seen = [i for turn in range(32) for i in rotated(32, 5, turn)]
    assert {seen.count(i) for i in range(32)} == {5}
    assert rotated(1, 1, 7) == [0]


def test_batches_are_padded_to_few_sizes():
    sizes = set()

    def function(x):
        sizes.add(len(x))
        return x * 2

    for count in range(1, 130):
        x = torch.arange(float(count))
        assert torch.equal(Batched(function, 64)(x), 2 * x)
    assert len(sizes) <= 8


def test_memory_that_runs_out_halves_the_chunk_and_goes_on():
    calls = []

    def hungry(x, y):
        calls.append(len(x))
        if len(x) > 3:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")
        return x + y

    batched = Batched(hungry, 16)
    x = torch.arange(20.0)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert torch.equal(batched(x, x), 2 * x)
    assert batched.chunk <= 3
    assert any("exhausted the memory; going on with" in str(w.message) for w in seen)


def test_one_row_that_does_not_fit_is_an_error():
    def impossible(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(torch.OutOfMemoryError):
            Batched(impossible, 4)(torch.zeros(4))


def test_another_error_is_not_swallowed():
    def broken(x):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        Batched(broken, 4)(torch.zeros(4))
    with pytest.raises(ValueError, match="chunk=0"):
        Batched(broken, 0)
