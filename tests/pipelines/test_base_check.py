"""A base is told from the weights of another model by how their weights correlate."""

import pytest
import torch
from torch import nn

from basinguard.pipelines.base_check import require_base, weight_correlation
from support.fake_pipelines import StableDiffusionPipeline


def pipeline(seed, near=None):
    generator = torch.Generator().manual_seed(seed)
    parts = {}
    for name, layer in (("unet", nn.Linear(40, 50)), ("text_encoder", nn.Conv2d(3, 5, 3))):
        with torch.no_grad():
            layer.requires_grad_(False).weight.copy_(torch.randn(layer.weight.shape, generator=generator))
            if near is not None:
                layer.weight.mul_(0.1).add_(getattr(near, name).weight)
        parts[name] = layer
    return StableDiffusionPipeline(**parts)


def test_the_correlation_is_a_cosine_over_all_matrices_and_kernels():
    here, there = pipeline(0), pipeline(1)
    a, b = (torch.cat([p.unet.weight.flatten(), p.text_encoder.weight.flatten()]) for p in (here, there))
    expected = float(torch.nn.functional.cosine_similarity(a, b, dim=0))
    assert weight_correlation(here, there) == pytest.approx(expected, abs=1e-6)
    assert weight_correlation(here, here) == pytest.approx(1.0)


def test_a_base_that_is_not_the_base_is_found_and_said():
    base = pipeline(0)
    require_base(pipeline(2, near=base), base, "base")
    with pytest.raises(ValueError, match=r"base 'other': not what this model was fine-tuned from: .* by -?0\.0"):
        require_base(pipeline(2, near=base), pipeline(1), "other")
    with pytest.raises(ValueError, match="unet: 'weight' is not the same layer"):
        require_base(base, StableDiffusionPipeline(unet=nn.Linear(2, 2), text_encoder=base.text_encoder), "other")
