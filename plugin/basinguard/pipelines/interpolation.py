"""Weights between the base model's and the fine-tuned ones, in place.

Going from base to tuned weights by a share s is what a LoRA loader does with strength s once the adapter is merged,
and what model merging does with a full fine-tune: one mechanism for both. A filter (`core.update_filter`) moves the
far end: from the tuned weights to the base with a part of their change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..calibration.weights import OpenWeights
from ..core.update_filter import update_filter as filter_named
from ..diffusion.sampling import Denoiser
from ..guidance.strength import StrengthSchedule, called_timestep
from .families.registry import family_of, tuned_parts
from .latent_model import LatentModel

ROUNDING = 1e-6  # of the squared norm of a change: less is none


class Differing(NamedTuple):
    """A weight of a pipeline, and the two ends between which it can be: tuned, and as its base has it."""

    name: str
    weight: Tensor
    tuned: Tensor
    origin: Tensor


class Filtered(NamedTuple):
    """What a filter leaves of a denoiser's change: its name, both ends, and the share of the squared norm it takes."""

    name: str
    ends: list[Differing]
    taken: float


class Blend:
    """A fine-tuned pipeline whose weights can be taken back towards its base's.

    Only weights that differ are held, the tuned ones as a copy, so a LoRA on attention layers takes little memory.

    Args:
        tuned: pipeline without adapters; outside `at` it is exactly as it was given.
        base: what it was fine-tuned from; must stay as it is.
        dtype: precision of the runs.
        parts: the pipeline's components that are interpolated; None for all that a fine-tune may change.

    Raises:
        ValueError: the two have other layers, so they cannot be mixed.

    Source: Wortsman et al., arXiv 2109.01903, eq. 1 (interpolation in weight space).
    """

    def __init__(
        self, tuned: Any, base: Any, *, dtype: torch.dtype | None = None, parts: Sequence[str] | None = None
    ) -> None:
        self.tuned, self.dtype = tuned, dtype
        self._differing: dict[str, list[Differing]] = {}
        self._filtered = Filtered("", [], 0.0)
        for name in tuned_parts(tuned) if parts is None else parts:
            here, there = getattr(tuned, name).state_dict(), getattr(base, name).state_dict()
            require_same_layers(name, here, there)
            differing = self._differing.setdefault(name, [])
            for key, weight in here.items():
                origin = there[key].to(weight)
                if weight.is_floating_point() and not torch.equal(weight, origin):
                    differing.append(Differing(key, weight, weight.clone(), origin))

    @contextmanager
    def at(self, strength: float, update_filter: str = "") -> Iterator[LatentModel]:
        """Inside, the weights are base + strength * (tuned - base), of the denoiser with what a filter leaves of it.

        Raises:
            ValueError: an unknown filter.
        """
        try:
            for part in self._differing:
                self._set(part, strength, update_filter)
            yield LatentModel(self.tuned, dtype=self.dtype)
        finally:
            self._restore()

    @contextmanager
    def following(self, schedule: StrengthSchedule) -> Iterator[LatentModel]:
        """Inside, the denoiser's weights are at each call those of its timestep's strength; other parts stay tuned.

        That is what the unmerged LoRA does whose strength follows the timestep, within rounding.
        """
        denoiser = family_of(self.tuned).denoiser_name
        try:
            yield FollowingModel(self.tuned, schedule, lambda share: self._set(denoiser, share), dtype=self.dtype)
        finally:
            self._restore()

    @contextmanager
    def switching(self, schedule: StrengthSchedule) -> Iterator[None]:
        """Inside, the pipeline itself does so, whoever calls it; all rows of a call share its timestep."""
        name, held = family_of(self.tuned).denoiser_name, 1.0

        def before(module: Any, args: tuple, kwargs: dict) -> None:
            nonlocal held
            if (share := schedule.at(called_timestep(args, kwargs))) != held:
                self._set(name, share)
                held = share

        hook = getattr(self.tuned, name).register_forward_pre_hook(before, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
            self._restore()

    def left(self, update_filter: str) -> float:
        """Norm of what a filter leaves of the denoiser's change, as a share of all of it, in [0, 1].

        Raises:
            ValueError: an unknown filter.
        """
        return float((1 - self._left_by(update_filter).taken) ** 0.5)

    def require_effect(self, update_filter: str) -> None:
        """Refuses a filter that leaves all of the denoiser's change, or nothing.

        Raises:
            ValueError: it does, or is not known.
        """
        taken = self._left_by(update_filter).taken
        if not ROUNDING < taken < 1 - ROUNDING:
            raise ValueError(
                f"update filter {update_filter!r} leaves {'all' if taken <= ROUNDING else 'nothing'} of this "
                "fine-tune's change of the denoiser; leave it out"
            )

    def _set(self, part: str, strength: float, update_filter: str = "") -> None:
        for _, weight, tuned, origin in self._ends(part, update_filter):
            weight.copy_(tuned if strength == 1 else torch.lerp(origin.float(), tuned.float(), strength))

    def _ends(self, part: str, update_filter: str) -> list[Differing]:
        """What differs in a part; of the denoiser with the filtered weights in place of the tuned ones."""
        own = self._differing.get(part, [])
        if not update_filter or part != family_of(self.tuned).denoiser_name:
            return own
        return self._left_by(update_filter).ends

    def _left_by(self, update_filter: str) -> Filtered:
        """Of a filter; that of the latest one is held, as decomposing takes long."""
        if self._filtered.name != update_filter:
            own = self._differing.get(family_of(self.tuned).denoiser_name, [])
            self._filtered = filtered(update_filter, own)
        return self._filtered

    def _restore(self) -> None:
        for part in self._differing:
            self._set(part, 1.0)


def filtered(name: str, differing: Sequence[Differing]) -> Filtered:
    """The same weights with base + filter(tuned - base) as their tuned end.

    Args:
        name: of the filter.
        differing: of a denoiser.

    Raises:
        ValueError: an unknown filter.
    """
    edit, ends, whole, taken = filter_named(name).edit, [], 0.0, 0.0
    for one in differing:
        change = one.tuned.float() - one.origin.float()
        left = edit(one.name, change)
        end = one.tuned if left is change else (one.origin.float() + left).to(one.origin)
        ends.append(one._replace(tuned=end))
        whole += float(change.square().sum())
        taken += float((change - left).square().sum())
    return Filtered(name, ends, min(1.0, taken / whole) if whole else 0.0)


class FollowingModel(LatentModel):
    """A model whose denoiser holds, at every call, the share of its fine-tune that the call's timestep has.

    Args:
        pipe: the fine-tune, whole.
        schedule: strengths by timestep.
        switch: puts a share into the denoiser.
        dtype: as of `LatentModel`.
    """

    def __init__(
        self,
        pipe: Any,
        schedule: StrengthSchedule,
        switch: Callable[[float], None],
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(pipe, dtype=dtype)
        self._strengths, self._switch, self._share = schedule, switch, 1.0

    def denoiser(self, prompts: Sequence[str]) -> Denoiser:
        """See `LatentModel.denoiser`; rows whose strengths differ are evaluated apart."""
        denoise = super().denoiser(prompts)

        def denoise_each(x: Tensor, timestep: Tensor, prompt: Tensor) -> Tensor:
            shares = torch.tensor([self._strengths.at(t) for t in timestep.tolist()], device=x.device)
            if bool((shares == shares[0]).all()):
                self._hold(float(shares[0]))
                return denoise(x, timestep, prompt)
            output = torch.empty_like(x)
            for share in shares.unique():
                rows = shares == share
                self._hold(float(share))
                output[rows] = denoise(x[rows], timestep[rows], prompt[rows])
            return output

        return denoise_each

    def _hold(self, share: float) -> None:
        if share != self._share:
            self._switch(share)
            self._share = share


@dataclass(frozen=True)
class BlendedWeights:
    """One fine-tune and every share of it, as a calibration chooses among them (`calibration.weights.Weights`).

    Attributes:
        blend: of the fine-tune and its base.
        anchored: the fine-tune with the base's unconditional branch, where it is a LoRA.
    """

    blend: Blend
    anchored: LatentModel | None = None
    epochs: tuple[None, ...] = (None,)
    graded: bool = True

    @contextmanager
    def at(self, epoch: int | None, strength: float) -> Iterator[OpenWeights]:
        """The model at a strength; there is no epoch to choose."""
        with self.blend.at(strength) as model:
            yield OpenWeights(model, self.anchored if strength == 1 else None)

    @contextmanager
    def filtered(self, epoch: int | None, strength: float, update_filter: str) -> Iterator[OpenWeights]:
        """The model with a share of what a filter leaves."""
        self.blend.require_effect(update_filter)
        with self.blend.at(strength, update_filter) as model:
            yield OpenWeights(model)

    @contextmanager
    def scheduled(self, epoch: int | None, schedule: StrengthSchedule) -> Iterator[OpenWeights]:
        """The model with a strength by timestep."""
        with self.blend.following(schedule) as model:
            yield OpenWeights(model)


def require_same_layers(part: str, here: dict[str, Tensor], there: dict[str, Tensor]) -> None:
    """Refuses weights of a part that are not those of the same layers as its base's.

    Raises:
        ValueError: names one that is not.
    """
    differing = sorted(here.keys() ^ there.keys()) or [k for k in here if here[k].shape != there[k].shape]
    if differing:
        raise ValueError(
            f"{part}: {len(differing)} weights, such as {differing[0]!r}, are not the same in the model and the base "
            "it is said to come from; give the base it was fine-tuned from"
        )
