"""How much noise a timestep stands for, and epsilon from whatever a network predicts."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseSchedule:
    """A variance-preserving schedule: x_t = signal(t) * x_0 + noise(t) * eps, t = 0..T-1.

    Attributes:
        alphas_cumprod: signal(t)^2 for each training timestep, [T], float64.
    """

    alphas_cumprod: Tensor

    def signal(self, timestep: Tensor) -> Tensor:
        """Factor of the clean latents; 1 below timestep 0 (the end of sampling)."""
        return self._squared(timestep).sqrt()

    def noise(self, timestep: Tensor) -> Tensor:
        """Factor of the noise; 0 below timestep 0."""
        return (1 - self._squared(timestep)).sqrt()

    def sigma(self, timestep: Tensor | float) -> Tensor:
        """Noise level noise / signal; what transfers between schedulers."""
        t = torch.as_tensor(timestep, dtype=torch.float64)
        return self.noise(t) / self.signal(t)

    def timestep(self, sigma: float) -> float:
        """The training timestep whose noise level is nearest to `sigma`."""
        levels = self.sigma(torch.arange(len(self.alphas_cumprod)))
        return float((levels - sigma).abs().argmin())

    def grid(self, count: int) -> Tensor:
        """`count` timesteps from T-1 downwards, evenly spaced ("trailing" in diffusers' terms), [count], int64.

        Raises:
            ValueError: fewer than 1 or more than T steps asked for.
        """
        total = len(self.alphas_cumprod)
        if not 1 <= count <= total:
            raise ValueError(f"grid({count}): expected 1 to {total} sampling steps")
        return (torch.arange(total, 0, -total / count)[:count].round() - 1).long()

    def _squared(self, timestep: Tensor) -> Tensor:
        t = torch.as_tensor(timestep)
        squared = self.alphas_cumprod.to(t.device)[t.clamp(min=0).round().long()]
        return torch.where(t < 0, torch.ones_like(squared), squared)


NOISIEST = 1 - 1e-6  # sigma of a flow's first state: at 1 an epsilon prediction would say nothing about the image


@dataclass(frozen=True)
class FlowSchedule(NoiseSchedule):
    """A rectified flow: x_t = (1 - sigma) * x_0 + sigma * eps with sigma = t / 1000.

    At timestep 1000, where pipelines begin, sigma is a millionth below 1, which in float64 changes nothing that a
    pipeline's float32 could tell; this grid begins at 999, which is all that a rule can tell apart.

    Attributes:
        shift: bends the grid towards high noise, sigma' = shift * sigma / (1 + (shift - 1) * sigma).

    Source: Esser et al., arXiv 2403.03206, section 2 and eq. 23.
    """

    alphas_cumprod: Tensor = field(default_factory=lambda: (1 - torch.arange(1000, dtype=torch.float64) / 1000) ** 2)
    shift: float = 1.0

    def signal(self, timestep: Tensor) -> Tensor:
        """1 - sigma."""
        return 1 - self.noise(timestep)

    def noise(self, timestep: Tensor) -> Tensor:
        """sigma, from 0 (clean, also below timestep 0) to just below 1."""
        return (torch.as_tensor(timestep).double() / 1000).clamp(0, NOISIEST)

    def grid(self, count: int) -> Tensor:
        """`count` timesteps from 999 downwards, evenly spaced before the shift, [count], float64."""
        super().grid(count)
        sigma = torch.arange(count, 0, -1, dtype=torch.float64) / count
        return (1000 * self.shift * sigma / (1 + (self.shift - 1) * sigma)).clamp(max=999)


def rule_timesteps(timesteps: Tensor) -> Tensor:
    """Grid timesteps as rules, exits and records count them: at most 999, also where a flow begins at 1000.

    Example:
        >>> rule_timesteps(torch.tensor([1000.0, 750.0])).tolist()
        [999.0, 750.0]
    """
    return timesteps.clamp(max=999)


def to_epsilon(kind: str, output: Tensor, x: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """The epsilon prediction in what a network of another parametrisation returned, [B, ...].

    Args:
        kind: "epsilon", "v_prediction", "sample" (x_0) or "flow_prediction" (velocity eps - x_0).
        output: of the network, [B, ...].
        x: what it was given, [B, ...].
        signal, noise: factors of each row, [B].

    Raises:
        ValueError: an unknown kind.

    `guidance.core.epsilon_factor` is the share of it that a difference of two outputs needs, where `x` drops out: the
    shipped file has no schedules, and the factor here would cost the last bit (`(x - a * output) / s`).

    Source: Salimans and Ho, arXiv 2202.00512, appendix D.
    """
    a, s = _shaped(x, signal, noise)
    forms = {
        "epsilon": lambda: output,
        "v_prediction": lambda: a * output + s * x,
        "sample": lambda: (x - a * output) / s,
        "flow_prediction": lambda: (x + a * output) / (a + s),
    }
    if kind not in forms:
        raise ValueError(f"prediction type {kind!r} is not supported; accepted: {', '.join(forms)}")
    return forms[kind]()


def to_clean(kind: str, output: Tensor, x: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """The clean latents that a network's output stands for, [B, ...]; arguments and source as of `to_epsilon`."""
    a, s = _shaped(x, signal, noise)
    return (x - s * to_epsilon(kind, output, x, signal, noise)) / a


def _shaped(x: Tensor, *factors: Tensor) -> list[Tensor]:
    """Factors [B] as they multiply rows of x [B, ...]."""
    return [factor.to(x).reshape(-1, *[1] * (x.ndim - 1)) for factor in factors]
