"""Each method against its own equations, written out again by hand on small numbers."""

from dataclasses import replace

import pytest
import torch

from basinguard.calibration.candidate import Product, ProductCandidate
from basinguard.calibration.certification import Certification
from basinguard.core.record import Guidance
from basinguard.core.stats import rate
from basinguard.guidance.core import SwitchAt
from basinguard.mitigations import anti_memorization_guidance as amg
from basinguard.mitigations import delayed_guidance_released as released
from basinguard.mitigations import initial_noise, ours
from basinguard.mitigations.attention_attenuation import attenuate
from basinguard.mitigations.base import sample_mitigated
from basinguard.mitigations.cross_attention import cross_attention
from basinguard.mitigations.initial_noise import GAMMA, RHO, adjust_each, adjust_together, pull
from basinguard.mitigations.ours import calibrated
from basinguard.mitigations.prompt_optimization import optimise
from basinguard.mitigations.prompt_perturbation import insert_random_words, whole_words
from basinguard.mitigations.stock_pipeline import empty, guided, sample_pipeline, states
from basinguard.mitigations.summary_tokens import REN
from basinguard.training.loss_filters import LargeGap
from basinguard.training.peak_memory import LiveBytes
from support.testbeds import STEPS


def test_attention_with_nothing_changed_is_the_stock_attention(testbed, batch):
    plain = sample_pipeline(testbed, batch)
    with cross_attention(testbed.pipe.unet, lambda scores: scores):
        same = sample_pipeline(testbed, batch)
    assert torch.allclose(plain, same, atol=1e-4)


def test_ren_leaves_summary_tokens_unread(testbed, batch, monkeypatch):
    drawn, _ = sample_mitigated(testbed, REN, 1.25, batch)
    text_states = states(testbed, batch)
    lengths = [2 + len(testbed.pipe.tokenizer.tokenize(prompt)) for prompt in batch.prompts]
    for row, length in enumerate(lengths):
        text_states[row, length - 1 :] = 7.0  # what stands there must not matter

    def encoded(prompt, device, count, do_classifier_free_guidance, *args, **kwargs):
        return text_states, empty_states

    empty_states = empty(testbed, 2)
    monkeypatch.setattr(testbed.pipe, "encode_prompt", encoded)
    again, _ = sample_mitigated(testbed, REN, 1.25, batch)
    assert torch.allclose(drawn, again, atol=1e-5)


def test_guard_attenuates_only_tokens_that_stand_out():
    scores = torch.zeros(1, 1, 2, 5)
    scores[..., 0] = 9.0  # the begin token is left alone
    scores[0, 0, 1, 3] = 2.0
    changed = attenuate(scores)
    assert changed[0, 0, :, 3].tolist() == pytest.approx([0.0, 0.6])
    assert torch.equal(changed[..., [0, 1, 2, 4]], scores[..., [0, 1, 2, 4]])


def test_wen_reaches_its_target_and_keeps_the_begin_token(testbed, batch):
    text_states = states(testbed, batch)
    changed = optimise(testbed, batch, 0.5)

    def first_pull(embeddings):
        t = testbed.pipe.scheduler.timesteps[0]
        x = testbed.noise(batch)
        u = testbed.pipe.unet(x, t, empty(testbed, 2), return_dict=False)[0]
        return (testbed.pipe.unet(x, t, embeddings, return_dict=False)[0] - u).flatten(1).norm(dim=1)

    assert torch.equal(changed[:, 0], text_states[:, 0])
    assert bool((first_pull(changed) < first_pull(text_states)).all())


def test_the_training_filter_is_the_released_threshold_on_stable_diffusion():
    gaps = torch.tensor([1.9, 2.1]) / 128  # norms of 1.9 and 2.1 over 4 x 64 x 64 latents, as root mean squares
    assert LargeGap()(torch.zeros(2), torch.zeros(2), lambda: gaps).tolist() == [1, 0]


def test_han_batch_step_is_the_papers(testbed, batch, monkeypatch):
    monkeypatch.setattr(initial_noise, "TIMES", 1)
    denoise, x = testbed.model.denoiser(list(batch.prompts)), testbed.noise(batch)
    first = testbed.model.schedule.grid(STEPS)[:1]
    with torch.no_grad():
        d = pull(denoise, x, first)
        side = RHO * (4 * 16 * 16) ** 0.5 * d / d.flatten(1).norm(dim=1)[:, None, None, None]
        expected = x - GAMMA * (pull(denoise, x + side, first) - d)
        assert torch.allclose(adjust_together(testbed, batch), expected, atol=1e-6)


def test_han_per_sample_lowers_the_pull(testbed, batch):
    denoise, first = testbed.model.denoiser(list(batch.prompts)), testbed.model.schedule.grid(STEPS)[:1]
    x = adjust_each(testbed, batch, 0.5)
    with torch.no_grad():
        before = pull(denoise, testbed.noise(batch), first).flatten(1).norm(dim=1)
        after = pull(denoise, x, first).flatten(1).norm(dim=1)
    assert bool((after < before).all())


