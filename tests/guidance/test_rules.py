import doctest

import pytest
import torch

from basinguard.calibration import prompt_triage as triage
from basinguard.diffusion.noise_schedule import to_epsilon
from basinguard.guidance import core as guidance
from basinguard.guidance import schedules
from basinguard.guidance.core import Constant, SwitchAt, combine, epsilon_factor, from_record, resolve
from basinguard.guidance.dynamic import Drop, LocalMinimum, SwitchAfter
from basinguard.guidance.schedules import SHAPES, Interval, Schedule
from basinguard.guidance.serialization import rule_from_dict, rule_to_dict
from basinguard.guidance.triage import Triage


@pytest.mark.parametrize("module", [guidance, schedules, triage])
def test_examples(module):
    assert doctest.testmod(module).failed == 0


def test_the_file_that_ships_needs_torch_alone():
    import ast
    from pathlib import Path

    tree = ast.parse(Path(guidance.__file__).read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    stdlib = {"__future__", "collections", "contextlib", "dataclasses", "threading", "typing"}
    assert {name.split(".")[0] for name in names} == stdlib | {"torch"}


def run(rule, gaps, timesteps=None):
    """Scales [N, B] of a trajectory with the given gaps [N, B]."""
    gaps = torch.as_tensor(gaps, dtype=torch.float32)
    timesteps = range(len(gaps), 0, -1) if timesteps is None else timesteps
    state, scales = rule.init(gaps.shape[1]), []
    for timestep, gap in zip(timesteps, gaps, strict=True):
        scale, state = rule.scale(torch.full((gaps.shape[1],), float(timestep)), gap, state)
        scales.append(scale)
    return torch.stack(scales)


def test_combine_is_diffusers_line():
    u, c = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert torch.equal(combine(u, c, torch.full((2,), 7.5)), u + 7.5 * (c - u))


def test_the_papers_detector_fires_one_step_after_the_first_minimum():
    scales = run(SwitchAfter(before=-2.0, after=7.5), [[5.0], [4.0], [3.0], [3.5], [3.0], [9.0]])
    assert scales[:, 0].tolist() == [-2, -2, -2, 7.5, 7.5, 7.5]


def test_each_sample_has_its_own_minimum():
    scales = run(SwitchAfter(before=0.0, after=5.0), [[5.0, 1.0], [4.0, 2.0], [4.5, 1.0], [5.0, 3.0]])
    assert scales.T.tolist() == [[0, 0, 5, 5], [0, 0, 0, 5]]


def test_a_rise_from_the_start_is_no_minimum():
    assert run(SwitchAfter(), [[1.0], [2.0], [3.0], [4.0]]).eq(0).all()


def test_a_detector_with_depth_ignores_a_ripple():
    gaps = [[10.0], [9.0], [9.1], [9.0], [2.0], [3.0]]
    assert run(SwitchAfter(), gaps)[:, 0].tolist() == [0, 0, 7.5, 7.5, 7.5, 7.5]
    assert run(SwitchAfter(LocalMinimum(0.5)), gaps)[:, 0].tolist() == [0, 0, 0, 0, 0, 7.5]


def test_a_drop_fires_on_the_fall_and_on_no_ripple():
    gaps = [[10.0], [9.0], [9.1], [9.0], [2.0], [3.0]]
    assert run(SwitchAfter(Drop(0.3)), gaps)[:, 0].tolist() == [0, 0, 0, 0, 7.5, 7.5]
    assert run(SwitchAfter(Drop(0.3, rise=0.2)), gaps)[:, 0].tolist() == [0, 0, 0, 0, 0, 7.5]
    assert run(SwitchAfter(Drop(0.9)), gaps).eq(0).all()


def test_a_drop_finds_a_flat_minimum_that_the_papers_rule_misses():
    gaps = [[10.0], [6.0], [6.0], [6.0], [6.5]]
    assert run(SwitchAfter(), gaps).eq(0).all()
    assert run(SwitchAfter(Drop(0.3, rise=0.05)), gaps)[:, 0].tolist() == [0, 0, 0, 0, 7.5]


def test_a_new_peak_forgets_the_fall_before_it():
    gaps = [[5.0], [4.6], [10.0], [9.0], [6.0]]
    assert run(SwitchAfter(Drop(0.3)), gaps)[:, 0].tolist() == [0, 0, 0, 0, 7.5]


def test_a_drop_that_never_comes_can_be_given_a_last_timestep():
    gaps, timesteps = [[5.0]] * 4, [900, 600, 300, 100]
    assert run(SwitchAfter(Drop(0.3)), gaps, timesteps).eq(0).all()
    assert run(SwitchAfter(Drop(0.3, latest=300.0)), gaps, timesteps)[:, 0].tolist() == [0, 0, 7.5, 7.5]


@pytest.mark.parametrize("wrong", [{"depth": 0.0}, {"depth": 1.0}, {"rise": -0.1}, {"latest": 1500.0}])
def test_a_drop_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match="Drop"):
        Drop(**wrong)


