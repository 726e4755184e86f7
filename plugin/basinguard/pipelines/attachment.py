"""A rule as a part of a diffusers pipeline: carried by its copies, at work in its denoising loop alone."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from ..core.record import ALWAYS_ON, Record
from ..guidance.core import Constant, Observation, Rule, SwitchAt, epsilon_factor, from_record, steer
from ..guidance.strength import StrengthSchedule, scheduled
from .families.registry import in_lists
from .list_steering import ListSteering
from .resolution import watched

FLOW = "flow_prediction"  # of a scheduler that does not say what is predicted
RULE = "_basinguard"  # a protected pipeline's attribute


@dataclass
class Attached:
    """What a protected pipeline carries.

    Attributes:
        rule: what it samples by.
        record: where that came from, if from a calibration: what the pipeline must still fit when it is called.
        own: a progress bar of somebody's own that the pipeline had.
        trace: of the latest call.
        warned: whether a call that began below the transition was spoken of.
    """

    rule: Rule
    record: Record | None = None
    own: Callable[..., Any] | None = None
    trace: list[Observation] = field(default_factory=list)
    warned: bool = False

    def __copy__(self) -> Attached:
        return Attached(self.rule, self.record, self.own)


@cache
def steering(kind: type) -> type:
    """The class of protected pipelines of a kind: under the same name, with a progress bar that steers."""

    @contextmanager
    def progress_bar(self: Any, iterable: Any = None, total: int | None = None) -> Iterator[Any]:
        attached = self.__dict__.get(RULE)
        bar = getattr(attached, "own", None) or partial(kind.progress_bar, self)  # type: ignore[attr-defined]
        bars = bar if attached is None else partial(_steered, self, attached, bar)
        with bars(iterable=iterable, total=total) as shown:
            yield shown

    def reduced(self: Any, protocol: Any) -> tuple[Any, ...]:
        state = dict(self.__dict__)
        if RULE in state:
            state[RULE] = copy(state[RULE])
        return restored, (kind, state)

    def components(self: Any) -> dict[str, Any]:
        if RULE in self.__dict__ and _leaves(sys._getframe(1)):
            warnings.warn(
                "the parts leave without their rule: a pipeline made of them samples plain CFG until it is protected",
                stacklevel=2,
            )
        parts: dict[str, Any] = kind.components.fget(self)  # type: ignore[attr-defined]
        return parts

    members = {"progress_bar": progress_bar, "__reduce_ex__": reduced, "components": property(components)}
    names = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(kind.__name__, (kind,), {**members, **names})


def _leaves(caller: Any) -> bool:
    """Whether a pipeline's parts are asked for to make another one of them, not by diffusers itself or by us."""
    inside = caller.f_globals.get("__name__", "").startswith(("diffusers.", "basinguard."))
    return not inside or caller.f_code.co_name == "from_pipe"


def restored(kind: type, state: dict[str, Any]) -> Any:
    """A protected pipeline that was copied or pickled."""
    pipe: Any = object.__new__(steering(kind))
    pipe.__dict__.update(state)
    return pipe


@contextmanager
def _steered(pipe: Any, attached: Attached, bar: Callable[..., Any], iterable: Any, total: int | None) -> Iterator[Any]:
    """The denoising loop of one call, by the rule, on the scheduler and guidance scale that the pipeline has now."""
    resolution = attached.record.sampler.resolution if attached.record else None
    if attached.record is not None:
        fitting(pipe, attached.record)  # the scheduler may have been swapped since
    trace: list[Any] = []
    attached.trace, factor = trace, epsilon_factor(pipe.scheduler)
    rule: Any = attached.rule
    if in_lists(pipe):
        rule = ListSteering(rule, lambda: pipe.guidance_scale + 1, factor, scheduler=pipe.scheduler)
    with steer(
        denoiser(pipe),
        rule,
        pipeline_scale=lambda: pipe.guidance_scale,
        factor=factor,
        helper=getattr(pipe, "controlnet", None),
    ) as at_work:
        at_work.trace = trace
        strengths = _strengths(pipe, attached.record)
        with strengths, watched(pipe, denoiser(pipe), resolution), bar(iterable=iterable, total=total) as shown:
            yield shown
    if any(kind in type(pipe).__name__ for kind in ("Img2Img", "Inpaint")):
        _say_if_too_late(attached)


def schedule_of(record: Record | None) -> StrengthSchedule | None:
    """The strengths by timestep that a record asks for; None where it asks for one."""
    numbers = record.product.strength_schedule if record else None
    return None if numbers is None else StrengthSchedule(numbers.transitions, numbers.strengths)


def plain_cfg(pipe: Any, scale: float) -> Rule | Record:
    """Plain CFG of this scale, by the strengths by timestep that a protected pipeline carries, if any."""
    attached = pipe.__dict__.get(RULE)
    record: Record | None = attached and attached.record
    if record is None or record.product.strength_schedule is None:
        return Constant(scale)
    guidance = record.guidance.model_copy(update={"before": scale, "after": scale})
    return record.model_copy(update={"guidance": guidance})


def _strengths(pipe: Any, record: Record | None) -> AbstractContextManager[None]:
    schedule = schedule_of(record)
    return nullcontext() if schedule is None else scheduled(denoiser(pipe), schedule)


def _say_if_too_late(attached: Attached) -> None:
    """An image to image call of a low strength begins below the transition, so it is plain CFG; said once."""
    transition = getattr(attached.rule, "transition", None)
    if attached.warned or not attached.trace or not isinstance(transition, int | float):
        return
    if attached.trace[0].timestep <= transition < ALWAYS_ON:  # plain CFG all along is what such a rule asks for
        attached.warned = True
        warnings.warn(
            f"this call began at timestep {attached.trace[0].timestep:g}, below the rule's transition {transition:g}: "
            "it was plain CFG from beginning to end, which nothing was promised about; take a larger strength",
            stacklevel=4,
        )


def fitting(pipe: Any, record: Record) -> SwitchAt:
    """The record's rule, if it was made for what the pipeline predicts and for its noise levels.

    Raises:
        ValueError: it was not.
    """
    has, needs = pipe.scheduler.config.get("prediction_type", FLOW), record.sampler.prediction_type
    if has != needs:
        raise ValueError(f"the record was made for a model that predicts {needs!r}, this pipeline's predicts {has!r}")
    squared = getattr(pipe.scheduler, "alphas_cumprod", None)
    if squared is not None:
        signal = float(squared[round(record.guidance.transition)])
        sigma = ((1 - signal) / max(signal, 1e-12)) ** 0.5
        if abs(sigma - record.guidance.sigma) > 0.02 * sigma:
            raise ValueError(
                f"the record puts noise level {record.guidance.sigma:.4g} at timestep {record.guidance.transition:g}, "
                f"this pipeline's scheduler has {sigma:.4g} there: the record belongs to another base model"
            )
    return from_record(record.model_dump())


def denoiser(pipe: Any) -> Any:
    """The network that a pipeline denoises with."""
    unet = getattr(pipe, "unet", None)
    return pipe.transformer if unet is None else unet
