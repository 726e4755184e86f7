"""How much of a fine-tune acts at each timestep: the strength of a LoRA as a staircase over the trajectory.

A denoiser with an unmerged LoRA computes base + strength * (tuned - base) at every call, so its strength can follow the
timestep of that call at no cost. This file needs nothing else and ships, unchanged, beside an exported LoRA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.nn import Module

TimestepOf = Callable[[tuple, Mapping[str, Any]], float]
MOST_TRANSITIONS = 100  # that a record may hold
LAST = 999  # a flow matcher's T = 1000 counts as this
LINEAR = ("lora_A", "lora_embedding_A", "hada_w1_a", "lokr_w1", "lokr_w1_a")  # layers whose update `scaling` multiplies
_LOCK = Lock()


@dataclass(frozen=True)
class StrengthSchedule:
    """Shares of a fine-tune by timestep: a staircase from high noise to low.

    Attributes:
        transitions: training timesteps in [0, 999], strictly falling; 1 to 100 of them.
        strengths: in [0, 1], one more than transitions. The first is above the first transition, `strengths[i]` at and
            below `transitions[i - 1]`.

    Raises:
        ValueError: lengths that do not fit, or a number out of range.

    Example:
        >>> StrengthSchedule((300.0,), (0.6, 1.0)).at(301), StrengthSchedule((300.0,), (0.6, 1.0)).at(300)
        (0.6, 1.0)
    """

    transitions: tuple[float, ...]
    strengths: tuple[float, ...]

    def __post_init__(self) -> None:
        points, shares = tuple(self.transitions), tuple(self.strengths)
        if not 1 <= len(points) <= MOST_TRANSITIONS:
            raise ValueError(
                f"{len(points)} transitions: expected 1 to {MOST_TRANSITIONS}; one strength needs no schedule"
            )
        if len(shares) != len(points) + 1:
            raise ValueError(f"{self}: expected one strength more than transitions, {len(points) + 1}")
        if any(not 0 <= t <= LAST for t in points) or any(a <= b for a, b in pairwise(points)):
            raise ValueError(f"{self}: expected strictly falling training timesteps in [0, {LAST}] as transitions")
        if any(not 0 <= share <= 1 for share in shares):
            raise ValueError(f"{self}: expected strengths in [0, 1]")
        object.__setattr__(self, "transitions", points)
        object.__setattr__(self, "strengths", shares)

    def at(self, timestep: float) -> float:
        """The strength at a training timestep; above 999 it is that of 999."""
        return self.strengths[sum(min(timestep, LAST) <= point for point in self.transitions)]

    @classmethod
    def ramp(cls, start: float, end: float, *, above: float, below: float, transitions: int = 4) -> StrengthSchedule:
        """From `above` at timesteps over `start` to `below` from `end` down, in equal steps between.

        Args:
            start, end: training timesteps, `start` the higher one.
            above, below: strengths in [0, 1].
            transitions: how many there are, at least 2.

        Example:
            >>> StrengthSchedule.ramp(700, 300, above=0.0, below=1.0, transitions=2)
            StrengthSchedule(transitions=(700.0, 300.0), strengths=(0.0, 0.5, 1.0))
        """
        if transitions < 2:
            raise ValueError(f"a ramp of {transitions} transitions: expected at least 2")
        between = [k / (transitions - 1) for k in range(transitions)]
        levels = [k / transitions for k in range(transitions + 1)]
        return cls(
            tuple(start + (end - start) * share for share in between),
            tuple(above + (below - above) * share for share in levels),
        )


def called_timestep(args: tuple, kwargs: Mapping[str, Any]) -> float:
    """The timestep in a diffusers denoiser's call, where all rows of the batch share it."""
    timestep = args[1] if len(args) > 1 else kwargs["timestep"]
    return float(timestep.flatten()[0] if hasattr(timestep, "flatten") else timestep)


