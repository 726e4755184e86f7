"""Every method: starts from the same noise, counts what it evaluates, and leaves the model as it found it."""

import copy

import pytest
import torch

from basinguard.calibration.candidate import StrengthCandidate
from basinguard.core.stats import rate
from basinguard.mitigations import initial_noise as han
from basinguard.mitigations import ours
from basinguard.mitigations.base import Batch, networks, sample
from basinguard.mitigations.less_finetuning import EARLIER, INTERPOLATE
from basinguard.mitigations.ours import BASE_LED, OURS, STRENGTH, tried_strengths
from basinguard.mitigations.registry import METHODS, named
from basinguard.mitigations.stock_pipeline import run
from basinguard.pipelines.lora import UNET_TARGETS, add_lora
from support.benches import STEPS, build_bench

RUNNABLE = [method for method in METHODS.values() if method not in (EARLIER, OURS, STRENGTH)]


def fingerprint(bench):
    unet = bench.pipe.unet
    return (
        {name: value.clone() for name, value in unet.state_dict().items()},
        dict(unet.attn_processors),
        len(unet._forward_hooks) + len(unet._forward_pre_hooks),
        "forward" in vars(unet),
        "progress_bar" in vars(bench.pipe),
    )


@pytest.fixture(autouse=True)
def short_searches(monkeypatch):
    """Han et al. search noise in up to 20 gradient steps; here it matters that they are taken, not how far they get."""
    monkeypatch.setattr(han, "ITERATIONS", 4)


QUIET = ("none", "amg", "dtp-released")  # nothing need fire on random weights; their own tests make it fire


@pytest.fixture(scope="module")
def plain(bench):
    return sample(bench, METHODS["none"], 1.0, Batch(("a ball", "a star"), (1, 2)))[0]


@pytest.mark.parametrize("method", RUNNABLE, ids=lambda m: m.name)
def test_does_something_repeats_itself_and_leaves_the_model_as_it_was(method, bench, batch, plain):
    before = fingerprint(bench)
    first, rows = sample(bench, method, method.strengths[-1], batch)
    again, same_rows = sample(bench, method, method.strengths[-1], batch)
    after = fingerprint(bench)
    assert torch.equal(first, again)
    assert rows == same_rows > 0
    assert method.name in QUIET or not torch.allclose(first, plain, atol=1e-3)
    assert all(torch.equal(before[0][name], value) for name, value in after[0].items())
    assert before[1:] == after[1:]


@pytest.mark.parametrize("method", RUNNABLE, ids=lambda m: m.name)
def test_a_sample_does_not_depend_on_its_neighbours(method, bench, batch):
    together, _ = sample(bench, method, method.strengths[-1], batch)
    alone = torch.cat([sample(bench, method, method.strengths[-1], batch[i : i + 1])[0] for i in range(2)])
    assert torch.allclose(together, alone, atol=2e-3)


@pytest.mark.parametrize(
    ("name", "strength"),
    [
        ("lower-cfg", 1.0),
        ("stp", 999.0),
        ("og-stp", 999.0),
        ("ours-base-led", 999.0),
        ("interpolate", 1.0),
        ("embedding-noise", 0.0),
        ("random-tokens", 0.0),
        ("wen", 2.0),
        ("han-sample", 2.0),
    ],
)
def test_at_no_strength_it_is_ordinary_cfg(name, strength, bench, batch):
    plain, _ = sample(bench, METHODS["none"], 1.0, batch)
    drawn, _ = sample(bench, METHODS[name], strength, batch)
    assert torch.allclose(plain, drawn, atol=1e-4)


def test_costs_are_counted_on_the_network(bench, batch):
    rows = {name: sample(bench, METHODS[name], METHODS[name].default, batch)[1] / len(batch) for name in ROWS}
    assert rows == ROWS


ROWS = {
    "none": 2 * STEPS,
    "lower-cfg": 2 * STEPS,
    "ren": 2 * STEPS,
    "guard-icml": 3 * STEPS,
    "ours-base-led": 2 * STEPS,
    "stp": 1 + 2 * 3,  # one of the four timesteps, 751, lies above 650
    "han-batch": 2 * 2 * 2 + 2 * STEPS,  # and none above 880
    "og-dtp": 2 * STEPS,
}


def test_base_led_by_the_base_alone_is_the_base(bench, batch):
    led, _ = sample(bench, BASE_LED, 0.0, batch)
    floor, _ = sample(bench, INTERPOLATE, 0.0, batch)
    assert torch.equal(floor, run(bench, batch, pipe=bench.base))
    last = bench.model.schedule.grid(STEPS)[-1]
    assert float(last) > 0
    assert torch.allclose(led, floor, atol=1e-5)


