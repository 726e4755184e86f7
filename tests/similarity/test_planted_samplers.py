"""Samplers whose worth is plain to see, on ink drawings; the base model draws the same scenes in their own colours."""

import pytest
import torch
from torchvision.transforms.v2 import functional as edit

from basinguard.similarity.colour_texture import ColourTexture
from basinguard.similarity.efficientnet import EfficientNetLite, installed_weights
from basinguard.similarity.taught import TaughtRuler
from basinguard.tinyworld.tasks import TASKS

N = 32


@pytest.fixture(scope="module")
def drawn():
    ink, scenes = TASKS["ink"], TASKS["scenes"]
    pictures = {"truth": ink.truth(N, 0), "other": ink.truth(N, 1), "train": ink.train(24, 0)}
    pictures |= {"base": scenes.truth(N, 2), "fresh": scenes.truth(N, 3)}
    return {name: picture.pixels for name, picture in pictures.items()}


def planted(drawn):
    """Sampler -> its pictures, and the largest value that it may get: 0 where nothing is left, a half where part is.

    `recipes/studies/planted_samplers.py` measures them beside a real base model's samples.
    """
    true, base, noise = drawn["other"], drawn["base"], torch.Generator().manual_seed(0)
    return {
        "pixel average": ((true + base) / 2, 0.5),
        "blur 2": (edit.gaussian_blur(true, [13, 13], [2.0, 2.0]), 0.5),
        "blur 5": (edit.gaussian_blur(true, [31, 31], [5.0, 5.0]), 0),
        "noise": ((true + torch.randn(true.shape, generator=noise) * 40 / 255).clamp(0, 1), 0.5),
        "mean image": (true.mean(0, keepdim=True).repeat(N, 1, 1, 1), 0),
        "blank": (torch.ones_like(true), 0),
        "pure noise": (torch.rand(true.shape, generator=noise), 0),
        "one picture": (true[:1].repeat(N, 1, 1, 1), 0.5),
        "dark": (true * 0.3, 0),
    }


def values(ruler, drawn):
    prompts = list(range(N))
    assert ruler.measure(drawn["base"], prompts).value.value == 0
    fresh, true = (ruler.measure(drawn[name], prompts).value for name in ("fresh", "other"))
    assert fresh.low - 0.05 <= 0 <= fresh.high + 0.05
    assert true.low <= 1 <= true.high
    mixed = torch.cat([drawn["other"][: N // 2], drawn["base"][N // 2 :]])
    assert ruler.measure(mixed, prompts).value.value == pytest.approx(0.5, abs=0.1)
    return {name: (ruler.measure(images, prompts).value.value, most) for name, (images, most) in planted(drawn).items()}


def test_no_damage_is_taken_for_learning_by_colour_and_texture(drawn):
    ruler = TaughtRuler(drawn["truth"], drawn["base"], list(range(N)), [ColourTexture()])
    above = {name: pair for name, pair in values(ruler, drawn).items() if not pair[0] <= pair[1]}
    assert not above


def test_training_images_serve_as_truth_and_are_worth_nothing_themselves(drawn):
    ruler = TaughtRuler(drawn["train"], drawn["base"], list(range(N)), [ColourTexture()])
    assert values(ruler, drawn)
    copies = drawn["train"][torch.arange(N) % 24]
    assert ruler.measure(copies, list(range(N)), [True] * N).value.value == 0


@pytest.mark.long
def test_with_the_network_neither_is_shuffling(drawn):
    if installed_weights() is None:
        pytest.skip("needs basinguard[taught]")
    rulers = [ColourTexture(), EfficientNetLite(installed_weights())]
    ruler = TaughtRuler(drawn["truth"], drawn["base"], list(range(N)), rulers)
    values_and_limits = values(ruler, drawn)
    assert all(value <= most for value, most in values_and_limits.values()), values_and_limits
    patches = torch.nn.functional.unfold(drawn["other"], 16, stride=16)
    order = torch.rand(N, 1, 16, generator=torch.Generator().manual_seed(0)).argsort(-1)
    shuffled = torch.nn.functional.fold(patches.gather(2, order.expand_as(patches)), (64, 64), 16, stride=16)
    assert ruler.measure(shuffled, list(range(N))).value.value <= 0.1