def test_an_unknown_detector_is_refused():
    with pytest.raises(ValueError, match="unknown detector 'magic'; known: local_minimum, drop"):
        rule_from_dict({"rule": "switch_after", "detector": {"detector": "magic"}})


def test_transitions_of_a_batch_cover_the_images_of_each_prompt():
    rule = SwitchAt((300.0, 700.0), before=0.0, after=1.0)
    rule.init(4)
    assert rule.scale(torch.full((4,), 500.0), None, None)[0].tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="2 transitions for a batch of 3"):
        rule.init(3)


@pytest.mark.parametrize("rule", [SwitchAt(600, after=None), SwitchAfter(after=None), Schedule("v"), Interval(1, 2)])
def test_an_open_scale_must_be_resolved(rule):
    batch = torch.tensor([700.0, 1.5])
    with pytest.raises(ValueError, match="resolve"):
        run(rule, [[3.0, 1.0]] * 2, [700, 1.5])
    closed = resolve(rule, 4.0)
    assert closed.after == 4.0
    assert resolve(closed, 9.0) == closed
    closed.scale(batch, batch, closed.init(2))


def test_resolving_reaches_the_rule_inside():
    assert resolve(Triage(SwitchAt(600, after=None), 0.1), 4.0) == Triage(SwitchAt(600, after=4.0), 0.1, 4.0)


@pytest.mark.parametrize("transition", [-1, 1000, float("nan"), (), (500, 1200)])
def test_a_transition_out_of_range_is_refused(transition):
    with pytest.raises(ValueError, match="999"):
        SwitchAt(transition)


@pytest.mark.parametrize(
    "rule",
    [
        Constant(-2.0),
        SwitchAt(600.0, -2.0, None),
        SwitchAt((1.0, 2.0)),
        SwitchAfter(LocalMinimum(0.25), -2.0, None),
        SwitchAfter(Drop(0.4, rise=0.1, latest=300.0), -2.0, None),
        Triage(SwitchAfter(Drop()), 0.1),
        Schedule("a", 3.0),
        Interval(10.0, 20.0),
        Triage(SwitchAt(600.0), 0.1, 7.5),
        Triage(SwitchAt(600.0), 0.1, None, 999.0),
        Triage(Triage(SwitchAfter(), 0.1), 0.2),
    ],
)
def test_rules_survive_json(rule):
    import json

    assert rule_from_dict(json.loads(json.dumps(rule_to_dict(rule)))) == rule


@pytest.mark.parametrize("form", [{}, {"rule": "nonsense"}, {"rule": "constant"}, {"rule": "constant", "valu": 1}])
def test_a_form_that_is_no_rule_is_refused(form):
    with pytest.raises(ValueError, match="rule"):
        rule_from_dict(form)


def test_a_rule_of_ones_own_has_no_form():
    class Own(Constant):
        """Known to nobody else."""

    with pytest.raises(TypeError, match="no JSON form"):
        rule_to_dict(Own(7.5))


@pytest.mark.parametrize("form", [{}, {"guidance": None}, {"guidance": {"transition": "a"}}, [], {"guidance": {}}])
def test_a_broken_record_is_refused(form):
    with pytest.raises(ValueError, match="not a basinguard record"):
        from_record(form)


@pytest.mark.parametrize("more", [{"refine": 4}, {"anchor": True}])
def test_a_record_of_more_than_a_rule_can_do_is_refused(more):
    usual = {"transition": 500.0, "before": 0.0, "after": None, "refine": 1, "anchor": False}
    assert from_record({"guidance": usual}) == SwitchAt(500.0, 0.0, None)
    with pytest.raises(ValueError, match=r"measured with (refine=4|anchor=True), which a stock pipeline cannot apply"):
        from_record({"guidance": usual | more})


