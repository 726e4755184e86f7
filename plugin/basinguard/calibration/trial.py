"""What candidates are measured on: a model, (caption, seed) pairs, and who judges the samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..basin.exit_search import Judge
from ..basin.plain_run import run_plain
from ..basin.trajectories import GuidedModel, Pairs
from ..core import stats
from ..core.estimate import Estimate
from ..diffusion.model import Model
from ..diffusion.sampling import Denoiser, draw_noise
from ..guard.guard import Guard
from ..similarity.kernel_distance import KernelDistance
from .candidate import AnyCandidate, PairScores
from .terms import Setting

Score = Callable[[Tensor, Tensor], Tensor]  # clean latents [B, ...] and prompts [B] -> numbers [B]


@dataclass(frozen=True)
class Trial:
    """What candidates are measured on.

    Attributes:
        probe: the model; its scale is that of a setting without one.
        pairs: from `calibration_pairs`.
        judge: says which clean latents reproduce a training image.
        align: scores the agreement of image and caption; None where no such model exists.
        anchored: the denoiser whose unconditional branch is the base model's; None where that is not possible.
        distance: quality of all samples of a rule at once: numbers [B] whose mean is their distance to good images,
            lower is better, see `similarity.kernel_distance`; None where there are none.
        distance_method: what `distance` measures, in words.
    """

    probe: GuidedModel
    pairs: Pairs
    judge: Judge
    align: Score | None = None
    anchored: Denoiser | None = None
    distance: Score | None = None
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

    def sample_plain(self) -> Tensor:
        """Clean latents of every pair by plain CFG, [N, ...]."""
        return run_plain(self.probe, self.pairs).ends

    def measure(self, kind: type[AnyCandidate], latents: Tensor, alpha: float, **rest: Any) -> AnyCandidate:
        """A candidate of a kind, from one sample of every pair, clean latents [N, ...].

        Args:
            kind: what is being measured.
            latents: in the order of the pairs.
            alpha: the risk that may not be exceeded.
            rest: the attributes that its kind has beyond those of a `Candidate`.
        """
        prompt = self.pairs.prompt
        scores = None if self.align is None else PairScores(self.align(latents, prompt), prompt)
        return kind.measured(
            self.judge(latents, prompt),
            prompt,
            alpha,
            alignment=None if scores is None else scores.estimate(),
            quality=self._quality(latents),
            pair_alignment=scores,
            **rest,
        )

    def _quality(self, latents: Tensor) -> Estimate | None:
        if self.distance is None:
            return None
        mean = stats.cluster_bootstrap(self.distance(latents, self.pairs.prompt), self.pairs.prompt)
        return mean.model_copy(update={"method": f"{self.distance_method}; {mean.method}"[:200]})


def trial_of(
    guard: Guard,
    model: Model,
    pairs: int,
    first_seed: int,
    anchored: Model | None = None,
    quality: KernelDistance | None = None,
) -> Trial:
    """A model on the training captions, with pairs of its own; `anchored` and `quality` as in `certify`."""
    captions, score = guard.training.captions, guard.score_alignment
    even = pairs >= len(captions)  # otherwise the pairs' captions are random draws
    images = lru_cache(maxsize=1)(model.decode)  # several models look at the same latents, one after the other

    def align(latents: Tensor, prompt: Tensor) -> Tensor:
        assert score is not None
        return score(images(latents), [captions[k] for k in prompt.tolist()])

    def distance(latents: Tensor, prompt: Tensor) -> Tensor:
        assert quality is not None
        return quality(images(latents), prompt if even else None)

    return Trial(
        probe=guard.guided_model(model, captions),
        pairs=calibration_pairs(len(captions), pairs, model.latent_shape, first_seed),
        judge=lambda latents, prompt: guard.is_copy(images(latents)),
        align=align if score else None,
        anchored=None if anchored is None else anchored.denoiser(captions),
        distance=distance if quality else None,
        distance_method=quality.method if quality else "",
    )


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
