"""Which knob keeps most, on what was searched."""

from dataclasses import replace

from basinguard.calibration.candidate import Product, ProductCandidate
from basinguard.calibration.knobs import EPOCH, RULE, SCALE, SHARE, best_of_each, knob, knobs_text
from basinguard.calibration.rules import plain_cfg, rule
from basinguard.calibration.terms import Setting
from basinguard.diffusion.toy import stable_diffusion_schedule
from basinguard.similarity.prompt_draws import estimate_of
from basinguard.similarity.taught import Taught

NOISE = stable_diffusion_schedule()
PLAIN, LOWER, PREFIX = plain_cfg(3.0, NOISE), plain_cfg(1.5, NOISE), rule(Setting(0.0), 500.0, NOISE, 3.0)


def searched(guidance, strength, taught_value, copies=0):
    taught = Taught(estimate_of([taught_value] * 9, 16), {}, {}, 0.0)
    return ProductCandidate.measured(
        [True] * copies + [False] * (16 - copies), list(range(16)), 0.1, product=Product(guidance, strength, 3),
        phase="search", evals_per_sample=32.0, nearest=0.5, taught=taught,
    )  # fmt: skip


def test_each_product_turns_one_knob():
    products = [Product(PLAIN), Product(PLAIN, 0.6), Product(LOWER), Product(LOWER, 0.6), Product(PREFIX)]
    assert [knob(product, 3.0) for product in products] == [EPOCH, SHARE, SCALE, SHARE, RULE]


def test_the_best_of_each_copies_little_and_the_base_is_none():
    tried = [
        searched(PLAIN, 0.0, 0.0),
        searched(PLAIN, 1.0, 0.9, copies=2),
        searched(PLAIN, 0.6, 0.5, copies=1),
        searched(PLAIN, 0.8, 0.4),
        searched(PREFIX, 1.0, 0.6),
        replace(searched(LOWER, 1.0, 0.7), phase="proof"),
    ]
    best = best_of_each(tried, 0.1, 3.0)
    assert {name: c.gain for name, c in best.items()} == {RULE: 0.6, SHARE: 0.5}
    assert knobs_text(tried, 0.1, 3.0) == (
        "most taught at a searched risk of at most 10%: a rule in guidance 0.60 (epoch 4, strength 1, 0 above 500, "
        "scale 3); a share of the fine-tune 0.50 (epoch 4, strength 0.6, plain CFG, scale 3)"
    )
    assert knobs_text(tried[:2], 0.1, 3.0) == ""