def test_amg_is_the_sum_of_its_three_guidances(testbed, batch, monkeypatch):
    monkeypatch.setattr(amg, "LENIENT", -1.0)  # always active
    x, t = testbed.noise(batch), testbed.model.schedule.grid(STEPS)[2]
    text_states = states(testbed, batch)

    def forward(latents, timestep, embeddings):
        return testbed.pipe.unet(latents, timestep, embeddings, return_dict=False)[0]

    with torch.no_grad():
        uncond, cond = forward(x, t, empty(testbed, 2)), forward(x, t, text_states)
        result = amg.guide(testbed, 5.0, forward)(x, t, text_states, uncond, cond)
        helper = amg.TrainingSimilarity(testbed)
        plain = uncond + 3.0 * (cond - uncond)
        similarity, index = helper.nearest(helper.clean(x, t, plain))
        captions = [testbed.guard.training.captions[i] for i in index]
        neighbour = forward(x, t, torch.cat([testbed.pipe.encode_prompt(c, "cpu", 1, False)[0] for c in captions]))
        s1 = (1.5 * similarity).clamp(0, 2.0)
        s2 = torch.minimum(1.5 * similarity, 2.0 - s1).clamp(min=0)
        linear = plain - s1[:, None, None, None] * (cond - uncond) - s2[:, None, None, None] * (neighbour - uncond)
    pushed = result - linear
    assert bool((pushed.flatten(1).norm(dim=1) > 0).all())
    with torch.no_grad():  # a small step along the push, in epsilon space, makes the clean prediction less similar
        signal, noise = helper.factors(t)
        step = 0.02 * pushed * signal / pushed.flatten(1).norm(dim=1)[:, None, None, None]
        moved = x - step / noise
        both = forward(torch.cat([moved, moved]), t, torch.cat([empty(testbed, 2), text_states])).chunk(2)
        later, _ = helper.nearest(helper.clean(moved, t, both[0] + 3.0 * (both[1] - both[0])))
    assert bool((later < similarity).all())


def test_released_static_script_on_its_own_grid_is_the_equation(own_testbed, batch, monkeypatch):
    """Without the finer grid, only sampler details are left; DDIM on one grid must give the same sample."""
    monkeypatch.setattr(released, "FINER", 1)
    own_testbed.pipe.scheduler = type(own_testbed.pipe.scheduler).from_config(
        own_testbed.pipe.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True
    )
    drawn, rows = sample_mitigated(own_testbed, released.STP_RELEASED, 650.0, batch)
    expected = sample_pipeline(own_testbed, batch, SwitchAt(650.0, 0.0, None))
    assert torch.allclose(drawn, expected, atol=1e-3)
    assert rows == len(batch) * (2 + 2 * 2)


def test_released_dynamic_script_refines_each_sample_from_where_it_fired(testbed, batch, monkeypatch):
    gaps = iter([[3.0, 3.0], [1.0, 2.0], [2.0, 1.0], [4.0]])

    def scripted(self, now):
        t = torch.full((len(self.rows),), now)
        return self.denoise(self.x, t, self.rows), torch.tensor(next(gaps))

    monkeypatch.setattr(released.RefinedTrajectories, "prediction_and_gap", scripted)
    refined = []
    refine = released.RefinedTrajectories.refine
    monkeypatch.setattr(
        released.RefinedTrajectories,
        "refine",
        lambda self, which, now: (refined.append((self.rows[which].tolist(), now)), refine(self, which, now))[1],
    )
    sample_mitigated(testbed, released.DTP_RELEASED, 0.0, batch)
    grid = testbed.model.schedule.grid(STEPS).tolist()
    assert refined == [([0], grid[2]), ([1], grid[3])]


def test_a_guide_replaces_the_prediction_of_the_pipeline(testbed, batch):
    expected = sample_pipeline(testbed, batch, SwitchAt(0.0, before=1.5, after=None))
    with guided(testbed.pipe, lambda forward: lambda x, t, text_states, u, c: u + 1.5 * (c - u)):
        drawn = sample_pipeline(testbed, batch)
    assert torch.allclose(drawn, expected, atol=1e-4)


def test_words_go_in_at_random_places_and_are_words(testbed):
    words = ["tree", "lake"]
    text = insert_random_words("a red ball", words, 3, seed=5)
    assert [w for w in text.split() if w not in words] == ["a", "red", "ball"]
    assert len(text.split()) == 6
    assert all(word.isalpha() for word in whole_words(testbed.pipe.tokenizer))


def rules(before, rows):
    return [tried(hits, Guidance(transition=t, sigma=1.0, before=before, after=3.0)) for t, hits in rows]


def tried(hits, guidance):
    risk = rate([1] * hits + [0] * (96 - hits), list(range(96)))
    rest = {"p_value": 0.0, "phase": "proof", "evals_per_sample": 1.0, "nearest": 0.0}
    return ProductCandidate(risk=risk, product=Product(guidance), **rest)


@pytest.mark.parametrize(("proven", "expected"), [((True, True, False), 600), ((False, False, False), 400)])
def test_ours_ships_the_boldest_proven_where_nothing_else_was_measured_else_the_safest(
    proven, expected, testbed, monkeypatch
):
    tested = rules(0.0, [(400, 0), (600, 2), (800, 60)])
    monkeypatch.setattr(Certification, "search", lambda work: [])
    monkeypatch.setattr(Certification, "rank", lambda work, searched: [])
    monkeypatch.setattr(ours, "chains", lambda *ranked: [])
    verdicts = [[replace(c, proven=verdict) for c, verdict in zip(tested, proven, strict=True)]]
    monkeypatch.setattr(Certification, "prove", lambda work, ladders: verdicts)
    chosen = calibrated(replace(testbed, cache={}), 0.1)
    assert (chosen.candidate.product.guidance.transition, chosen.proven) == (expected, any(proven))


def test_live_bytes_are_those_of_what_is_held_at_once():
    x = torch.zeros(1000)
    with LiveBytes() as living:
        a = x + 1
        b = a + 1
        del a
        c = b + 1
        x.view(10, 100)
    assert c.sum() == 3000
    assert living.peak == 8000
    assert living.now == 8000
