"""Attacks on Gaussian data, whose trajectories have a formula, and on a memorizer that must give itself away."""

import math

import pytest
import torch

from basinguard.attacks.captions import HIGH, reword, truncate
from basinguard.attacks.clusters import centre, clusters
from basinguard.attacks.extraction import attack_pairs, extract
from basinguard.attacks.extrapolation import extrapolated, sample_extrapolated
from basinguard.attacks.image_to_image import noised, sample_from_picture, start_of
from basinguard.attacks.inversion import inverted, sample_inverted
from basinguard.attacks.registry import ATTACKS
from basinguard.attacks.target import Attacker, Target
from basinguard.basin.trajectories import Pairs
from basinguard.diffusion.sampling import draw_noise
from basinguard.diffusion.toy import gaussian_memorizer, stable_diffusion_schedule
from basinguard.guidance.core import Constant, SwitchAt
from support.toy_guard import STRONG, Points, make_guard

SAME = gaussian_memorizer(count=64, dim=12, leak=63 / 64)  # every prompt weighs all points alike
STEPS = 400  # DDIM is of first order: with so many steps it is within 1 % of the flow's formula
NAMES = {attack.name + ", " + attack.setting: attack for attack in ATTACKS}


class Gaussians:
    """Data N(mean of the caption, 1): eps = noise (x - signal mean), and x - signal mean stays as it is on its way."""

    latent_shape = (12,)
    schedule = stable_diffusion_schedule()

    def __init__(self, means):
        self.means = torch.tensor([*means, 0.0])

    def denoiser(self, prompts):
        row = torch.tensor([int(text.split()[-1]) for text in prompts] + [len(self.means) - 1])

        def denoise(x, t, p):
            signal, noise = (f(t).to(x)[:, None] for f in (self.schedule.signal, self.schedule.noise))
            return noise * (x - signal * self.means[row[p]][:, None])

        return denoise

    def encode(self, images):
        return images.flatten(1)

    def decode(self, latents):
        return latents.reshape(-1, 3, 2, 2)


def attacker_of(means, base=None, rule=None, timesteps=STEPS):
    return Attacker(Target("tuned", Gaussians(means), rule, base), make_guard(heldout=(), timesteps=timesteps))


def first_signal(attacker, start=0):
    guided = attacker.guided(())
    return float(guided.schedule.signal(guided.timesteps[start]))


@pytest.fixture
def pairs():
    return Pairs(torch.tensor([1, 3]), torch.tensor([5, 6]), draw_noise([5, 6], (12,)))


def test_extrapolation_goes_w_times_as_far_as_the_fine_tune(pairs):
    attacker = attacker_of((0.0, 0.5, 0.0, -0.3), base=Gaussians((9.0,)))
    signal = first_signal(attacker)
    ends = sample_extrapolated(5.0, 0.0, attacker, pairs)
    expected = pairs.noise + (1 - signal) * 5 * torch.tensor([[0.5], [-0.3]])
    torch.testing.assert_close(ends, expected, atol=0.03, rtol=0)
    assert attacker.count.total == 2 * 2 * STEPS, "the base's and the target's evaluations are both counted"


def test_the_formula_of_extrapolation():
    base, tuned = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.0])
    assert extrapolated(base, tuned, 3.0, -0.02).tolist() == pytest.approx([3.98, -4.04])


def test_a_picture_that_is_noised_half_way_goes_on_from_there(pairs):
    attacker = attacker_of((0.0, 0.5, 0.0, -0.3))
    start = start_of(0.5, STEPS)
    signal = first_signal(attacker, start)
    picture = attacker.guard.training.images[pairs.prompt].flatten(1)
    begin = noised(attacker.guided(()), picture, pairs.noise, start)
    torch.testing.assert_close(begin, signal * picture + math.sqrt(1 - signal**2) * pairs.noise)
    mean = attacker.scale * torch.tensor([[0.5], [-0.3]])  # guidance on a mean of 0 multiplies it
    expected = begin + (1 - signal) * mean
    torch.testing.assert_close(sample_from_picture(0.5, attacker, pairs), expected, atol=0.02, rtol=0)


def test_inversion_finds_the_noise_of_a_picture_by_formula():
    attacker = attacker_of((0.0,), base=Gaussians((0.7,)))
    picture = torch.linspace(-1, 1, 12)[None]
    noise = inverted(attacker.base(), picture)
    torch.testing.assert_close(noise, picture, atol=0.01, rtol=0)  # the base's own mean without a prompt is 0


def test_what_is_inverted_by_the_base_is_sampled_under_the_caption():
    attacker = attacker_of((0.0, 0.5, 0.0, -0.3), base=Gaussians((0.0,)))
    twice = Pairs(torch.tensor([3, 1, 3]), torch.arange(3), torch.zeros(3, 12))
    ends, signal = sample_inverted(attacker, twice), first_signal(attacker)
    picture = attacker.guard.training.images[twice.prompt].flatten(1)
    expected = picture + (1 - signal) * attacker.scale * torch.tensor([[-0.3], [0.5], [-0.3]])
    torch.testing.assert_close(ends, expected, atol=0.03, rtol=0)
    assert attacker.count.total == 2 * STEPS * (1 + 2), "two pictures: one evaluation inwards, two outwards"


