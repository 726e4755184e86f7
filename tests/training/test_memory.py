"""Memory sizes before a fit: bytes that can be counted by hand, and what each saver saves."""

from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from basinguard.training.memory_footprint import RUNTIME, MemoryFootprint, ProbeLoad, Workload, footprint_of
from basinguard.training.optimizer import moments_of, optimizer_class, parked
from basinguard.training.peak_memory import SHAPES, checkpointing, peak_bytes
from support.fine_tunes import MODEL, fine_tune, grouped
from support.tiny_pipeline import build_tiny_sd3


def test_living_tensors_are_counted_and_dead_ones_are_not():
    x = torch.empty(1000, device="meta")

    def chain():
        y = x + 1  # 4000 bytes
        y = y + 1  # 4000 more, then the first dies
        return (y + 1).sum()

    assert peak_bytes(chain) == 8000 + 4  # two of them, and the sum
    assert peak_bytes(lambda: x.view(10, 100).sum()) == 4  # a view is no memory


def test_a_training_step_holds_activations_and_gradients():
    layer = nn.Linear(100, 100, bias=False, device="meta")
    x = torch.empty(10, 100, device="meta")
    forward = peak_bytes(lambda: layer(x).sum())
    both = peak_bytes(lambda: layer(x).sum(), backward=True)
    assert forward == 10 * 100 * 4 + 4
    assert both >= 100 * 100 * 4


def test_attention_takes_no_matrix():
    q = torch.empty(1, 1, 4096, 8, device="meta")
    assert peak_bytes(lambda: F.scaled_dot_product_attention(q, q, q)) < 4096 * 4096


def test_mixed_precision_halves_a_matrix_product():
    layer, x = nn.Linear(64, 4096, bias=False, device="meta"), torch.empty(512, 64, device="meta")
    wide = peak_bytes(lambda: layer(x))
    mixed = peak_bytes(lambda: layer(x), autocast=torch.bfloat16)
    assert wide == 512 * 4096 * 4
    assert mixed == 512 * 4096 * 2 + (64 * 4096 + 512 * 64) * 2  # the result, and the casts of weight and input


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_norm_makes_has_the_shapes_that_torch_gives_it(dtype):
    x, weight = (torch.empty(*shape, device="meta", dtype=dtype) for shape in ((2, 8, 6, 5), (8,)))
    norm, backward = torch.ops.aten.native_group_norm.default, torch.ops.aten.native_group_norm_backward.default
    sizes = (2, 8, 30, 4)
    forward = (x, weight, weight, *sizes, 1e-5)
    _, mean, rstd = norm(*forward)
    calls = [(norm, forward)]
    calls += [(backward, (x, x, mean, rstd, weight, *sizes, [True, own, own])) for own in (True, False)]
    for operation, arguments in calls:
        for made, expected in zip(SHAPES[operation](*arguments), operation(*arguments), strict=True):
            assert (made is None) == (expected is None)
            if made is not None:
                assert (made.shape, made.dtype) == (expected.shape, expected.dtype)
                assert made.stride() == expected.stride()


def test_recomputing_holds_less():
    layers = nn.ModuleList(nn.Linear(64, 64, bias=False, device="meta") for _ in range(20))
    x = torch.empty(1000, 64, device="meta", requires_grad=True)
    again = checkpointing(None)

    def run(recompute):
        y = x
        for layer in layers:
            block = lambda z, layer=layer: layer(torch.relu(layer(torch.relu(z))))  # noqa: E731
            y = again(block, y) if recompute else block(y)
        return y.sum()

    held, recomputed = (peak_bytes(lambda r=r: run(r), backward=True) for r in (False, True))
    assert recomputed < 0.6 * held


WHOLE = Workload(method="full", resolution=32, batch_size=8, gpu=False)


@cache
def size(base, **changes):
    return footprint_of(base, replace(WHOLE, **grouped({**MODEL, "probe": ProbeLoad}, changes)))


def test_weights_and_moments_are_those_of_the_model(tiny_pipeline_dir):
    for options in ({"method": "full"}, {"method": "lora", "rank": 4}):
        model = fine_tune(tiny_pipeline_dir, **options)
        sizes = size(tiny_pipeline_dir, **options)
        assert sizes.weights == sum(p.numel() * p.element_size() for p in model.parameters())
        assert sizes.trained == sum(p.numel() for p in model.trained().values())
        assert sizes.optimizer == 8 * sizes.trained


