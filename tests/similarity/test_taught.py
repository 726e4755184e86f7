import numpy as np
import pytest
import torch

from basinguard.similarity.energy_distance import energy_distance
from basinguard.similarity.taught import TaughtRuler, taught_difference, taught_formula


class Means:
    """The mean colour as the only features: distances in closed form."""

    name = "means"

    def __call__(self, images):
        return {"mean": images.mean((2, 3))}


class Spreads:
    name = "spreads"

    def __call__(self, images):
        return {"spread": images.std((2, 3))}


def pictures(n, level, seed, spread=0.02):
    generator = torch.Generator().manual_seed(seed)
    colours = (level + spread * torch.randn(n, 3, generator=generator)).clamp(0, 1)
    return colours[:, :, None, None].expand(n, 3, 16, 16).contiguous()


TRUTH, BASE, PROMPTS = pictures(24, 0.8, 0), pictures(32, 0.2, 1), [f"prompt {k}" for k in range(32)]


@pytest.fixture(scope="module")
def ruler():
    return TaughtRuler(TRUTH, BASE, PROMPTS, [Means()])


def test_the_formula_keeps_the_sign_of_a_distance_below_zero():
    assert taught_formula(torch.tensor([-1.0, 0, 1, 4]), torch.tensor(4.0)).tolist() == [1.5, 1, 0.5, 0]


def test_the_base_model_has_nothing_and_truth_everything(ruler):
    assert ruler.measure(BASE, PROMPTS).value.value == 0
    fresh = ruler.measure(pictures(32, 0.2, 5), PROMPTS).value
    assert fresh.low <= 0 <= fresh.high
    assert fresh.high - fresh.low < 0.1
    true = ruler.measure(pictures(32, 0.8, 6), PROMPTS).value
    assert true.low <= 1 <= true.high
    assert true.value == pytest.approx(1, abs=0.1)


def test_the_value_is_the_formula_of_unbiased_distances(ruler):
    samples = pictures(32, 0.5, 7)
    both = torch.cat([TRUTH, BASE]).mean((2, 3)).double()
    truth, base, drawn = ((v.mean((2, 3)).double() - both.mean(0)) / both.std(0, correction=0)
                          for v in (TRUTH, BASE, samples))  # fmt: skip
    distances = [torch.tensor(energy_distance(x, truth)) for x in (drawn, base)]
    expected = float(taught_formula(*distances))
    assert ruler.measure(samples, PROMPTS).value.value == pytest.approx(expected, abs=1e-6)  # features are float32


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_mixtures_are_linear(ruler, share):
    n = round(share * 32)
    mixed = torch.cat([pictures(n, 0.8, 8), pictures(32 - n, 0.2, 9)])
    assert ruler.measure(mixed, PROMPTS).value.value == pytest.approx(share, abs=0.05)


def test_copies_count_as_nothing(ruler):
    true = pictures(32, 0.8, 6)
    plain = ruler.measure(true, PROMPTS)
    half = ruler.measure(true, PROMPTS, [True] * 16 + [False] * 16)
    assert half.copies == 0.5
    assert half.value.value == pytest.approx(plain.value.value / 2)
    assert half.rulers["means"].value == pytest.approx(plain.rulers["means"].value / 2)


def test_the_smallest_ruler_counts_and_each_stands_beside_it():
    texture = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    truth = (TRUTH + 0.1 * (texture - 0.5)).clamp(0, 1)
    ruler = TaughtRuler(truth, BASE, PROMPTS, [Means(), Spreads()])
    result = ruler.measure(pictures(32, 0.8, 6), PROMPTS)  # the right colour and no grain
    assert result.rulers["means"].value > 0.8
    assert result.rulers["spreads"].value < 0.1
    assert result.value.value == result.rulers["spreads"].value
    assert set(result.groups) == {"means", "spreads"}


