"""TODO one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..basin.exit_search import Judge
from ..basin.trajectories import GuidedModel, Pairs
from ..core import stats
from ..core.estimate import Estimate
from ..diffusion.sampling import Denoiser, draw_noise
from .candidate import Setting

Align = Callable[[Tensor, Tensor], Tensor]  # clean latents [B, ...] and prompts [B] -> agreement [B]


@dataclass(frozen=True)
class Trial:
    """What rules are measured on.

    Attributes:
        probe: the model; its scale is that of a setting without one.
        pairs: from `calibration_pairs`.
        judge: says which clean latents reproduce a training image.
        align: scores the agreement of image and caption; None where no such model exists.
        anchored: the denoiser whose unconditional branch is the base model's; None where that is not possible.
        distance: quality of all samples of a rule at once: numbers [B] whose mean is their distance to good images,
            lower is better, see `similarity.kernel`; None where there are none.
        distance_method: what `distance` measures, in words.
    """

    probe: GuidedModel
    pairs: Pairs
    judge: Judge
    align: Align | None = None
    anchored: Denoiser | None = None
    distance: Align | None = None
    distance_method: str = "distance, lower is better"

    def set_to(self, setting: Setting) -> GuidedModel:
        """The probe with the setting's denoiser and scale.

        Raises:
            ValueError: an anchor was asked for and there is none, or finer steps of a sampler that has a memory.
        """
        if setting.anchor and self.anchored is None:
            raise ValueError("anchor=True takes the unconditional branch from the base model, which needs a LoRA")
        if setting.refine > 1 and self.probe.path.slots > 1:
            raise ValueError(
                f"refine={setting.refine} with sampler {self.probe.solver!r}: its memory belongs to steps of one size; "
                "take refine=1, or probe with 'ddim' or 'euler'"
            )
        denoise = self.anchored if setting.anchor and self.anchored else self.probe.denoise
        return replace(self.probe, denoise=denoise, scale=self.probe.scale if setting.after is None else setting.after)


def calibration_pairs(captions: int, count: int, shape: Sequence[int], first_seed: int) -> Pairs:
    """Pairs for a promise over *all captions x random seeds*: no two share their noise.

    With at least one pair for each caption the captions are enumerated evenly, so `count` is rounded up to a multiple;
    with fewer pairs than captions they are drawn at random, with replacement.

    Source: both designs make the hit count at most as dangerous as a binomial one (Hoeffding 1956, Theorem 4).

    Raises:
        ValueError: no captions, or no pairs.
    """
    if captions < 1 or count < 1:
        raise ValueError(f"{count} pairs of {captions} captions: expected at least 1 of each")
    if count >= captions:
        prompt = torch.arange(captions).repeat_interleave(-(-count // captions))
    else:
        prompt = torch.randint(captions, (count,), generator=torch.Generator().manual_seed(first_seed))
    seed = torch.arange(first_seed, first_seed + len(prompt))
    return Pairs(prompt, seed, draw_noise(seed.tolist(), shape))


def refined_grid(timesteps: Tensor, position: int, refine: int) -> Tensor:
    """What is left of a grid from `position` on, with every step split in `refine` equal ones.

    Example:
        >>> refined_grid(torch.tensor([999, 749, 499, 249]), 2, 2).tolist()
        [499, 374, 249, 124]
    """
    own = timesteps[position:]
    if refine == 1:
        return own
    ends = torch.cat([own[1:], own.new_tensor([-1])])
    share = torch.arange(refine, dtype=torch.float64) / refine
    return (own[:, None] + share * (ends - own)[:, None]).round().flatten().to(own.dtype)


def quality_of(trial: Trial, latents: Tensor) -> Estimate | None:
    """Distance of one rule's samples on the trial's pairs, lower is better; None where it cannot be measured."""
    if trial.distance is None:
        return None
    found = stats.cluster_bootstrap(trial.distance(latents, trial.pairs.prompt), trial.pairs.prompt)
    return found.model_copy(update={"method": f"{trial.distance_method}; {found.method}"[:200]})
