"""What is predicted and how it is weighted: closed form, and diffusers' own functions."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler
from diffusers.training_utils import compute_snr

from basinguard.pipelines.forward_process import target, training_schedule
from basinguard.training.objective import min_snr_weights, random_timesteps, weighted_mse

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
EVERY = torch.arange(1000)


@pytest.mark.parametrize("kind", [DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler])
def test_the_forward_process_is_the_samplers(kind):
    sampler = kind(**BETAS, prediction_type="v_prediction")
    schedule = training_schedule(sampler)
    assert torch.equal(schedule.alphas_cumprod, sampler.alphas_cumprod)
    assert schedule.config.prediction_type == "v_prediction"


def test_trained_betas_are_kept():
    betas = torch.linspace(1e-4, 0.02, 1000).tolist()
    sampler = DDIMScheduler(trained_betas=betas, prediction_type="v_prediction")
    assert torch.equal(training_schedule(sampler).alphas_cumprod, sampler.alphas_cumprod)


def test_another_prediction_type_is_refused():
    with pytest.raises(ValueError, match=r"'sample' of the scheduler; accepted: \('epsilon', 'v_prediction'\)"):
        training_schedule(DDIMScheduler(prediction_type="sample"))


def test_targets_are_noise_and_velocity():
    latents, noise = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    t = torch.tensor([10, 900])
    assert target(DDPMScheduler(**BETAS), latents, noise, t) is noise
    schedule = DDPMScheduler(**BETAS, prediction_type="v_prediction")
    signal = schedule.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    closed = signal.sqrt() * noise - (1 - signal).sqrt() * latents  # Salimans and Ho 2022, appendix D
    torch.testing.assert_close(target(schedule, latents, noise, t), closed, rtol=0, atol=1e-6)


@pytest.mark.parametrize("gamma", [1.0, 5.0, 1e9])
def test_min_snr_weights_equal_the_closed_form(gamma):
    epsilon, v = DDPMScheduler(**BETAS), DDPMScheduler(**BETAS, prediction_type="v_prediction")
    snr = compute_snr(epsilon, EVERY)
    capped = snr.clamp(max=gamma)
    torch.testing.assert_close(min_snr_weights(epsilon, EVERY, gamma), capped / snr, rtol=1e-4, atol=0)
    torch.testing.assert_close(min_snr_weights(v, EVERY, gamma), capped / (snr + 1), rtol=1e-4, atol=0)


def test_both_forms_weigh_the_same_image_error():
    """Hang et al.: whatever is predicted, the error of x0 counts min(SNR, gamma) times."""
    latents, noise, wrong = torch.randn(3, 3, 4, 8, 8, dtype=torch.float64).unbind()
    t = torch.tensor([50, 500, 950])
    losses = []
    for kind in ("epsilon", "v_prediction"):
        schedule = DDPMScheduler(**BETAS, prediction_type=kind)
        signal = schedule.alphas_cumprod[t].double().reshape(-1, 1, 1, 1)
        noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        noise_of_wrong = (noisy - signal.sqrt() * wrong) / (1 - signal).sqrt()
        guess = noise_of_wrong if kind == "epsilon" else signal.sqrt() * noise_of_wrong - (1 - signal).sqrt() * wrong
        truth = noise if kind == "epsilon" else signal.sqrt() * noise - (1 - signal).sqrt() * latents
        losses.append(weighted_mse(guess, truth, min_snr_weights(schedule, t, 5.0)))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=0)


def test_zero_terminal_snr_gives_finite_weights():
    for kind in ("epsilon", "v_prediction"):
        schedule = DDPMScheduler(**BETAS, prediction_type=kind, rescale_betas_zero_snr=True)
        weights = min_snr_weights(schedule, EVERY, 5.0)
        assert torch.isfinite(weights).all()
        assert (weights >= 0).all()
        assert (weights <= 1).all()


def test_weights_of_one_change_nothing():
    a, b = torch.randn(2, 3, 4, 5, 5).unbind()
    torch.testing.assert_close(weighted_mse(a, b, torch.ones(3)), weighted_mse(a, b))
    assert weighted_mse(a, b) == torch.nn.functional.mse_loss(a, b)


def test_high_noise_is_trained_as_often_as_asked_for():
    """Closed form: 400 of 1000 timesteps at a quarter of the density weigh 100 of 700; uniform stays bit-equal."""
    schedule, cpu = DDPMScheduler(), torch.device("cpu")
    torch.manual_seed(0)
    drawn = random_timesteps(schedule, 20_000, cpu, high_noise=0.25)
    assert (drawn >= 600).float().mean() == pytest.approx(1 / 7, abs=0.01)
    below = torch.bincount(drawn[drawn < 600] // 100).float() / (drawn < 600).sum()
    assert below.tolist() == pytest.approx(6 * [1 / 6], abs=0.02)
    torch.manual_seed(1)
    uniform = random_timesteps(schedule, 8, cpu)
    torch.manual_seed(1)
    assert torch.equal(uniform, torch.randint(0, 1000, (8,)))
