"""What is worth a proof, in which order, and which of the proven ships."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from basinguard.calibration.candidate import PairScores, Product, ProductCandidate, hopeless
from basinguard.calibration.choice import best, finalists
from basinguard.calibration.danger import dangers
from basinguard.calibration.design import Design
from basinguard.calibration.ladders import Ladder, chains, contenders, ladder
from basinguard.calibration.rules import plain_cfg, rule
from basinguard.calibration.terms import CalibrationTerms, Setting
from basinguard.diffusion.toy import stable_diffusion_schedule
from basinguard.similarity.prompt_draws import estimate_of
from basinguard.similarity.taught import Taught

NOISE = stable_diffusion_schedule()
TERMS = CalibrationTerms(alpha=0.1, before=())
PROOF = Design(216, 9)
NOTHING = [False] * 16


def taught(value, spread=0.02, seed=0):
    """A result whose draws of the bootstrap scatter alike for all, so that differences are exact."""
    drawn = np.concatenate([[0.0], np.random.default_rng(seed).normal(0, spread, 500)]) + value
    return Taught(estimate_of(drawn, 16), {}, {}, 0.0, replicas=drawn, units=("a", "b"), n=16)


def candidate(strength=1.0, copies=0, taught_value=0.5, nearest=0.5, guidance=None, pairs=16, **rest):
    hits = [True] * copies + [False] * (pairs - copies)
    product = Product(guidance or plain_cfg(3.0, NOISE), strength)
    defaults = {
        "evals_per_sample": 32.0,
        "phase": "search",
        "taught": None if taught_value is None else taught(taught_value),
    }
    return ProductCandidate.measured(
        hits, list(range(pairs)), 0.1, product=product, nearest=nearest, **{**defaults, **rest}
    )


def prefix(transition=500.0, before=0.0):
    return rule(Setting(before), transition, NOISE, 3.0)


def test_plain_cfg_is_a_rule_that_is_on_from_the_first_timestep():
    assert plain_cfg(2.0, NOISE).plain
    assert not prefix().plain
    assert str(Product(plain_cfg(2.0, NOISE), 0.6, epoch=3)) == "epoch 4, strength 0.6, plain CFG, scale 2"
    assert str(Product(plain_cfg(2.0, NOISE), 0.0, epoch=3)) == "base model, plain CFG, scale 2"
    assert str(Product(prefix(590.0, -1.0))) == "strength 1, -1 above 590, scale 3"


def test_so_many_copies_are_hopeless_where_they_are_improbable_at_alpha():
    """P(X >= 3 | 16, 0.1) = 0.21, P(X >= 4) = 0.07: scipy.stats.binom.sf(2, 16, 0.1), sf(3, 16, 0.1)."""
    assert [hopeless(candidate(copies=k), 0.1) for k in (0, 3, 4)] == [False, False, True]


def test_the_ladder_goes_from_safe_to_bold_and_leaves_out_what_something_safer_outdoes():
    low, outdone, middle, high, lost = (
        candidate(0.5, taught_value=0.2, nearest=0.1),
        candidate(0.6, taught_value=0.1, nearest=0.2),
        candidate(0.7, taught_value=0.5, nearest=0.3),
        candidate(0.8, taught_value=0.6, copies=2),
        candidate(1.0, taught_value=0.9, copies=9),
    )
    assert ladder([lost, high, middle, outdone, low], TERMS) == [low, middle, high]
    assert ladder([lost, high, middle, outdone, low], replace(TERMS, chain=2)) == [low, high]


def test_what_keeps_nothing_is_not_worth_a_proof_unless_there_is_nothing_else():
    base_like, ugly = candidate(0.5, taught_value=-0.1, nearest=0.1), candidate(1.0, taught_value=-0.4, nearest=0.2)
    good = candidate(0.8, taught_value=0.4, nearest=0.9)
    assert ladder([base_like, ugly, good], TERMS) == [good]
    assert ladder([base_like, ugly], TERMS) == [base_like]
    copying = candidate(1.0, copies=16)
    assert ladder([copying, candidate(0.9, copies=12)], TERMS)[0].product.strength == 0.9, "the least dangerous"


def test_few_samples_cannot_upset_the_order_of_shares():
    """0, 1 and 0 copies of 16: the last two are pooled to 1/32, and how near they come orders them."""
    low, middle, whole = (
        candidate(0.5, taught_value=0.2, nearest=0.5),
        candidate(0.7, taught_value=0.4, nearest=0.6, copies=1),
        candidate(1.0, taught_value=0.5, nearest=0.7),
    )
    order = dangers([whole, low, middle])
    assert order[low.product] == (0, 0.5)
    assert order[middle.product] == (pytest.approx(1 / 32), 0.6)
    assert order[whole.product] == (pytest.approx(1 / 32), 0.7)
    assert ladder([whole, low, middle], TERMS) == [low, middle, whole]


def steps(tried):
    return [list(ladder.steps) for ladder in chains(tried, TERMS, PROOF)]


def test_a_proof_begins_at_the_boldest_that_will_likely_be_proven():
    """216 pairs prove 10 % at 4 % (`FIRST` of delta; half of it for the last round: 12 copies) with a chance of 0.97
    after 0 of 48, 0.62 after 2 and 0.21 after 4: scipy.stats.betabinom.cdf(12, 216, k + 0.5, 48 - k + 0.5)."""
    shares = ((0.5, 0), (0.6, 2), (0.8, 4), (1.0, 6))
    rungs = [candidate(s, taught_value=s, nearest=s, copies=k, pairs=48) for s, k in shares]
    (ladder,) = chains(rungs, TERMS, PROOF)
    assert [c.product for c in rungs] == list(ladder.steps)
    assert ladder.start == 1
    (unlikely,) = chains(rungs[2:], TERMS, PROOF)
    assert unlikely.start == 0


def test_what_may_ship_is_ranked_on_more_samples():
    """Of each kind the three with the most gain and three steps from the safest on, and the best whole fine-tune."""
    shares = [candidate(s / 10, taught_value=s / 10, nearest=s, copies=1 + s // 8) for s in range(3, 9)]
    spotless, copying = candidate(0.2, taught_value=0.1), candidate(1.0, taught_value=0.9, copies=10)
    base, ruled = candidate(0.0, taught_value=0.0), candidate(taught_value=0.3, guidance=prefix())
    whole = candidate(1.0, taught_value=0.2, guidance=plain_cfg(2.0, NOISE), copies=1)
    tried = [base, spotless, *shares, copying, whole, ruled]
    chosen = [spotless, *shares[-3:], whole, ruled]
    assert contenders(tried, TERMS) == [c.product for c in tried if c in chosen]
    assert contenders([base, copying], TERMS) == [copying.product], "something has to be tried"


def test_where_nothing_copied_in_the_search_something_safer_than_the_best_is_ranked_too():
    """Late epochs that copy one in twelve look spotless in 16 samples; the early one must not be lost for it."""
    early, *late = (
        replace(candidate(taught_value=0.3 + epoch / 1000, nearest=epoch / 1000), product=product)
        for epoch in (40, 100, 160, 180, 200)
        for product in [Product(plain_cfg(3.0, NOISE), 1.0, epoch)]
    )
    ranked = contenders([early, *late], TERMS)
    assert early.product in ranked
    assert late[-1].product in ranked


MADE = ((0.6, 0.1, 1.0, 2), (0.4, 0.2, 1.0, 1), (0.5, 0.2, 0.5, 2), (0.5, 0.3, 1.0, 3))


def test_one_unlucky_measurement_does_not_leave_nothing_to_promise():
    """The best seems the safest too, so nothing else is on the ladder; what is milder by its make goes below it."""
    best, earlier, share, later = (
        replace(candidate(taught_value=value, nearest=near), product=Product(plain_cfg(3.0, NOISE), strength, epoch))
        for value, near, strength, epoch in MADE
    )
    assert ladder([best, share, later], TERMS) == [share, best]
    assert ladder([best, earlier, share, later], TERMS) == [earlier, best], "an epoch less is milder than a share less"
    assert ladder([best, later], TERMS) == [best]
    (chain,) = chains([best, earlier, share], TERMS, PROOF)
    assert (chain.steps, chain.start) == ((earlier.product, best.product), 1), "and is tested where the best fails"
    ruled = candidate(0.5, taught_value=0.1, guidance=prefix())
    assert ladder([best, ruled], TERMS) == [best], "a rule is another kind"


def test_plain_cfg_of_the_whole_fine_tune_is_proven_wherever_it_may_be_safe():
    share, whole = candidate(0.6, taught_value=0.5, nearest=0.1), candidate(1.0, taught_value=0.4, nearest=0.4)
    assert steps([share, whole]) == [[share.product, whole.product]], "outdone, and still on the ladder"
    copying = candidate(1.0, copies=10, taught_value=None)
    assert steps([share, copying]) == [[share.product]]


def test_a_rule_is_proven_only_where_it_promises_to_keep_more():
    share = candidate(0.6, taught_value=0.5)
    worse, better = candidate(taught_value=0.3, guidance=prefix()), candidate(taught_value=0.7, guidance=prefix())
    assert steps([share, worse]) == [[share.product]]
    assert steps([share, better]) == [[share.product], [better.product]]
    level = candidate(guidance=prefix(), taught_value=0.52)
    assert steps([share, level]) == [[share.product]], "a rule is one more thing to apply"
    failing = candidate(0.8, taught_value=0.75, copies=3)
    assert [better.product] in steps([share, failing, better]), "plain CFG that copies 19 % will hardly be proven"
    copying = candidate(1.0, copies=12, taught_value=None)
    assert steps([copying, worse]) == [[worse.product]], "no samples are spent on what cannot be proven"


def proven(strength=1.0, taught_value=0.5, **rest):
    return replace(candidate(strength, taught_value=taught_value, pairs=40, phase="proof", **rest), proven=True)


def test_the_most_taught_of_the_proven_ships_whatever_it_costs():
    much, little = proven(0.6, taught_value=0.6), proven(taught_value=0.3, evals_per_sample=20.0)
    assert best([little, much]) is much
    assert best([little, replace(much, proven=False)]) is little
    assert best([]) is None


def test_what_cannot_be_told_apart_goes_to_the_better_aligned_and_then_to_the_cheaper():
    def near(taught_value, **rest):
        return proven(
            taught_value=taught_value, **rest, taught=taught(taught_value, spread=0.1, seed=round(1000 * taught_value))
        )

    high, cheap = near(0.60, guidance=prefix(600.0)), near(0.58, evals_per_sample=20.0, guidance=prefix())
    assert best([high, cheap]) is cheap, "nobody sees 0.02"
    assert best([high, near(0.56, evals_per_sample=20.0, guidance=prefix())]) is high
    scores = PairScores(torch.linspace(0.0, 1.0, 40), torch.arange(40))
    aligned = replace(high, pair_alignment=scores, alignment=scores.estimate())
    below = PairScores(scores.values - 0.2, scores.prompt)
    assert best([aligned, replace(cheap, pair_alignment=below, alignment=below.estimate())]) is aligned


def test_level_products_ship_plain_before_a_rule_and_whole_before_a_share():
    share, whole, ruled = proven(0.6), proven(1.0), proven(1.0, guidance=prefix())
    assert best([share, ruled, whole]) is whole
    assert best([share, replace(ruled, evals_per_sample=20.0)]) is share, "no rule is needed"


def test_where_risk_or_cost_counts_it_decides_between_what_cannot_be_told_apart():
    def near(taught_value, **rest):
        return proven(taught=taught(taught_value, spread=0.1, seed=round(1000 * taught_value)), **rest)

    high, calm = near(0.6, copies=3), near(0.5, copies=1, strength=0.8)
    cheap, poor = near(0.55, copies=2, guidance=prefix(), evals_per_sample=20.0), near(0.05, strength=0.5)
    everything = [high, calm, cheap, poor]
    assert best(everything) is high
    assert best(everything, counts="risk") is calm, "what keeps surely less is no bargain: it copies nothing"
    assert best(everything, counts="cost") is cheap
    blind = [replace(c, taught=None) for c in (high, calm, cheap)]
    assert [best(blind, counts=counts) for counts in ("risk", "cost")] == blind[1:]
    with pytest.raises(ValueError, match=r"counts='price'.*taught, risk, cost"):
        CalibrationTerms(counts="price")


def test_where_cost_counts_rules_are_proven_too_and_where_risk_counts_proofs_begin_with_the_safest():
    whole, cheaper = candidate(1.0, taught_value=0.6), candidate(1.0, taught_value=0.5, guidance=prefix())
    mild = candidate(0.6, taught_value=0.4, nearest=0.3)

    def ladders(counts):
        terms = CalibrationTerms(alpha=0.1, counts=counts)
        return chains([mild, whole, cheaper], terms, PROOF)

    steps = (mild.product, whole.product)
    assert ladders("taught") == [Ladder(steps, start=1)]
    assert ladders("risk") == [Ladder(steps, start=0)]
    assert ladders("cost") == [Ladder(steps, start=1), Ladder((cheaper.product,))]


def test_what_training_captions_cannot_decide_held_out_prompts_do():
    """Draws of different seeds: differences of 0.1 with a spread of 0.14 are no evidence, of 0.6 they are."""

    def wide(value, seed, **rest):
        return proven(taught=taught(value, spread=0.1, seed=seed), **rest)

    plain, ruled, poor = wide(0.5, 1), wide(0.4, 2, guidance=prefix()), wide(-0.1, 3, strength=0.6)
    assert finalists([poor, ruled, replace(plain, proven=False), plain]) == [plain, ruled]
    assert finalists([poor]) == [poor]
    heldout = {plain.product: taught(0.5), ruled.product: taught(0.6)}
    assert best([poor, plain, ruled], heldout) is ruled
    unclear = {plain.product: taught(0.5, spread=0.1, seed=1), ruled.product: taught(0.6, spread=0.1, seed=2)}
    assert best([poor, plain, ruled], unclear) is plain, "a rule has to keep clearly more"
    assert best([poor, plain, ruled]) is plain
    assert best([poor, plain], {}) is plain


def test_without_any_measure_of_what_is_kept_the_boldest_ships():
    late, early = (proven(taught_value=None, guidance=prefix(t)) for t in (300.0, 600.0))
    assert best([late, early]) is early
    assert best([late, early, proven(taught_value=None)]).product.guidance.plain


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"strengths": (0.0, 1.0)}, "shares in"), ({"strengths": ()}, "nothing to test"), ({"chain": 0}, "at least 1")],
)
def test_terms_that_leave_nothing_to_test_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        CalibrationTerms(**wrong)
