"""Every mitigation: starts from the same noise, counts what it evaluates, and leaves the model as it found it."""

import copy
from functools import partial

import pytest
import torch

from basinguard.calibration.candidate import Product, ProductCandidate
from basinguard.calibration.rules import plain_cfg
from basinguard.calibration.terms import CalibrationTerms
from basinguard.core.stats import rate
from basinguard.mitigations import initial_noise as han
from basinguard.mitigations import ours
from basinguard.mitigations.base import sample_mitigated
from basinguard.mitigations.checkpoints import TestedWeights
from basinguard.mitigations.less_finetuning import EARLIER, INTERPOLATE
from basinguard.mitigations.ours import BASE_LED, OURS, STRENGTH, Chosen, calibrated_plain
from basinguard.mitigations.registry import MITIGATIONS, by_name
from basinguard.mitigations.stock_pipeline import sample_pipeline
from basinguard.mitigations.testbed import Batch
from basinguard.mitigations.update_edits import FILTERED, SCHEDULED, TRANSITION
from basinguard.pipelines.loading import load_pipeline
from basinguard.pipelines.lora import UNET_TARGETS, add_lora
from support.testbeds import STEPS, build_testbed

RUNNABLE = [mitigation for mitigation in MITIGATIONS.values() if mitigation not in (EARLIER, OURS, STRENGTH)]


def fingerprint(testbed):
    unet = testbed.pipe.unet
    return (
        {name: value.clone() for name, value in unet.state_dict().items()},
        dict(unet.attn_processors),
        len(unet._forward_hooks) + len(unet._forward_pre_hooks),
        "forward" in vars(unet),
        "progress_bar" in vars(testbed.pipe),
    )


@pytest.fixture(autouse=True)
def short_searches(monkeypatch):
    """Han et al. search noise in up to 20 gradient steps; here it matters that they are taken, not how far they get."""
    monkeypatch.setattr(han, "ITERATIONS", 4)


QUIET = ("plain", "amg", "dtp-released")  # nothing need fire on random weights; their own tests make it fire


@pytest.fixture(scope="module")
def plain(testbed):
    return sample_mitigated(testbed, MITIGATIONS["plain"], 1.0, Batch(("a ball", "a star"), (1, 2)))[0]


DRAWN = {}  # by mitigation, of the batch: what one test drew the next need not draw again


@pytest.mark.parametrize("mitigation", RUNNABLE, ids=lambda m: m.name)
def test_does_something_repeats_itself_and_leaves_the_model_as_it_was(mitigation, testbed, batch, plain):
    before = fingerprint(testbed)
    first, rows = sample_mitigated(testbed, mitigation, mitigation.intensities[-1], batch)
    again, same_rows = sample_mitigated(testbed, mitigation, mitigation.intensities[-1], batch)
    after = fingerprint(testbed)
    DRAWN[mitigation.name] = first
    assert torch.equal(first, again)
    assert rows == same_rows > 0
    assert mitigation.name in QUIET or not torch.allclose(first, plain, atol=1e-3)
    assert all(torch.equal(before[0][name], value) for name, value in after[0].items())
    assert before[1:] == after[1:]


@pytest.mark.parametrize("mitigation", RUNNABLE, ids=lambda m: m.name)
def test_a_sample_does_not_depend_on_its_neighbours(mitigation, testbed, batch):
    together = DRAWN.get(mitigation.name)
    if together is None:
        together, _ = sample_mitigated(testbed, mitigation, mitigation.intensities[-1], batch)
    alone = torch.cat(
        [sample_mitigated(testbed, mitigation, mitigation.intensities[-1], batch[i : i + 1])[0] for i in range(2)]
    )
    assert torch.allclose(together, alone, atol=2e-3)


@pytest.mark.parametrize(
    ("name", "intensity"),
    [
        ("lower-cfg", 1.0),
        ("stp", 999.0),
        ("og-stp", 999.0),
        ("ours-base-led", 999.0),
        ("interpolate", 1.0),
        ("ours-schedule", 1.0),
        ("embedding-noise", 0.0),
        ("random-tokens", 0.0),
        ("wen", 2.0),
        ("han-sample", 2.0),
    ],
)
def test_at_no_intensity_it_is_plain_cfg(name, intensity, testbed, batch):
    plain, _ = sample_mitigated(testbed, MITIGATIONS["plain"], 1.0, batch)
    drawn, _ = sample_mitigated(testbed, MITIGATIONS[name], intensity, batch)
    assert torch.allclose(plain, drawn, atol=1e-4)


def test_costs_are_counted_on_the_network(testbed, batch):
    rows = {
        name: sample_mitigated(testbed, MITIGATIONS[name], MITIGATIONS[name].default, batch)[1] / len(batch)
        for name in ROWS
    }
    assert rows == ROWS


ROWS = {
    "plain": 2 * STEPS,
    "lower-cfg": 2 * STEPS,
    "ren": 2 * STEPS,
    "guard-icml": 3 * STEPS,
    "ours-base-led": 2 * STEPS,
    "ours-filter": 2 * STEPS,
    "ours-schedule": 2 * STEPS,
    "stp": 1 + 2 * 3,  # one of the four timesteps, 751, lies above 650
    "han-batch": 2 * 2 * 2 + 2 * STEPS,  # and none above 880
    "og-dtp": 2 * STEPS,
}


