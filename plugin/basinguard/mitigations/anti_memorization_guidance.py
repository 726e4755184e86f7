"""Chen et al., anti-memorization guidance: away from the nearest training image while the prediction resembles it.

Source: Chen et al., "Towards Memorization-Free Diffusion Models", CVPR 2024, arXiv 2404.00922. With x0 the clean
prediction (eq. 12), sigma its similarity to the nearest training image and y_N that image's caption:

    eps <- eps + [sigma > lambda_t] (G_spe + G_dup + G_sim)                              (eq. 10)
    G_spe = -s1 (eps(x, y) - eps(x)),      s1 = max(min(c1 sigma, s0 - 1), 0)            (eq. 13, 14)
    G_dup = -s2 (eps(x, y_N) - eps(x)),    s2 = max(min(c2 sigma, s0 - s1 - 1), 0)       (eq. 15, 16)
    G_sim = c3 sqrt(1 - abar_t) grad_x sigma                                             (eq. 17)

The paper's constants are in a supplement that could not be had, and its Stable Diffusion code was not available. So
intensity is c3; c1 = c2 = s0 / 2; lambda_t is the parabola lambda (1 - (t / T)^2) with lambda = 0.7 of the embedder's
copy threshold: lenient while x0 is a blur, as the paper describes. sigma is the similarity of the embedder that also
judges the copies (the paper: SSCD for both), which favours this mitigation.

Cost: for samples above lambda_t, three further evaluations and a backward pass through UNet, decoder and embedder; and
the training set's embeddings.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..diffusion.noise_schedule import to_clean
from ..guidance.core import combine, epsilon_factor
from ..similarity.embedder import features
from .base import Mitigation
from .stock_pipeline import Forward, Guide, empty, guided, sample_pipeline, states
from .testbed import Batch, Testbed

LENIENT = 0.7  # of the copy threshold


class TrainingSimilarity:
    """Clean predictions of one testbed and how near they are to training images."""

    def __init__(self, testbed: Testbed) -> None:
        self.testbed = testbed
        self.gallery = features(testbed.guard.gallery, testbed.guard.embedder)

    def clean(self, x: Tensor, timestep: Tensor, raw: Tensor) -> Tensor:
        """x0 of a raw prediction, eq. 12."""
        return to_clean(self.testbed.model.prediction_type, raw, x, *self.factors(timestep))

    def factors(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar) and sqrt(1 - abar) at a timestep."""
        schedule = self.testbed.model.schedule
        return schedule.signal(timestep), schedule.noise(timestep)

    def nearest(self, clean: Tensor) -> tuple[Tensor, Tensor]:
        """Similarity to the nearest training image and its index, both [B]; differentiable in the latents."""
        vae = self.testbed.pipe.vae
        pixels = vae.decode(clean / vae.config.scaling_factor, return_dict=False)[0]
        embedder = self.testbed.guard.embedder
        embeddings = features(embedder((pixels / 2 + 0.5).clamp(0, 1)), embedder)
        best = (embeddings @ self.gallery.to(embeddings).T).max(1)
        return best.values, best.indices


def guide(testbed: Testbed, intensity: float, forward: Forward) -> Guide:
    """The guided prediction of eq. 10, in the model's own parametrisation."""
    training, s0 = TrainingSimilarity(testbed), testbed.scale
    threshold = testbed.guard.embedder.metric.threshold
    captions = testbed.guard.training.captions

    def predict(x: Tensor, timestep: Tensor, text_states: Tensor, uncond: Tensor, cond: Tensor) -> Tensor:
        guided_raw = combine(uncond, cond, s0)
        similarity, index = training.nearest(training.clean(x, timestep, guided_raw))
        noisy = float(timestep) / len(testbed.model.schedule.alphas_cumprod)
        active = similarity > LENIENT * threshold * (1 - noisy**2)
        if not bool(active.any()):
            return guided_raw
        texts = Batch(tuple(captions[i] for i in index[active].tolist()), (0,) * int(active.sum()))
        neighbour = forward(x[active], timestep, states(testbed, texts))
        s1 = (s0 / 2 * similarity[active]).clamp(0, s0 - 1)
        s2 = torch.minimum(s0 / 2 * similarity[active], s0 - s1 - 1).clamp(min=0)
        change = -_rows(s1) * (cond - uncond)[active] - _rows(s2) * (neighbour - uncond[active])
        change = change + _away(training, forward, x[active], timestep, text_states[active], intensity)
        result = guided_raw.clone()
        result[active] += change
        return result

    return predict


def _away(
    training: TrainingSimilarity, forward: Forward, x: Tensor, timestep: Tensor, text_states: Tensor, c3: float
) -> Tensor:
    """G_sim, a change of epsilon, as one of the raw prediction."""
    _, noise = training.factors(timestep)
    with torch.enable_grad():
        start = x.detach().requires_grad_(True)
        both = torch.cat([empty(training.testbed, len(x)), text_states])
        uncond, cond = forward(torch.cat([start, start]), timestep, both).chunk(2)
        raw = combine(uncond, cond, training.testbed.scale)
        similarity, _ = training.nearest(training.clean(start, timestep, raw))
        (gradient,) = torch.autograd.grad(similarity.sum(), start)
    usable = torch.isfinite(gradient).flatten(1).all(1)  # a compressing embedder has none where a cell is exactly flat
    change = c3 * noise.to(x) * torch.where(_rows(usable), gradient, 0.0)
    return change / epsilon_factor(training.testbed.pipe.scheduler)(float(timestep))


def _rows(weight: Tensor) -> Tensor:
    return weight[:, None, None, None]


def _draw(testbed: Testbed, batch: Batch, intensity: float) -> Tensor:
    with guided(testbed.pipe, lambda forward: guide(testbed, intensity, forward)):
        return sample_pipeline(testbed, batch)


def _applies(testbed: Testbed) -> str:
    with torch.enable_grad():
        probe = torch.full((1, 3, 64, 64), 0.5, requires_grad=True)
        embedder = testbed.guard.embedder
        return "" if embedder(probe).requires_grad else f"the embedder {embedder.name!r} passes no gradient"


AMG = Mitigation(
    name="amg",
    source="Chen et al., CVPR 2024, arXiv 2404.00922, eq. 10-17",
    intensity="c3",
    intensities=(0.0, 10.0, 30.0, 100.0, 300.0),
    default=30.0,
    sampler=_draw,
    requires=_applies,
)