@pytest.mark.parametrize("shape", SHAPES)
def test_every_schedule_spends_the_guidance_of_the_constant_one(shape):
    grid = torch.linspace(0, 999, 9991, dtype=torch.float64)
    scale = Schedule(shape, 7.5).scale(grid, None, None)[0]
    assert abs(float(torch.trapezoid(scale, grid) / 999) - 7.5) < 1e-3
    assert float(scale.min()) >= 1


def test_the_shapes_at_their_ends():
    ends = torch.tensor([999.0, 499.5, 0.0])
    values = {shape: Schedule(shape, 2.0).scale(ends, None, None)[0].tolist() for shape in SHAPES}
    expected = {
        "linear": [1, 2, 3],
        "inverse_linear": [3, 2, 1],
        "cosine": [1, 2, 3],
        "sine": [3, 2, 1],
        "v": [3, 1, 3],
        "a": [1, 3, 1],
    }
    assert {shape: [round(value, 5) for value in row] for shape, row in values.items()} == expected


def test_unknown_schedules_are_refused():
    with pytest.raises(ValueError, match="linear, inverse_linear"):
        Schedule("lambda")
    with pytest.raises(ValueError, match="low < high"):
        Interval(500, 400)


def test_triage_gives_harmless_prompts_ordinary_cfg():
    rule = Triage(SwitchAt(600, -2.0, 7.5), threshold=1.0, after=7.5)
    scales = run(rule, [[0.5, 1.5], [2.0, 0.1], [2.0, 0.1]], [900, 800, 500])
    assert scales.T.tolist() == [[7.5, 7.5, 7.5], [-2.0, -2.0, 7.5]]


def test_triage_waits_for_a_gap_that_is_not_zero():
    rule = Triage(SwitchAt(600, -2.0, 7.5), threshold=1.0, after=7.5)
    scales = run(rule, [[0.0, 0.0], [0.5, 1.5], [0.5, 1.5]], [999, 900, 800])
    assert scales.T.tolist() == [[-2.0, 7.5, 7.5], [-2.0, -2.0, -2.0]]


def test_triage_knows_where_its_threshold_holds():
    rule = Triage(SwitchAt(600, -2.0, 7.5), threshold=1.0, after=7.5, timestep=981)
    assert run(rule, [[0.5], [0.5]], [975, 500]).T.tolist() == [[7.5, 7.5]]
    with pytest.raises(ValueError, match=r"calibrated at timestep 981, .* first gap at 900"):
        run(rule, [[0.5]], [900])


class FakeScheduler:
    def __init__(self, kind):
        self.config = {"prediction_type": kind}
        self.alphas_cumprod = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_gap_is_converted_to_epsilon(kind):
    squared = torch.tensor(0.5, dtype=torch.float64)
    signal, noise = squared.sqrt(), (1 - squared).sqrt()
    x = torch.randn(4, dtype=torch.float64)
    eps = torch.randn(2, 4, dtype=torch.float64)
    clean = (x - noise * eps) / signal
    raw = {"epsilon": eps, "v_prediction": signal * eps - noise * clean, "sample": clean}[kind]
    difference = (raw[1] - raw[0]).norm() * epsilon_factor(FakeScheduler(kind))(1.0)
    assert torch.isclose(difference, (eps[1] - eps[0]).norm())
    assert torch.allclose(to_epsilon(kind, raw, x.expand(2, 4), signal.repeat(2), noise.repeat(2)), eps)


def test_a_flow_matcher_is_converted_to_epsilon():
    sigma, x = 0.3, torch.randn(4)
    clean = torch.randn(2, 4)
    eps = (x - (1 - sigma) * clean) / sigma
    velocity = eps - clean
    difference = (velocity[1] - velocity[0]).norm() * epsilon_factor(None)(300.0)
    assert torch.isclose(difference, (eps[1] - eps[0]).norm())


def test_a_scheduler_that_does_not_count_in_timesteps_is_refused():
    with pytest.raises(ValueError, match="nonsense"):
        epsilon_factor(FakeScheduler("nonsense"))
    continuous = FakeScheduler("v_prediction")
    continuous.config["timestep_type"] = "continuous"
    with pytest.raises(ValueError, match="training timesteps"):
        epsilon_factor(continuous)