def test_base_led_by_the_base_alone_is_the_base(testbed, batch):
    led, _ = sample_mitigated(testbed, BASE_LED, 0.0, batch)
    floor, _ = sample_mitigated(testbed, INTERPOLATE, 0.0, batch)
    assert torch.equal(floor, sample_pipeline(testbed, batch, pipe=testbed.base))
    last = testbed.model.schedule.grid(STEPS)[-1]
    assert float(last) > 0
    assert torch.allclose(led, floor, atol=1e-5)


def test_nothing_of_the_update_above_a_timestep_is_base_led(testbed, batch):
    drawn, _ = sample_mitigated(testbed, SCHEDULED, 0.0, batch)
    led, _ = sample_mitigated(testbed, BASE_LED, TRANSITION, batch)
    assert torch.allclose(drawn, led, atol=1e-4)
    assert not torch.allclose(drawn, sample_mitigated(testbed, SCHEDULED, 0.6, batch)[0], atol=1e-3)


def test_a_part_of_the_update_is_a_unet_with_the_base_s_layers(testbed, batch):
    pipe = copy.copy(testbed.pipe)
    pipe.unet = copy.deepcopy(testbed.pipe.unet)
    theirs = {name: w for name, w in testbed.base.unet.state_dict().items() if ".attn2." in name}
    assert theirs
    pipe.unet.load_state_dict(theirs, strict=False)
    drawn, _ = sample_mitigated(testbed, FILTERED, 0.0, batch)
    assert torch.equal(drawn, sample_pipeline(testbed, batch, pipe=pipe))
    assert FILTERED.note(testbed, 0.0).startswith("no-cross-attention, which leaves 0.")


def test_the_proven_share_is_plain_cfg_on_so_much_of_the_fine_tune(own_testbed, batch):
    plain = plain_cfg(own_testbed.scale, own_testbed.model.schedule)
    own_testbed.cache["ours, plain, 0.1"] = Chosen(proven_product(Product(plain, 0.5)), proven=True)
    proven, rows = sample_mitigated(own_testbed, STRENGTH, 0.1, batch)
    assert torch.equal(proven, sample_mitigated(own_testbed, INTERPOLATE, 0.5, batch)[0])
    assert rows == 2 * STEPS * len(batch)
    note = STRENGTH.note(own_testbed, 0.1)
    assert note.startswith("strength 0.5, plain CFG, scale ")
    assert note.endswith("; risk at most 10% proven on 96 other pairs")


def test_a_proven_checkpoint_is_sampled_at_its_share(tiny_pipeline_dir, tiny_epsilon_dir, batch):
    testbed = build_testbed(tiny_pipeline_dir, checkpoints=(tiny_pipeline_dir, tiny_epsilon_dir))
    expected = build_testbed(tiny_epsilon_dir, base=False)
    expected.base = testbed.base
    plain = plain_cfg(testbed.scale, testbed.model.schedule)
    for strength in (1.0, 0.5):
        testbed.cache["ours, plain, 0.1"] = Chosen(proven_product(Product(plain, strength, epoch=0)), proven=True)
        proven, rows = sample_mitigated(testbed, STRENGTH, 0.1, batch)
        assert torch.equal(proven, sample_mitigated(expected, INTERPOLATE, strength, batch)[0])
        assert rows == 2 * STEPS * len(batch)
        assert STRENGTH.note(testbed, 0.1).startswith(f"epsilon, strength {strength:g}, plain CFG, scale ")


def test_every_checkpoint_is_a_candidate(tiny_pipeline_dir, tiny_epsilon_dir):
    testbed = build_testbed(tiny_pipeline_dir, checkpoints=(tiny_pipeline_dir, tiny_epsilon_dir))
    weights = TestedWeights(testbed)
    assert weights.epochs == (0, 1, None)
    for epoch, strength, expected in ((0, 1.0, tiny_epsilon_dir), (1, 0.0, None), (None, 1.0, tiny_pipeline_dir)):
        unet = testbed.base.unet if expected is None else load_pipeline(expected).unet
        with weights.at(epoch, strength) as opened:
            held = opened.model.pipe.unet.state_dict()
            assert all(torch.equal(held[name], value) for name, value in unet.state_dict().items())
    assert TestedWeights(build_testbed(tiny_pipeline_dir, base=False)).epochs == (None,)


def proven_product(product):
    risk = rate([0] * 96, list(range(96)))
    return ProductCandidate(product=product, risk=risk, p_value=0.0, phase="proof", evals_per_sample=1.0, nearest=0.0)