@contextmanager
def scheduled(
    denoiser: Module, schedule: StrengthSchedule, timestep_of: TimestepOf = called_timestep
) -> Iterator[None]:
    """Inside, every call of `denoiser` by this thread has its LoRA at the schedule's strength; then as before.

    The strength multiplies the scale that each adapter has, so `set_adapters` with a weight still works. Other threads
    that share the denoiser see it as it was.

    Args:
        denoiser: a UNet or transformer with an unmerged peft adapter.
        schedule: of its strength.
        timestep_of: reads the training timestep from a call's arguments.

    Raises:
        ValueError: no adapter, a merged one, one of a kind that cannot be scaled, or a compiled denoiser.
    """
    layers, thread = scalable_layers(denoiser), get_ident()

    def before(module: Module, args: tuple, kwargs: dict) -> None:
        if get_ident() == thread:
            share = schedule.at(timestep_of(args, kwargs))
            for own in scalings:
                own.views[thread] = {name: scale * share for name, scale in dict.items(own)}

    def after(*_: Any) -> None:
        if get_ident() == thread:
            for own in scalings:
                own.views.pop(thread, None)

    with ExitStack() as undo:
        scalings = [undo.enter_context(_shared(layer)) for layer in layers]
        undo.callback(after)
        undo.callback(denoiser.register_forward_pre_hook(before, with_kwargs=True).remove)
        undo.callback(denoiser.register_forward_hook(after, always_call=True).remove)
        yield


def scalable_layers(denoiser: Module) -> list[Module]:
    """The adapter layers of a denoiser, if the strength of all of them can follow the timestep.

    Raises:
        ValueError: see `scheduled`.
    """
    layers = {name: part for name, part in denoiser.named_modules() if hasattr(part, "get_base_layer")}
    for name, part in denoiser.named_modules():
        if getattr(part, "_compiled_call_impl", None) is not None or hasattr(part, "_orig_mod"):
            raise ValueError(
                "a compiled denoiser fixes the strength of its LoRA; compile it without a strength_schedule"
            )
        if hasattr(part, "modules_to_save"):
            raise ValueError(f"{name} was trained as a whole beside the LoRA, so it has no strength to schedule")
    if not layers:
        raise ValueError(
            f"a strength_schedule needs an unmerged LoRA, and this {type(denoiser).__name__} carries none: give the "
            "base model and load the LoRA onto it (load_lora_weights), without merging"
        )
    for name, layer in layers.items():
        _require_scalable(name, layer)
    return list(layers.values())


def _require_scalable(name: str, layer: Any) -> None:
    linear = isinstance(getattr(layer, "scaling", None), dict) and any(hasattr(layer, own) for own in LINEAR)
    if not linear or any(getattr(layer, "use_dora", {}).values()):
        kind = "DoRA" if linear else type(layer).__name__
        raise ValueError(f"{name}: {kind} has no scale that a strength_schedule could set; use LoRA, LoHa or LoKr")
    if getattr(layer, "merged", False):
        raise ValueError(f"{name}: its LoRA is merged into the weights; unmerge it, a strength_schedule needs it apart")


class _Scaling(dict):
    """Scale by adapter, as a tuner layer holds it, of which a thread may have a view of its own."""

    def __init__(self, own: dict[str, float]) -> None:
        super().__init__(own)
        self.own, self.users = own, 0
        self.views: dict[int, dict[str, float]] = {}

    def __getitem__(self, adapter: str) -> float:
        view = self.views.get(get_ident())
        return super().__getitem__(adapter) if view is None else view[adapter]

    def __setitem__(self, adapter: str, scale: float) -> None:
        view = self.views.get(get_ident())
        if view is None:
            super().__setitem__(adapter, scale)
        else:
            view[adapter] = scale


@contextmanager
def _shared(layer: Any) -> Iterator[_Scaling]:
    """Inside, a layer's scales can have views; the last to leave gives it its own dictionary back, as it is by then."""
    with _LOCK:
        if not isinstance(layer.scaling, _Scaling):
            layer.scaling = _Scaling(layer.scaling)
        scaling: _Scaling = layer.scaling
        scaling.users += 1
    try:
        yield scaling
    finally:
        with _LOCK:
            scaling.users -= 1
            if not scaling.users and layer.scaling is scaling:
                scaling.own.clear()
                scaling.own.update(dict.items(scaling))
                layer.scaling = scaling.own
