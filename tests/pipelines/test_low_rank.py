"""A full fine-tune as a LoRA: planted differences come back, and the stated error holds at the lowest rank."""

import copy

import pytest
import torch

from basinguard.pipelines.loading import load_pipeline
from basinguard.pipelines.low_rank import extract_lora, low_rank_difference, truncated
from support.exports import build_pipe

PLANTED = {  # rank by layer: linear, attention, convolutions of 3 x 3 and 1 x 1
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": 2,
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v": 3,
    "conv_in": 1,
    "mid_block.resnets.0.conv1": 4,
}


def planted(shape, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    up, down = (torch.randn(*size, generator=generator) for size in ((shape[0], rank), (rank, shape[1:].numel())))
    return 0.01 * (up @ down).reshape(shape)


@pytest.fixture(scope="module")
def base():
    return build_pipe()


@pytest.fixture(scope="module")
def tuned(base):
    pipe = build_pipe()
    for seed, (name, rank) in enumerate(PLANTED.items()):
        weight = pipe.unet.get_submodule(name).weight
        weight.data += planted(weight.shape, rank, seed)
    return pipe


def product(layer):
    down, up, alpha = layer
    return alpha / len(down) * torch.einsum("or,r...->o...", up.flatten(1), down)


def test_a_planted_difference_comes_back_at_its_own_rank(base, tuned):
    """Rounding of the sum leaves noise of some 1e-6 of the difference, so the error is stated above that."""
    difference = low_rank_difference(tuned, base, error=1e-4)
    assert {name: len(down) for name, (down, _, _) in difference.layers.items()} == {
        f"unet.{name}": rank for name, rank in PLANTED.items()
    }
    for seed, (name, rank) in enumerate(PLANTED.items()):
        layer, shape = difference.layers[f"unet.{name}"], tuned.unet.get_submodule(name).weight.shape
        torch.testing.assert_close(product(layer), planted(shape, rank, seed), rtol=0, atol=1e-6)
    assert difference.left_out == ()
    assert difference.lost < 1e-4


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (8, 6, 3, 3)])
@pytest.mark.parametrize("error", [0.05, 0.3, 0.9])
def test_the_error_holds_and_the_rank_is_the_lowest(shape, error):
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    layer, stated = truncated(delta, error)
    lost = float((product(layer) - delta).norm() / delta.norm())
    assert lost == pytest.approx(stated, abs=1e-5)
    assert stated <= error
    values = torch.linalg.svdvals(delta.flatten(1))
    without_last = float(values[len(layer[0]) - 1 :].norm() / values.norm())
    assert without_last > error, "one rank less would lose more"


def test_what_is_no_matrix_is_left_out_and_said(base, tuned):
    changed = copy.deepcopy(tuned.unet)
    changed.conv_norm_out.weight.data += 0.1
    changed.conv_out.bias.data -= 0.1
    pipe = build_pipe()
    pipe.unet = changed
    difference = low_rank_difference(pipe, base, error=0.01)
    assert difference.left_out == ("unet.conv_norm_out.weight", "unet.conv_out.bias")
    beside = 0.1**2 * (len(changed.conv_norm_out.weight) + len(changed.conv_out.bias))
    layers = sum(float((planted(tuned.unet.get_submodule(n).weight.shape, r, s)).square().sum())
                 for s, (n, r) in enumerate(PLANTED.items()))  # fmt: skip
    assert difference.lost == pytest.approx((beside / (beside + layers)) ** 0.5, rel=0.01)
    assert "2 tensors that are no matrices are left out" in str(difference)
    assert str(difference).startswith("4 layers of rank 1 to 4 (median 2.5)")


def test_the_file_on_the_base_is_the_fine_tune(base, tuned, tmp_path):
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    out = tmp_path / "lora.safetensors"
    extract_lora(tmp_path / "tuned", tmp_path / "base", out, error=1e-4)
    pipe = load_pipeline(tmp_path / "base", lora=out)
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16)
    with torch.no_grad():
        whole, low, plain = (p.unet(x, 500, encoder_hidden_states=text).sample for p in (tuned, pipe, base))
    torch.testing.assert_close(low, whole, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, whole, atol=1e-3)
    with pytest.raises(FileExistsError):
        extract_lora(tmp_path / "tuned", tmp_path / "base", out)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda pipe: None, 0.1, "no linear or convolutional layer of the fine-tune differs"),
        (lambda pipe: pipe.unet.conv_in.weight.data.fill_(float("nan")), 0.1, "conv_in.weight: weights that are not"),
        (lambda pipe: setattr(pipe.unet, "conv_in", torch.nn.Identity()), 0.1, "unet: .* are not the same"),
        (lambda pipe: None, 1.0, "expected a share of each layer's difference"),
    ],
)
def test_what_cannot_be_a_lora_is_refused(base, change, error, message):
    pipe = build_pipe()
    change(pipe)
    with pytest.raises(ValueError, match=message):
        low_rank_difference(pipe, base, error=error)


def test_another_ending_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(ValueError, match=r"expected \*.safetensors"):
        extract_lora("nowhere", "nowhere", tmp_path / "lora.bin")