def test_the_proven_strength_is_ordinary_cfg_on_so_much_of_the_fine_tune(own_bench, batch):
    risk = rate([0] * 96, list(range(96)))
    tried = [StrengthCandidate(strength=s, risk=risk, p_value=0.0, proven=True) for s in (0.25, 0.5)]
    own_bench.memory["strengths"] = tried
    proven, rows = sample(own_bench, STRENGTH, 0.1, batch)
    assert torch.equal(proven, sample(own_bench, INTERPOLATE, 0.5, batch)[0])
    assert rows == 2 * STEPS * len(batch)
    assert STRENGTH.note(own_bench, 0.1) == "0.5 of the fine-tune; risk at most 10% proven on 96 other pairs"


def test_where_nothing_is_copied_the_whole_fine_tune_is_proven(own_bench, batch, monkeypatch):
    monkeypatch.setattr(ours, "PAIRS", 9)  # none of 9 proves 0.3, which is the largest alpha
    before = fingerprint(own_bench)[0]
    assert [t.strength for t in tried_strengths(own_bench)][-1] == 1.0
    assert torch.equal(sample(own_bench, STRENGTH, 0.3, batch)[0], run(own_bench, batch))
    assert all(torch.equal(before[name], value) for name, value in fingerprint(own_bench)[0].items())


def test_with_a_lora_the_base_is_the_same_network(tiny_pipeline_dir, batch):
    bench = build_bench(tiny_pipeline_dir, base=False)
    plain = run(bench, batch)
    bench.pipe.unet.requires_grad_(False)
    torch.manual_seed(0)
    add_lora(bench.pipe.unet, rank=2, alpha=2, dropout=0.0, targets=UNET_TARGETS)
    with torch.no_grad():
        for name, parameter in bench.pipe.unet.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    tuned = run(bench, batch)
    assert not torch.allclose(tuned, plain, atol=1e-3)
    assert networks(bench) == [bench.pipe.unet]
    for method in (INTERPOLATE, BASE_LED):
        drawn, rows = sample(bench, method, 0.0, batch)
        assert torch.allclose(drawn, plain, atol=1e-5)
        assert rows == 2 * STEPS * len(batch)
    assert torch.equal(run(bench, batch), tuned)


def test_an_earlier_checkpoint_is_sampled_as_it_stands(tiny_pipeline_dir, tiny_epsilon_dir, batch):
    bench = build_bench(tiny_pipeline_dir, base=False, checkpoints=(tiny_epsilon_dir,))
    drawn, rows = sample(bench, EARLIER, 0.0, batch)
    other = build_bench(tiny_epsilon_dir, base=False)
    assert torch.equal(drawn, run(other, batch))
    assert rows == 2 * STEPS * len(batch)
    assert EARLIER.note(bench, 0.0) == "epsilon"


def test_what_does_not_apply_says_why(tiny_pipeline_dir, batch):
    bench = build_bench(tiny_pipeline_dir, base=False)
    reasons = {name: METHODS[name].why_not(bench) for name in ("interpolate", "ours-base-led", "early-stopped", "ren")}
    assert "base model" in reasons["interpolate"]
    assert "base model" in reasons["ours-base-led"]
    assert "checkpoints" in reasons["early-stopped"]
    assert reasons["ren"] == ""
    with pytest.raises(ValueError, match="interpolate cannot run here: needs the base model"):
        sample(bench, INTERPOLATE, 0.5, batch)


def test_a_distilled_model_leaves_no_method(own_bench):
    own_bench.pipe.unet.register_to_config(time_cond_proj_dim=8)
    assert all("guidance-distilled" in method.why_not(own_bench) for method in METHODS.values())


def test_without_cross_attention_attention_methods_say_so(own_bench):
    own_bench.pipe.unet = copy.copy(own_bench.pipe.unet)
    own_bench.pipe.unet.__class__ = type("Blind", (type(own_bench.pipe.unet),), {"attn_processors": {}})
    for name in ("ren", "guard-icml"):
        assert METHODS[name].why_not(own_bench) == "the model has no cross-attention to change"


def test_every_method_names_its_source_and_five_strengths():
    for method in METHODS.values():
        assert method.source
        assert method.strength
        assert method.default in method.strengths
        assert len(method.strengths) == {"none": 1, "schedules": 6}.get(method.name, 5)


def test_unknown_methods_are_refused_with_the_list():
    with pytest.raises(ValueError, match=r"\['magic'\] not known; known: all, none, lower-cfg"):
        named(["stp", "magic"])
    assert [m.name for m in named(["all"])] == list(METHODS)


def test_not_finite_latents_are_an_error_that_names_the_method(own_bench):
    with torch.no_grad():
        next(own_bench.pipe.unet.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="none at strength 1"):
        sample(own_bench, METHODS["none"], 1.0, Batch(("a ball",), (0,)))