def test_calibrating_leaves_the_model_as_it_was(own_testbed, batch, monkeypatch):
    monkeypatch.setattr(ours, "PAIRS", 9)  # none of 9 proves 0.3, which is the largest alpha
    few = {"strengths": (0.5, 1.0), "scales": (3.0,), "search_pairs": 4, "taught_samples": 4}
    monkeypatch.setattr(ours, "CalibrationTerms", partial(CalibrationTerms, **few))
    before = fingerprint(own_testbed)[0]
    chosen = calibrated_plain(own_testbed, 0.3)
    assert chosen.candidate.product.guidance.plain
    assert chosen.candidate.risk.value == 0
    sample_mitigated(own_testbed, STRENGTH, 0.3, batch)
    assert all(torch.equal(before[name], value) for name, value in fingerprint(own_testbed)[0].items())


def test_with_a_lora_the_base_is_the_same_network(tiny_pipeline_dir, batch):
    testbed = build_testbed(tiny_pipeline_dir, base=False)
    plain = sample_pipeline(testbed, batch)
    testbed.pipe.unet.requires_grad_(False)
    torch.manual_seed(0)
    add_lora(testbed.pipe.unet, rank=2, alpha=2, dropout=0.0, targets=UNET_TARGETS)
    with torch.no_grad():
        for name, parameter in testbed.pipe.unet.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    tuned = sample_pipeline(testbed, batch)
    assert not torch.allclose(tuned, plain, atol=1e-3)
    assert testbed.unets == [testbed.pipe.unet]
    for mitigation in (INTERPOLATE, BASE_LED):
        drawn, rows = sample_mitigated(testbed, mitigation, 0.0, batch)
        assert torch.allclose(drawn, plain, atol=1e-5)
        assert rows == 2 * STEPS * len(batch)
    led, _ = sample_mitigated(testbed, BASE_LED, TRANSITION, batch)
    for mitigation, intensity, expected, note in (
        (SCHEDULED, 0.0, led, ""),
        (FILTERED, 3.0, plain, "residual-blocks, which leaves 0.00 of the change, by norm"),
        (FILTERED, 2.0, tuned, "rank-16, which leaves 1.00 of the change, by norm"),
    ):
        drawn, rows = sample_mitigated(testbed, mitigation, intensity, batch)
        assert torch.allclose(drawn, expected, atol=1e-3)
        assert rows == 2 * STEPS * len(batch)
        assert mitigation.note(testbed, intensity) == note
    assert torch.equal(sample_pipeline(testbed, batch), tuned)


def test_an_earlier_checkpoint_is_sampled_as_it_stands(tiny_pipeline_dir, tiny_epsilon_dir, batch):
    testbed = build_testbed(tiny_pipeline_dir, base=False, checkpoints=(tiny_epsilon_dir,))
    drawn, rows = sample_mitigated(testbed, EARLIER, 0.0, batch)
    other = build_testbed(tiny_epsilon_dir, base=False)
    assert torch.equal(drawn, sample_pipeline(other, batch))
    assert rows == 2 * STEPS * len(batch)
    assert EARLIER.note(testbed, 0.0) == "epsilon"


def test_what_does_not_apply_says_why(tiny_pipeline_dir, batch):
    testbed = build_testbed(tiny_pipeline_dir, base=False)
    reasons = {
        name: MITIGATIONS[name].missing_requirement(testbed)
        for name in ("interpolate", "ours-base-led", "early-stopped", "ren")
    }
    assert "base model" in reasons["interpolate"]
    assert "base model" in reasons["ours-base-led"]
    assert "checkpoints" in reasons["early-stopped"]
    assert reasons["ren"] == ""
    with pytest.raises(ValueError, match="interpolate cannot run here: needs the base model"):
        sample_mitigated(testbed, INTERPOLATE, 0.5, batch)


def test_a_distilled_model_leaves_no_method(own_testbed):
    own_testbed.pipe.unet.register_to_config(time_cond_proj_dim=8)
    assert all(
        "guidance-distilled" in mitigation.missing_requirement(own_testbed) for mitigation in MITIGATIONS.values()
    )


def test_without_cross_attention_attention_methods_say_so(own_testbed):
    own_testbed.pipe.unet = copy.copy(own_testbed.pipe.unet)
    own_testbed.pipe.unet.__class__ = type("Blind", (type(own_testbed.pipe.unet),), {"attn_processors": {}})
    for name in ("ren", "guard-icml"):
        assert MITIGATIONS[name].missing_requirement(own_testbed) == "the model has no cross-attention to change"


def test_every_method_names_its_source_and_five_intensities():
    for mitigation in MITIGATIONS.values():
        assert mitigation.source
        assert mitigation.intensity
        assert mitigation.default in mitigation.intensities
        assert len(mitigation.intensities) == {"plain": 1, "schedules": 6}.get(mitigation.name, 5)


def test_unknown_methods_are_refused_with_the_list():
    with pytest.raises(ValueError, match=r"\['magic'\] not known; known: all, plain, lower-cfg"):
        by_name(["stp", "magic"])
    assert [m.name for m in by_name(["all"])] == list(MITIGATIONS)


def test_not_finite_latents_are_an_error_that_names_the_method(own_testbed):
    with torch.no_grad():
        next(own_testbed.pipe.unet.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="plain at intensity 1"):
        sample_mitigated(own_testbed, MITIGATIONS["plain"], 1.0, Batch(("a ball",), (0,)))
