"""T-LoRA: which channels of an adapter a training step uses, by the timestep of each row."""

import pytest
import torch

from basinguard.pipelines.lora import down_projections
from basinguard.training.rank_mask import ranks_at
from support.fine_tunes import fine_tune

TARGETS = ["to_q", "to_k", "to_v", "conv1"]  # of linear layers and of convolutions
TIMES = torch.tensor([999, 500, 0])


def test_the_rank_falls_with_noise():
    """By hand, floor((1000 - t) (r - least) / 1000) + least, as arXiv 2507.05964 has it."""
    times = torch.tensor([0, 1, 250, 500, 875, 876, 999, 1000])
    assert ranks_at(times, 16, 0.5).tolist() == [16, 15, 14, 12, 9, 8, 8, 8]
    assert ranks_at(times.float(), 16, 0.5).tolist() == [16, 15, 14, 12, 9, 8, 8, 8]
    assert ranks_at(torch.tensor([0, 500, 1000]), 4, 0.1).tolist() == [4, 2, 1]
    assert ranks_at(times, 16, 1.0).tolist() == [16] * 8


def adapted(base, **options):
    """A fine-tune whose adapters already do something, and what it is asked."""
    model = fine_tune(base, rank=4, targets=TARGETS, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.trained().items():
            if "lora_B" in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    noisy = torch.randn(3, 4, 16, 16, generator=generator)
    return model, noisy, model.encode_captions(["a ball", "a box", "a star"])


def test_each_row_has_the_channels_of_its_timestep(tiny_pipeline_dir):
    """Against an adapter whose last channels are taken out by hand; 4 channels, half of them at 1000: 2, 3 and 4."""
    model, noisy, states = adapted(tiny_pipeline_dir, rank_at_noise=0.5)
    with torch.no_grad():
        masked = model.predict(model.pipe, noisy, TIMES, states)
        plain = model.family.forward(model.pipe, noisy, TIMES, states.texts)
        for row, used in ((2, 4), (1, 3), (0, 2)):  # downwards: channels are taken out one after another
            for layer in down_projections(model.unet):
                layer.weight[used:] = 0
            by_hand = model.family.forward(model.pipe, noisy, TIMES, states.texts)
            torch.testing.assert_close(masked[row], by_hand[row])
    assert not torch.allclose(masked[0], plain[0])  # outside `predict` nothing is masked
    torch.testing.assert_close(masked[2], plain[2])


def test_channels_that_are_off_get_no_gradient(tiny_pipeline_dir):
    model, noisy, states = adapted(tiny_pipeline_dir, rank_at_noise=0.5)
    model.predict(model.pipe, noisy, torch.tensor([999, 999, 999]), states).square().mean().backward()
    for layer in down_projections(model.unet):
        channels = layer.weight.grad.flatten(1).abs().sum(1)
        assert (channels[:2] > 0).all()
        assert (channels[2:] == 0).all()


def test_gradient_checkpointing_masks_alike(tiny_pipeline_dir):
    """Two passes with other timesteps before the gradient: each is computed again with its own mask."""
    gradients = []
    for checkpointing in (False, True):
        options = {"rank_at_noise": 0.5, "gradient_checkpointing": checkpointing}
        model, noisy, states = adapted(tiny_pipeline_dir, **options)
        model.train()
        passes = [model.predict(model.pipe, noisy, times, states) for times in (TIMES, TIMES.flip(0))]
        (passes[0] * passes[1]).mean().backward()
        gradients.append([weight.grad for weight in model.trained().values()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again, rtol=1e-4, atol=1e-7)


def test_the_whole_rank_is_the_plain_adapter(tiny_pipeline_dir):
    model, noisy, states = adapted(tiny_pipeline_dir)
    with torch.no_grad():
        plain = model.family.forward(model.pipe, noisy, TIMES, states.texts)
        assert torch.equal(model.predict(model.pipe, noisy, TIMES, states), plain)
    assert not any(layer._forward_hooks for layer in down_projections(model.unet))


def test_what_is_exported_has_the_whole_adapter(tiny_pipeline_dir):
    """The merged network is the unmasked one at every timestep."""
    model, noisy, states = adapted(tiny_pipeline_dir, rank_at_noise=0.5)
    with torch.no_grad():
        model.predict(model.pipe, noisy, TIMES, states)
        plain = model.eval().family.forward(model.pipe, noisy, TIMES, states.texts)
        exported = model.family.forward(model.export_pipeline(), noisy, TIMES, states.texts)
    torch.testing.assert_close(exported, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_a_share_out_of_range_is_named(tiny_pipeline_dir, share):
    with pytest.raises(ValueError, match=rf"^FineTune: out of range: rank_at_noise={share} \(above 0, at most 1\)$"):
        fine_tune(tiny_pipeline_dir, rank_at_noise=share)


def test_whole_weights_have_no_rank_to_mask(tiny_pipeline_dir):
    with pytest.raises(ValueError, match=r"^FineTune: rank_at_noise=0\.5 is of a LoRA, and method=full"):
        fine_tune(tiny_pipeline_dir, method="full", rank_at_noise=0.5)