def test_seeds_of_one_prompt_weigh_as_one(ruler):
    samples = pictures(32, 0.5, 7)
    doubled = ruler.measure(samples.repeat(2, 1, 1, 1), PROMPTS * 2)
    assert doubled.value == ruler.measure(samples, PROMPTS).value


def test_some_of_the_prompts_are_held_against_the_base_of_the_same_ones(ruler):
    some = ruler.measure(BASE[:10], PROMPTS[:10])
    assert some.value.value == 0
    assert some.value.n == 10


def test_differences_are_paired(ruler):
    first = ruler.measure(pictures(32, 0.5, 7), PROMPTS)
    second = ruler.measure((pictures(32, 0.5, 7) + 0.01), PROMPTS)
    paired = taught_difference(second, first)
    assert paired.value == pytest.approx(second.value.value - first.value.value)
    assert 0 < paired.low < paired.high < 0.1
    assert paired.high - paired.low < (first.value.high - first.value.low) / 2
    with pytest.raises(ValueError, match="32 and 10 prompts"):
        taught_difference(first, ruler.measure(BASE[:10], PROMPTS[:10]))


def test_what_cannot_be_told_apart_has_no_value():
    ruler = TaughtRuler(pictures(8, 0.5, 0), pictures(8, 0.5, 1), PROMPTS[:8], [Means()])
    result = ruler.measure(BASE[:8], PROMPTS[:8])
    assert result.value is None
    assert not result.resolved
    assert "cannot be told from 8 true images at level 0.05 (means: p = 0." in result.reason
    with pytest.raises(ValueError, match="a value is missing"):
        taught_difference(result, result)


def test_a_ruler_that_sees_no_difference_is_left_out_and_named():
    ruler = TaughtRuler(TRUTH, BASE, PROMPTS, [Means(), Spreads()])
    result = ruler.measure(pictures(32, 0.8, 6), PROMPTS)
    assert list(result.rulers) == ["means"]
    assert "spreads: p = " in result.reason


@pytest.mark.parametrize("images", [1, 2])
def test_two_images_are_too_few(images):
    assert not TaughtRuler(TRUTH[:images], BASE, PROMPTS, [Means()]).measure(BASE, PROMPTS).resolved


def test_one_prompt_with_many_seeds():
    ruler = TaughtRuler(TRUTH[:5], BASE[:8], ["a photo of sks dog"] * 8, [Means()])
    result = ruler.measure(pictures(8, 0.8, 3), ["a photo of sks dog"] * 8)
    assert result.value.n == 5
    assert result.value.value == pytest.approx(1, abs=0.15)
    assert result.value.low < result.value.value


def test_what_does_not_fit_is_refused(ruler):
    with pytest.raises(ValueError, match="no sample of the base model for 'another'"):
        ruler.measure(BASE[:1], ["another"])
    with pytest.raises(ValueError, match="32 samples, 31 prompts"):
        ruler.measure(BASE, PROMPTS[1:])
    with pytest.raises(ValueError, match="0 feature sets"):
        TaughtRuler(TRUTH, BASE, PROMPTS, [])


@pytest.mark.long
def test_the_interval_covers_what_it_promises():
    # 200 samplers of known taught 0.5 (the colour halfway is a mixture of means at 0.5), n = 16 prompts, 12 images
    covered = 0
    for seed in range(200):
        truth, base = pictures(12, 0.8, 3 * seed), pictures(16, 0.2, 3 * seed + 1)
        drawn = torch.cat([pictures(8, 0.8, 3 * seed + 2), pictures(8, 0.2, 90_000 + seed)])
        mixed = drawn[np.random.default_rng(seed).integers(16, size=16)]  # a mixture: the share is random too
        value = TaughtRuler(truth, base, PROMPTS[:16], [Means()]).measure(mixed, PROMPTS[:16]).value
        covered += value.low <= 0.5 <= value.high
    assert covered >= 0.9 * 200
