"""A leaky memorizer in closed form: the ground truth for guidance, basins, exits and calibration.

The data are N points; the model is the exact posterior mean over them. Prompt k puts prior 1 - leak on point k and
spreads the rest evenly, the empty prompt weighs all points alike. Denoisers, basin and exit have formulas, so every
measurement of this package can be held against the truth in milliseconds, without a network.

Source: the posterior-mean ("ideal") denoiser of a finite set, Karras et al., arXiv 2206.00364, appendix B.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .noise_schedule import NoiseSchedule
from .sampling import EMPTY


@dataclass(frozen=True)
class Memorizer:
    """The exact denoiser of N points, with a prompt for each.

    Attributes:
        points: the training images, [N, D].
        leak: prior mass a prompt leaves to all other points, in (0, 1).
        schedule: maps timesteps to noise levels.
    """

    points: Tensor
    leak: float
    schedule: NoiseSchedule

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or len(self.points) < 2:
            raise ValueError(f"Memorizer needs points [N >= 2, D], got shape {tuple(self.points.shape)}")
        if not 0 < self.leak < 1:
            raise ValueError(f"Memorizer(leak={self.leak}): expected a prior mass in (0, 1)")

    def __call__(self, x: Tensor, timestep: Tensor, prompt: Tensor) -> Tensor:
        """Epsilon prediction of each row, [B, D]; see `sampling.Denoiser`."""
        signal = self.schedule.signal(timestep).to(x.dtype)[:, None]
        noise = self.schedule.noise(timestep).to(x.dtype)[:, None]
        square = torch.cdist(x / signal, self.points.to(x)).square()
        weight = torch.softmax(self._log_prior(prompt).to(x.dtype) - square / (2 * (noise / signal) ** 2), dim=1)
        return (x - signal * (weight @ self.points.to(x))) / noise

    def _log_prior(self, prompt: Tensor) -> Tensor:
        n = len(self.points)
        prior = torch.full((len(prompt), n), math.log(self.leak / (n - 1)), dtype=torch.float64)
        prior[prompt == EMPTY] = -math.log(n)
        prompted = prompt != EMPTY
        prior[prompted, prompt[prompted]] = math.log1p(-self.leak)
        return prior

    def nearest(self, x: Tensor) -> Tensor:
        """Index of the point nearest to each row, [B]."""
        return torch.cdist(x, self.points.to(x)).argmin(1)

    def exit_sigma(self, prompt: int, near: Tensor) -> Tensor:
        """Noise level at which the prompt's prior stops outweighing a state near another point, in closed form, [B].

        At y = x_j + sigma * n the log-odds of point k against j are log((1 - leak)(N - 1) / leak) - |x_k - x_j|^2 /
        (2 sigma^2) in expectation; they vanish at sigma^2 = |x_k - x_j|^2 / (2 log((1 - leak)(N - 1) / leak)). With
        guidance switched on above that level the conditional prediction still points to x_k, below it no longer does.

        Args:
            prompt: index k of the prompt.
            near: clean points the unguided trajectory heads for, [B, D].
        """
        odds = math.log((1 - self.leak) * (len(self.points) - 1) / self.leak)
        return (near - self.points[prompt]).norm(dim=1) / math.sqrt(2 * odds)


def two_points(
    distance: float, leak: float, dim: int = 4, seed: int = 0, schedule: NoiseSchedule | None = None
) -> Memorizer:
    """A memorizer of two points: the one whose exits are known exactly, see `exact_exits`."""
    direction = torch.randn(dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    half = direction / direction.norm() * distance / 2
    return Memorizer(torch.stack([half, -half]), leak, schedule or stable_diffusion_schedule())


def exact_exits(toy: Memorizer, noise: Tensor, scale: float, steps: int = 300) -> Tensor:
    """Exact exit of prompt 0 of a two-point memorizer for each noise, as a noise level, [B].

    Between two points only the position q along the line that joins them matters (0 at the other point, 1 at the
    prompt's). With delta = |x_0 - x_1| / sigma the log-odds are l = delta^2 (q - 1/2), plus log((1 - leak) / leak) with
    the prompt, the guided prediction is g = p_u + scale (p_c - p_u), p = 1 / (1 + exp(-l)), and dq / d(-log sigma) =
    g - q. This integrates that line for guidance from every noise level on. It knows of x / signal and of sigma alone,
    so it is the same for a flow, whose sigma is t / (1000 - t); that of its timestep 0 is 0, so it ends at 1.

    Returns:
        The lowest noise level from which guidance ends at the prompt's point; infinite where even guidance from the
        start does not, 0 where the unguided trajectory does.

    Source: the probability-flow ODE of a finite set, Karras et al., arXiv 2206.00364, eq. 3 and appendix B.3.
    """
    if len(toy.points) != 2:
        raise ValueError(f"exact_exits is for two points, the memorizer has {len(toy.points)}")
    span = toy.points[0] - toy.points[1]
    levels = toy.schedule.sigma(torch.tensor([999, 1, 0]))
    far, ends = float(span.norm()), levels[levels > 0][[0, -1]]
    levels = torch.linspace(float(ends[0].log()), float(ends[1].log()), steps + 1, dtype=torch.float64)
    top = torch.tensor(999)
    y = noise.double() * toy.schedule.noise(top) / toy.schedule.signal(top)
    odds = math.log((1 - toy.leak) / toy.leak)
    begins = torch.arange(steps + 1)[:, None]  # guidance from this step on; the last row is never guided

    def slope(q: Tensor, level: Tensor, weight: Tensor) -> Tensor:
        log_odds = (far / level.exp()) ** 2 * (q - 0.5)
        p_u, p_c = torch.sigmoid(log_odds), torch.sigmoid(log_odds + odds)
        return p_u + weight * (p_c - p_u) - q

    q = ((y - toy.points[1]) @ span / far**2)[None]
    for index in range(steps):
        q = torch.cat([q, q[-1:]])  # one more that is guided from here on: until now it was the last, which never is
        weight = torch.where(begins[: index + 2] <= index, scale, 0.0)
        now, then = levels[index], levels[index + 1]
        half, whole = (now - then) / 2, now - then
        k1 = slope(q, now, weight)
        k2 = slope(q + half * k1, (now + then) / 2, weight)
        k3 = slope(q + half * k2, (now + then) / 2, weight)
        q = q + whole / 6 * (k1 + 2 * k2 + 2 * k3 + slope(q + whole * k3, then, weight))
    reached = q > 0.5
    lowest = (reached * (begins + 1)).max(0).values - 1
    exits = torch.where(lowest < 0, torch.inf, levels[lowest.clamp(min=0)].exp())
    return torch.where(reached[-1], 0.0, exits)


def stable_diffusion_schedule() -> NoiseSchedule:
    """The schedule of Stable Diffusion: scaled-linear betas 0.00085 to 0.012 over 1000 timesteps."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return NoiseSchedule(torch.cumprod(1 - betas, 0))


def gaussian_memorizer(count: int = 64, dim: int = 32, leak: float = 1e-3, seed: int = 0) -> Memorizer:
    """A memorizer of `count` standard normal points in `dim` dimensions.

    Example:
        >>> from basinguard.guidance.core import Constant
        >>> from basinguard.diffusion.sampling import draw_noise, final, sample_trajectory
        >>> toy = gaussian_memorizer()
        >>> x, prompt = draw_noise(range(8), (32,)), torch.zeros(8, dtype=torch.long)
        >>> grid = toy.schedule.grid(50)
        >>> toy.nearest(final(sample_trajectory(toy, x, prompt, toy.schedule, grid, Constant(7.5)))).tolist()
        [0, 0, 0, 0, 0, 0, 0, 0]
    """
    points = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return Memorizer(points, leak, stable_diffusion_schedule())
