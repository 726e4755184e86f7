"""A strength that follows the timestep: the staircase in numbers, and a LoRA whose scale it sets at every call."""

import threading

import pytest
import torch
from diffusers.utils import scale_lora_layers, unscale_lora_layers
from peft import LoraConfig

from basinguard.core import recorded_weights
from basinguard.guidance import strength
from basinguard.guidance.strength import StrengthSchedule, scheduled
from support.tiny_pipelines import unet

TARGETS = ["to_q", "to_v", "conv1"]
HALF_ABOVE_500 = StrengthSchedule((500.0, 200.0), (0.5, 1.0, 0.0))
TIMESTEPS = (901, 501, 500, 201, 200, 1)
SHARES = (0.5, 0.5, 1.0, 1.0, 0.0, 0.0)


def with_lora(config=None, seed=0):
    torch.manual_seed(seed)
    network = unet().requires_grad_(False)
    network.add_adapter(config or LoraConfig(r=3, lora_alpha=2.0, target_modules=TARGETS, init_lora_weights=False))
    return network


@pytest.fixture(scope="module")
def network():
    return with_lora()


def call(network, x, timestep):
    text = torch.linspace(-1, 1, len(x) * 3 * 16).reshape(len(x), 3, 16)
    with torch.no_grad():
        return network(x, timestep, encoder_hidden_states=text).sample


def sampled(network, before=lambda timestep: None):
    """A sampler in closed form, x - eps / 2, whose every step may be prepared by hand."""
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    for timestep in TIMESTEPS:
        before(timestep)
        x = x - call(network, x, timestep) / 2
    return x


def scales(network):
    return [dict(part.scaling) for part in network.modules() if hasattr(part, "get_base_layer")]


def test_the_first_strength_is_above_the_first_transition():
    assert tuple(HALF_ABOVE_500.at(t) for t in TIMESTEPS) == SHARES
    assert StrengthSchedule((999.0,), (0.0, 1.0)).at(1000) == 1.0


def test_a_ramp_goes_in_equal_steps():
    ramp = StrengthSchedule.ramp(800, 200, above=0.2, below=1.0, transitions=4)
    assert ramp.transitions == pytest.approx((800, 600, 400, 200))
    assert ramp.strengths == pytest.approx((0.2, 0.4, 0.6, 0.8, 1.0))


@pytest.mark.parametrize(
    ("transitions", "strengths", "message"),
    [
        ((500.0,), (1.0,), "one strength more than transitions, 2"),
        ((), (0.6,), "0 transitions: expected 1 to 100; one strength needs no schedule"),
        (tuple(range(900, 799, -1)), (1.0,) * 102, "101 transitions"),
        ((200.0, 500.0), (0.0, 0.5, 1.0), "strictly falling"),
        ((500.0, 500.0), (0.0, 0.5, 1.0), "strictly falling"),
        ((1000.0,), (0.0, 1.0), "in \\[0, 999\\]"),
        ((float("nan"),), (0.0, 1.0), "in \\[0, 999\\]"),
        ((500.0,), (0.0, 1.5), "in \\[0, 1\\]"),
    ],
)
def test_a_schedule_that_is_none_is_refused(transitions, strengths, message):
    with pytest.raises(ValueError, match=message):
        StrengthSchedule(transitions, strengths)


def test_a_ramp_needs_two_transitions():
    with pytest.raises(ValueError, match="at least 2"):
        StrengthSchedule.ramp(800, 200, above=0.2, below=1.0, transitions=1)


def test_a_schedule_is_the_sampler_with_its_weights_switched_by_hand(network):
    def switch(timestep):
        network.set_adapters(["default"], weights=[HALF_ABOVE_500.at(timestep)])

    by_hand = sampled(network, switch)
    network.set_adapters(["default"], weights=[1.0])
    whole, before = sampled(network), scales(network)
    with scheduled(network, HALF_ABOVE_500):
        by_schedule = sampled(network)
    assert torch.equal(by_schedule, by_hand)
    assert not torch.equal(by_schedule, whole)
    assert torch.equal(sampled(network), whole)
    assert scales(network) == before


def test_it_multiplies_the_weight_of_the_adapter(network):
    x = torch.randn(2, 4, 8, 8)
    network.set_adapters(["default"], weights=[0.4])
    expected = call(network, x, 900)
    network.set_adapters(["default"], weights=[0.8])
    with scheduled(network, HALF_ABOVE_500):
        assert torch.equal(call(network, x, 900), expected)
    network.set_adapters(["default"], weights=[1.0])