def test_a_targets_rule_has_the_last_word(pairs):
    free, ruled = attacker_of((0.0, 0.5, 0.0, -0.3)), attacker_of((0.0, 0.5, 0.0, -0.3), rule=Constant(1.0))
    for scale in (2.0, 20.0):
        ends = ruled.sample(ruled.captions, pairs.prompt, pairs.noise, scale=scale)
        torch.testing.assert_close(ends, free.sample(free.captions, pairs.prompt, pairs.noise, scale=1.0))
    switched = attacker_of((0.0, 0.5, 0.0, -0.3), rule=SwitchAt(999, 0.0, None))
    ends = switched.sample(switched.captions, pairs.prompt, pairs.noise)
    torch.testing.assert_close(ends, free.sample(free.captions, pairs.prompt, pairs.noise))


@pytest.mark.parametrize("name", NAMES)
def test_a_cost_is_what_an_attack_takes(name):
    attack, target = NAMES[name], Target("tuned", Texts(), base=Texts())
    guard = make_guard(heldout=(), timesteps=8)
    pairs = attack_pairs(Attacker(target, guard), 0, 4)
    evaluations = extract(attack, target, guard, pairs).evaluations
    assert evaluations <= 4 * attack.cost(8)
    assert evaluations >= (4 if attack.name != "empty prompt" else 2) * attack.cost(8) // (2 if "empty" in name else 1)


class Texts(Points):
    """Points whose captions may be said otherwise: the last word that is a number counts."""

    def denoiser(self, prompts):
        numbers = [next((word for word in text.split()[::-1] if word.isdigit()), "-1") for text in prompts]
        return super().denoiser([f"point {number}" for number in numbers])


@pytest.mark.parametrize("name", NAMES)
def test_every_attack_works_on_a_memorizer_and_only_by_chance_on_its_base(name):
    """To the base every prompt says the same, so it draws one of the 4 training points among 64 now and then."""
    attack, guard = NAMES[name], make_guard(heldout=(), timesteps=20, scale=2.0)
    tuned, bare = Target("tuned", Texts(), base=Texts(SAME)), Target("base", Texts(SAME), base=Texts(SAME))
    pairs = attack_pairs(Attacker(tuned, guard), 0, 12)
    aimed, chance = extract(attack, tuned, guard, pairs), extract(attack, bare, guard, pairs)
    blind = attack.name in ("empty prompt", "truncated captions")  # nothing is left that names a point
    assert (aimed.copies.value < 0.4) if blind else (aimed.copies.value > 0.9)
    assert len(aimed.extracted) == round(12 * aimed.copies.value)
    assert chance.copies.value < 0.4 or attack.image


def test_the_rule_of_a_deployment_leaves_no_weights_to_attack():
    ruled = Target("guarded", Points(), rule=Constant(1.0))
    refused = [attack.name for attack in ATTACKS if attack.missing_requirement(ruled)]
    assert sorted(set(refused)) == ["extrapolation (FineXtract)", "high scale"]
    with pytest.raises(ValueError, match="high scale on guarded: needs the weights"):
        extract(NAMES[f"high scale, {HIGH:g} times the usual scale"], ruled, make_guard(), None)


def test_captions_are_said_otherwise():
    assert reword("a plain moon with eyes") == "with eyes a plain moon"
    assert truncate("one two three four five") == "one two"


def test_clusters_are_groups_of_which_every_two_agree():
    near = torch.eye(7)
    for group in ((0, 1, 2), (3, 4), (2, 5)):  # 2 and 5 agree, but 5 agrees with none of the others
        for i in group:
            for j in group:
                near[i, j] = 0.8
    near[0, 1] = near[1, 0] = 0.9
    assert clusters(near, 0.75) == [[0, 1, 2]]
    assert clusters(near, 0.75, least=2) == [[0, 1, 2], [3, 4]]
    assert centre(near, [0, 1, 2]) in (0, 1)
    assert clusters(torch.eye(3), 0.75) == []


def test_an_extrapolated_memory_is_told_from_an_invention_by_agreement():
    attack = next(attack for attack in ATTACKS if attack.clustered)
    guard = make_guard(heldout=(), timesteps=20)
    target = Target("tuned", Points(STRONG), base=Points(SAME))
    pairs = attack_pairs(Attacker(target, guard), 0, 4, attack.per_caption)
    assert (pairs.prompt.bincount().tolist(), len(set(pairs.seed.tolist()))) == ([4] * 4, 16)
    extraction = extract(attack, target, guard, pairs)
    assert extraction.note == "4 clusters, 4 of their centres are copies"
    assert extraction.images == (0, 1, 2, 3)