@pytest.mark.long  # the transformer of a flow is counted by the same lines
def test_both_text_encoders_of_xl_are_counted(tiny_xl_dir):
    options = {"method": "lora", "rank": 4, "train_text_encoder": True}
    model, sizes = fine_tune(tiny_xl_dir, **options), size(tiny_xl_dir, rows=1, **options)
    assert sizes.weights == sum(p.numel() * p.element_size() for p in model.parameters())
    assert sizes.trained == sum(p.numel() for p in model.trained().values())
    assert sizes.probe > 0


def test_the_transformer_of_a_flow_is_counted(tmp_path):
    build_tiny_sd3().save_pretrained(tmp_path)
    model, sizes = fine_tune(tmp_path, rank=4), size(tmp_path, method="lora", rank=4)
    assert sizes.weights == sum(p.numel() * p.element_size() for p in model.parameters())
    assert sizes.trained == sum(p.numel() for p in model.trained().values())
    assert sizes.update > 0


def test_a_card_is_large_enough_with_a_twentieth_left():
    empty = MemoryFootprint(*[0] * 8)
    needs = replace(empty, weights=int(11.4e9 - RUNTIME))  # 0.95 * 12 GB
    assert needs.fits(12)
    assert not replace(needs, weights=needs.weights + 1).fits(12)
    assert needs.lines()[1] == "cards of 12 GB: fits, 16 GB: fits, 24 GB: fits, 48 GB: fits, 80 GB: fits"


@pytest.mark.parametrize(
    ("changes", "part", "share"),
    [
        pytest.param({"gradient_checkpointing": True}, "update", 0.8, marks=pytest.mark.long),
        ({"batch_size": 4}, "encode", 0.6),
        ({"name": "adamw8bit"}, "optimizer", 0.26),
        ({"weights": "bfloat16"}, "weights", 0.51),
        ({"method": "lora"}, "optimizer", 0.5),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_saver_saves(tiny_pipeline_dir, changes, part, share):
    assert getattr(size(tiny_pipeline_dir, **changes), part) < share * getattr(size(tiny_pipeline_dir), part)


@pytest.mark.long  # the next test parks moments
def test_a_probe_counts_what_is_sampled_at_once_and_moments_can_be_parked(tiny_pipeline_dir):
    few, many = (size(tiny_pipeline_dir, rows=rows) for rows in (64, 1024))
    assert few.probe < many.probe
    away = size(tiny_pipeline_dir, rows=1024, offload_in_probes=True)
    assert away.parked == away.optimizer == many.optimizer


def test_the_base_models_own_pictures_are_counted(tiny_pipeline_dir):
    """Half a batch more in every update, and the model once more while they are drawn."""
    without, with_prior = size(tiny_pipeline_dir), size(tiny_pipeline_dir, prior_weight=1.0)
    assert 1.25 * without.update < with_prior.update < 1.6 * without.update
    assert (without.copied, with_prior.copied) == (0, with_prior.weights)
    assert (without.probe, with_prior.probe > 0) == (0, True)


def test_moments_are_parked_and_come_back_as_they_were():
    layer = nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    before = [(name, state[name].clone()) for state, name in moments_of([optimizer])]
    assert len(before) == 4  # two moments, of weight and bias
    with parked(moments_of([optimizer])):
        optimizer.state[layer.weight]["exp_avg"].add_(0)
    after = [(name, state[name]) for state, name in moments_of([optimizer])]
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in zip(before, after, strict=True))


class Elsewhere:
    """Stands for a tensor on a GPU: remembers where it was sent."""

    def __init__(self, device="cuda:0"):
        self.device, self.sent = device, []

    def to(self, device):
        self.sent.append(str(device))
        return self


def test_parking_sends_tensors_away_and_home_even_after_an_error():
    state = {"exp_avg": Elsewhere()}
    with pytest.raises(RuntimeError, match="probe"), parked([(state, "exp_avg")]):
        raise RuntimeError("probe")
    assert state["exp_avg"].sent == ["cpu", "cuda:0"]


def test_eight_bit_moments_need_their_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.optim", None)
    with pytest.raises(ValueError, match=r"pip install 'basinguard\[eightbit\]', or set optimizer.name: adamw"):
        optimizer_class("adamw8bit")
