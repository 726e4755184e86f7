"""Early decisions, guesses, spot checks and censoring: cheaper or more careful, never another exit."""

import pytest
import torch

from basinguard.basin.curves import risk_curve
from basinguard.basin.early_decision import Anchors, ExitDecider, Limits, learn
from basinguard.basin.exit_search import ExitSearch
from basinguard.basin.plain_run import run_plain
from basinguard.basin.trajectories import GuidedModel, Pairs, run_branch, run_trunk
from basinguard.diffusion.noise_schedule import FlowSchedule
from basinguard.diffusion.sampling import draw_noise
from basinguard.diffusion.toy import Memorizer, gaussian_memorizer

TOY = gaussian_memorizer(count=24, dim=12, leak=1e-3)
FLOW = Memorizer(TOY.points, TOY.leak, FlowSchedule(shift=3.0))
ANCHORS = Anchors(TOY.points[:8], torch.arange(8))


def judge(latents, prompt):
    return TOY.nearest(latents) == prompt


def make_pairs(captions=8, seeds=6, first=0):
    prompt = torch.arange(captions).repeat_interleave(seeds)
    seed = torch.arange(first, first + seeds).repeat(captions)
    return Pairs(prompt, seed, draw_noise(seed.tolist(), (12,)))


def make_probe(solver="ddim", steps=25, chunk=512, scale=7.5, toy=TOY):
    return GuidedModel(toy, toy.schedule, toy.schedule.grid(steps), scale, chunk, solver)


def swept(probe, pairs):
    """Outcome of every candidate, none shared, none stopped: [T, N]."""
    stem = run_trunk(probe, pairs)
    rows = torch.arange(len(pairs))
    outcomes = []
    for index in range(len(probe.timesteps)):
        at = torch.full_like(rows, index)
        outcomes.append(judge(run_branch(probe, stem.at(rows, at), pairs.prompt, at), pairs.prompt))
    return torch.stack(outcomes)


def searched(probe, pairs, kind=ExitSearch, resolution=1, **options):
    """The exits, and the evaluations that they took."""
    before = probe.count.total
    return kind(probe, pairs, judge, **options).exits(resolution=resolution), probe.count.total - before


@pytest.mark.parametrize(
    ("solver", "toy"),
    [
        ("ddim", TOY),
        pytest.param("euler", TOY, marks=pytest.mark.long),
        pytest.param("dpm++2m", TOY, marks=pytest.mark.long),
        pytest.param("heun", TOY, marks=pytest.mark.long),
        ("euler", FLOW),
    ],
)
def test_early_decisions_change_no_exit_and_save_most_of_the_work(solver, toy):
    probe, pairs = make_probe(solver, steps=40, toy=toy), make_pairs(seeds=3)
    outcomes = swept(probe, pairs)
    exits, evals = searched(probe, pairs, anchors=ANCHORS)
    assert agreeing(exits, outcomes, probe) == len(exits)
    whole = 2 * len(probe.path.nodes) * len(pairs)  # plain CFG from the start, which is run to the end in any case
    _, without = searched(probe, pairs)
    assert evals - whole < (without - whole) / 2


class Biased(ExitSearch):
    def guess(self):
        return super().guess() + 8


def test_guesses_that_all_err_to_one_side_cost_little():
    probe, pairs = make_probe(steps=40), make_pairs(captions=4, seeds=12)
    expected, fair = searched(probe, pairs, anchors=ANCHORS)
    exits, biased = searched(probe, pairs, kind=Biased, anchors=ANCHORS)
    assert exits == expected
    whole = 2 * len(probe.path.nodes) * len(pairs)
    assert biased - whole < 1.4 * (fair - whole)


def test_a_sampler_whose_outcomes_are_not_ordered_is_caught_by_checks():
    probe, pairs = make_probe("pndm"), make_pairs(captions=4, seeds=4)  # a switch disturbs the history PNDM builds on
    outcomes = swept(probe, pairs)
    plain = ExitSearch(probe, pairs, judge).exits()
    checked = ExitSearch(probe, pairs, judge).exits(order_checks=12)
    assert agreeing(plain, outcomes, probe) < agreeing(checked, outcomes, probe)
    for pair_exit, column in zip(checked, outcomes.T, strict=True):
        if not pair_exit.monotone:
            assert pair_exit.reproduces == tuple(probe.timesteps[column].double().tolist())


def agreeing(exits, outcomes, probe):
    return sum(
        _is_exit(pair_exit, column, probe.timesteps) for pair_exit, column in zip(exits, outcomes.T, strict=True)
    )


def _is_exit(pair_exit, column, timesteps):
    hits = column.nonzero().squeeze(1)
    expected = float(timesteps[hits[-1]]) if len(hits) else None
    return pair_exit.timestep == expected


def test_the_judge_sees_only_what_latents_do_not_decide():
    asked = []

    def counting(latents, prompt):
        asked.append(len(latents))
        return judge(latents, prompt)

    probe, pairs = make_probe(), make_pairs()
    plain = ExitSearch(probe, pairs, counting).exits()
    without = sum(asked)
    asked.clear()
    early = ExitSearch(probe, pairs, counting, anchors=ANCHORS).exits()
    assert early == plain
    assert sum(asked) <= 2 * len(pairs) + 0.2 * (without - 2 * len(pairs)), "two sets of ends are looked at in any case"


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_and_order_change_no_exit(chunk):
    pairs = make_pairs(captions=4, seeds=3)
    expected = ExitSearch(make_probe(), pairs, judge, anchors=ANCHORS).exits()
    assert ExitSearch(make_probe(chunk=chunk), pairs, judge, anchors=ANCHORS).exits() == expected
    mixed = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    shuffled = ExitSearch(make_probe(), pairs[mixed], judge, anchors=ANCHORS).exits()
    assert shuffled == [expected[k] for k in mixed.tolist()]