def test_a_weight_that_diffusers_sets_during_a_call_multiplies_too(network):
    x = torch.randn(2, 4, 8, 8)
    network.set_adapters(["default"], weights=[0.25])
    expected = call(network, x, 900)
    network.set_adapters(["default"], weights=[1.0])
    before = scales(network)
    hooks = [
        network.conv_in.register_forward_pre_hook(lambda *_: scale_lora_layers(network, 0.5)),
        network.conv_out.register_forward_hook(lambda *_: unscale_lora_layers(network, 0.5)),
    ]
    with scheduled(network, HALF_ABOVE_500):
        scaled = call(network, x, 900)
    for hook in hooks:
        hook.remove()
    assert torch.equal(scaled, expected)
    assert scales(network) == before


def test_everything_is_back_after_an_exception(network):
    x, before, names = torch.randn(1, 4, 8, 8), scales(network), set(network._forward_hooks)
    expected = call(network, x, 900)
    with pytest.raises(RuntimeError), scheduled(network, HALF_ABOVE_500):  # noqa: PT012 - what follows is inside too
        with pytest.raises(RuntimeError):
            call(network, torch.randn(1, 3, 8, 8), 900)
        assert scales(network) == before
        raise RuntimeError
    assert scales(network) == before
    assert set(network._forward_hooks) == names
    assert torch.equal(call(network, x, 900), expected)


def in_thread(work):
    results = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join(timeout=60)
    return results[0]


def test_another_thread_sees_the_lora_as_it_was_even_during_a_call(network):
    x, others = torch.randn(1, 4, 8, 8), []
    expected = call(network, x, 900)

    def ask_another(*_):
        if not others:
            others.append(None)  # its own call comes by here too
            others[0] = in_thread(lambda: call(network, x, 900))

    hook = network.conv_in.register_forward_hook(ask_another)
    with scheduled(network, HALF_ABOVE_500):
        scaled = call(network, x, 900)
    hook.remove()
    assert torch.equal(others[0], expected)
    assert not torch.equal(scaled, expected)


def test_two_threads_have_a_schedule_each(network):
    x, before = torch.randn(1, 4, 8, 8), scales(network)
    base_led = StrengthSchedule((500.0,), (0.0, 1.0))
    with scheduled(network, base_led):
        expected = call(network, x, 900)

    def other():
        with scheduled(network, base_led):
            return call(network, x, 900)

    with scheduled(network, HALF_ABOVE_500):
        first = call(network, x, 900)
        assert torch.equal(in_thread(other), expected)
        assert torch.equal(call(network, x, 900), first)
    assert scales(network) == before


def test_base_led_is_the_base_model(network):
    x = torch.randn(1, 4, 8, 8)
    network.disable_adapters()
    base = call(network, x, 900)
    network.enable_adapters()
    with scheduled(network, StrengthSchedule((500.0,), (0.0, 1.0))):
        assert torch.allclose(call(network, x, 900), base, atol=1e-6)


def dora():
    return with_lora(LoraConfig(r=2, target_modules=["to_q"], use_dora=True))


def merged():
    network = with_lora()
    for part in network.modules():
        if hasattr(part, "get_base_layer"):
            part.merge()
    return network


def compiled():
    network = with_lora()
    network._compiled_call_impl = network.forward  # as compile() leaves it, which takes seconds to import
    return network


def whole_beside():
    return with_lora(LoraConfig(r=2, target_modules=["to_q"], modules_to_save=["conv_out"]))


def other_kind():
    from peft import OFTConfig

    return with_lora(OFTConfig(r=2, oft_block_size=0, target_modules=["to_q"]))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (unet, "needs an unmerged LoRA.*carries none: give the base model"),
        (dora, "to_q: DoRA has no scale"),
        (merged, "merged into the weights"),
        (compiled, "compiled denoiser"),
        (whole_beside, "conv_out was trained as a whole"),
        (other_kind, "to_q: Linear has no scale"),
    ],
)
def test_what_cannot_be_scaled_is_refused_before_any_call(build, message):
    network = build()
    with pytest.raises(ValueError, match=message), scheduled(network, HALF_ABOVE_500):
        pass


def test_records_hold_as_many_transitions_as_a_schedule():
    assert strength.MOST_TRANSITIONS == recorded_weights.MOST_TRANSITIONS
