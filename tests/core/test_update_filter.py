"""Filters of an update against closed form: layers by name, planted singular values."""

import pytest
import torch

from basinguard.core.update_filter import halves, update_filter

ATTN2, RESNET = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", "mid_block.resnets.0.conv1.weight"
OTHER = "time_embedding.linear_1.bias"


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("no-cross-attention", (False, True, True)),
        ("residual-blocks", (False, True, False)),
        ("no-attention", (False, True, True)),
    ],
)
def test_a_filter_of_parts_leaves_the_change_of_its_layers_and_none_of_others(name, left):
    change = torch.full((2, 3), 0.5)
    for layer, stays in zip((ATTN2, RESNET, OTHER), left, strict=True):
        edited = update_filter(name).edit(layer, change)
        assert edited is change if stays else torch.equal(edited, torch.zeros(2, 3))


def test_without_attention_the_change_of_an_attention_block_s_own_layers_goes_too():
    change, own = torch.ones(2), "up_blocks.1.attentions.2.proj_in.weight"
    assert not update_filter("no-attention").edit(own, change).any()
    assert update_filter("no-cross-attention").edit(own, change) is change


def planted(values, outputs, inputs):
    """A matrix of these singular values, between random orthonormal vectors: each rank's own term."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=generator))[0] for n in (outputs, inputs))
    return [s * torch.outer(left[:, k], right[:, k]) for k, s in enumerate(values)]


@pytest.mark.parametrize("shape", [(6, 8), (8, 6), (6, 2, 2, 2)])
def test_of_planted_singular_values_the_largest_stay(shape):
    terms = planted((4.0, 2.0, 1.0, 0.5), shape[0], torch.Size(shape[1:]).numel())
    edited = update_filter("rank-2").edit(OTHER, sum(terms).reshape(shape))
    torch.testing.assert_close(edited, (terms[0] + terms[1]).reshape(shape), atol=1e-5, rtol=0)


def test_what_has_no_more_singular_values_is_the_very_same():
    for change in (torch.ones(7), torch.rand(3, 9)):
        assert update_filter("rank-3").edit(OTHER, change) is change


def test_halves_multiply_to_the_nearest_matrix():
    terms = planted((3.0, 1.0), 5, 7)
    up, down = halves(sum(terms), 1)
    assert (up.shape, down.shape) == ((5, 1), (1, 7))
    torch.testing.assert_close(up @ down, terms[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["", "no-text", "rank-", "rank-0", "rank-016", "rank-4 ", "Rank-4", "rank-99999"])
def test_an_unknown_name_is_refused_with_those_that_there_are(name):
    with pytest.raises(ValueError, match="known: no-cross-attention, residual-blocks, no-attention, rank-N"):
        update_filter(name)
