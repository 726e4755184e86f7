"""Samples of one model on fixed (caption, seed) pairs; rules that begin alike share what comes before guidance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..basin.trajectories import GuidedModel, Pairs, run_branch, run_prefix
from ..core.record import Guidance
from ..diffusion.sampling import Denoiser, draw_noise
from .grids import refined_grid

Prefixes = dict[tuple[float, bool], list[Tensor]]  # by scale before guidance, and anchor: states [N, ...] by position


@dataclass(frozen=True)
class Trial:
    """One model on its pairs.

    Attributes:
        probe: the model with the pairs' prompts.
        pairs: from `calibration_pairs`.
        anchored: the denoiser whose unconditional branch is the base model's; None where that is not possible.
        prefixes: states before guidance comes on, by grid position, as far as they were sampled.
    """

    probe: GuidedModel
    pairs: Pairs
    anchored: Denoiser | None = None
    prefixes: Prefixes = field(default_factory=dict, compare=False, repr=False)

    def sample(self, rule: Guidance) -> tuple[Tensor, float]:
        """Clean latents of every pair, [N, ...], and the network evaluations that one of them takes.

        Raises:
            ValueError: an anchor was asked for and there is none, or finer steps of a sampler that has a memory.
        """
        probe, count = self.set_to(rule), self.probe.count
        if rule.plain:
            before, begin = count.total, torch.zeros_like(self.pairs.prompt)
            ends = run_branch(probe, probe.path.begin(self.pairs.noise), self.pairs.prompt, begin)
            return ends, (count.total - before) / len(self.pairs)
        position = int((probe.timesteps > rule.transition).sum())
        start, before = self._prefix(probe, rule, position), count.total
        ends = self._finish(probe, rule, position, start)
        each_before = 1 if rule.before in (0.0, 1.0) else 2
        return ends, int(probe.path.first[position]) * each_before + (count.total - before) / len(self.pairs)

    def set_to(self, rule: Guidance) -> GuidedModel:
        """The probe with the rule's denoiser and scale.

        Raises:
            ValueError: as of `sample`.
        """
        if rule.anchor and self.anchored is None:
            raise ValueError("anchor=True takes the unconditional branch from the base model, which needs a LoRA")
        if rule.refine > 1 and self.probe.path.slots > 1:
            raise ValueError(
                f"refine={rule.refine} with sampler {self.probe.solver!r}: its memory belongs to steps of one size; "
                "take refine=1, or probe with 'ddim' or 'euler'"
            )
        denoise = self.anchored if rule.anchor and self.anchored else self.probe.denoise
        return replace(self.probe, denoise=denoise, scale=self.probe.scale if rule.after is None else rule.after)

    def _prefix(self, probe: GuidedModel, rule: Guidance, position: int) -> Tensor:
        """States before guidance comes on at a grid position; what others asked for is gone on from."""
        key = (rule.before, rule.anchor)
        self.prefixes[key] = run_prefix(probe, self.pairs, rule.before, self.prefixes.get(key, []), position)
        return self.prefixes[key][position]

    def _finish(self, probe: GuidedModel, rule: Guidance, position: int, x: Tensor) -> Tensor:
        """Plain CFG from `position` to the end: clean latents."""
        prompt = self.pairs.prompt
        if rule.refine == 1:
            return run_branch(probe, x, prompt, torch.full_like(prompt, position))
        finer = replace(probe, timesteps=refined_grid(probe.timesteps, position, rule.refine))
        return run_branch(finer, x, prompt, torch.zeros_like(prompt))


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