def test_a_coarser_search_brackets_the_exact_exit():
    pairs = make_pairs(captions=4)
    exact, cost = searched(make_probe(), pairs)
    coarse, cheaper = searched(make_probe(), pairs, resolution=4)
    assert cheaper < cost
    for a, b in zip(exact, coarse, strict=True):
        assert (a.timestep is None) == (b.timestep is None)
        assert a.timestep is None or b.lower <= a.lower <= a.timestep <= b.timestep


class Bumpy:
    """A judge of a model whose outcomes are not ordered: every caption 0 sample that was guided late is a copy."""

    def __init__(self, probe, pairs, hits):
        stem, rows = run_trunk(probe, pairs), torch.arange(len(pairs))
        ends = [
            run_branch(probe, stem.at(rows, at := torch.full_like(rows, i)), pairs.prompt, at)
            for i in range(len(probe.timesteps))
        ]
        self.ends, self.hits = torch.stack(ends), hits

    def __call__(self, latents, prompt):
        index = torch.tensor([(self.ends - x).flatten(2).norm(dim=2).min(1).values.argmin() for x in latents])
        return torch.tensor([int(i) in self.hits for i in index])


def test_outcomes_that_are_not_ordered_are_found_swept_and_reported():
    probe, pairs = make_probe(steps=8), make_pairs(captions=1, seeds=6)
    bumpy = Bumpy(probe, pairs, hits={0, 1, 5})
    exits = ExitSearch(probe, pairs, bumpy).exits(order_checks=12)
    odd = [pair_exit for pair_exit in exits if not pair_exit.monotone]
    assert odd, "12 checks of 8 positions must meet position 5"
    for pair_exit in odd:
        assert pair_exit.reproduces == tuple(float(probe.timesteps[i]) for i in (0, 1, 5))
        assert pair_exit.timestep == float(probe.timesteps[5]), "the exit is the smallest timestep that reproduces"
        assert pair_exit.reproduced_from(float(probe.timesteps[1]))
        assert not pair_exit.reproduced_from(float(probe.timesteps[3]))
    methods = {estimate.method for _, estimate in risk_curve(exits, probe.timesteps)}
    assert any("Bonferroni" in method for method in methods)


def test_a_seed_that_needs_no_guidance_never_leaves():
    probe = make_probe()
    wide = make_pairs(captions=1, seeds=60, first=100)
    own = judge(run_trunk(probe, wide).states[-1], wide.prompt).nonzero().squeeze(1)
    assert len(own), "one seed in 24 falls to point 0 by itself"
    exits = ExitSearch(probe, wide[own], judge).exits()
    assert {pair_exit.censored for pair_exit in exits} == {"always"}
    assert all(pair_exit.timestep == float(probe.timesteps[-1]) for pair_exit in exits)


def test_limits_keep_clear_of_the_other_kind():
    ends = torch.tensor([0.1, 0.2, 0.3, 0.6, 1.0, 1.1, 1.2])
    outcome = torch.tensor([True, True, True, True, False, False, False])
    trail = torch.stack([torch.full((7,), 0.05), ends, ends])  # at the first evaluation all look near
    limits = learn(trail, outcome, unguided=torch.tensor([1.3]))
    assert limits.near == pytest.approx(0.25), "a quarter of the nearest other; the median of its own kind is 0.2"
    assert limits.far >= 1.25 * 0.6
    assert limits.yes_from == 1, "a distance that has deceived decides nothing"
    few = learn(trail, torch.zeros(7, dtype=torch.bool), torch.tensor([]))
    assert (few.near, few.far) == (0.0, float("inf"))


def test_distances_of_copies_and_others_that_overlap_decide_nothing():
    trail = torch.tensor([[0.1, 0.2, 0.9, 0.8, 1.1, 1.2]])
    limits = learn(trail, torch.tensor([True, True, True, False, False, False]), torch.tensor([1.3]))
    assert (limits.near, limits.far) == (0.0, float("inf"))
    assert limits.middle == pytest.approx((0.2 + 1.0) / 2), "a guess need not be certain"


def test_a_branch_that_still_approaches_is_not_given_up():
    limits = Limits(near=0.2, far=0.8, yes_from=0, no_from=0, middle=0.5)
    anchors = Anchors(torch.zeros(1, 1) + 1e-9, torch.tensor([0]))
    spread = float(anchors._spread)
    decider, row = ExitDecider(limits, anchors, torch.tensor([0])), torch.tensor([0])
    for index, distance in enumerate((2.0, 1.9, 1.8, 1.7)):
        stopped = decider(row, torch.tensor([index]), torch.tensor([[distance * spread]]))
        assert not bool(stopped)
    assert decider.outcome.tolist() == [-1]


def test_guided_keeps_the_trail_of_every_evaluation():
    probe, pairs = make_probe(steps=6), make_pairs(captions=2, seeds=2)
    run = run_plain(probe, pairs, ANCHORS)
    assert run.trail.shape == (6, 4)
    assert probe.count.total == 2 * 6 * 4
    assert run_plain(probe, pairs).trail is None


def test_no_pairs_are_refused():
    with pytest.raises(ValueError, match=r"0 \(caption, seed\) pairs"):
        Pairs(torch.tensor([]), torch.tensor([]), torch.zeros(0, 3))
