"""A rule inside Z-Image's pipeline, which evaluates both branches in one call, as lists and the conditional one first.

Its timesteps count upwards from 0 (noise) to 1, and it guides by `cond + g * (cond - uncond)`: scale g + 1 here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..guidance.core import Steering


@dataclass
class ListSteering(Steering):
    """`Steering` for lists of frames [C, 1, h, w], times and captions, in the order [cond, uncond].

    Attributes:
        scheduler: of the pipeline; knows the timesteps to the last bit, which the model is told only nearly.
    """

    scheduler: Any = None

    def before(self, module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Takes the half that no row needs out of the three lists."""
        frames, times, captions, *rest = args
        order = _swapped(torch.arange(len(frames)))
        (rows, _), _ = super().before(module, (order, self._timestep_of(times)), {})
        if len(rows) == len(frames):
            return args, kwargs
        own = rows.tolist()
        return ([frames[k] for k in own], times[own], [captions[k] for k in own], *rest), kwargs

    def after(self, module: Any, args: tuple, kwargs: dict, output: Any) -> Any:
        """Rewrites the predictions, or doubles them where one half was evaluated."""
        frames = torch.stack(list(output[0]))
        both = frames if self._lone is not None else _swapped(frames)
        (bent,) = super().after(module, args, kwargs, (both,))
        return (list(_swapped(bent).unbind()), *output[1:])

    def _timestep_of(self, times: Tensor) -> Tensor:
        own = self.scheduler.timesteps
        return own[(own - (1000 - 1000 * times[0]).to(own)).abs().argmin()]


def _swapped(rows: Tensor) -> Tensor:
    """The second half first."""
    return torch.cat(list(reversed(rows.chunk(2))))
