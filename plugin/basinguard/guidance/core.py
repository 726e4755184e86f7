"""How strongly a prompt pulls, at every point of a trajectory: guidance as one number per sample.

Classifier-free guidance, none, and opposite guidance are not three mechanisms: they are `scale` = 7.5, 0 and -2 in
`eps = eps_uncond + scale * (eps_cond - eps_uncond)`. A *rule* only decides that number, per sample, from the timestep
(static transition point, STP) or from the gap of the predictions (dynamic transition point, DTP). This file needs torch
alone and ships, unchanged, beside every exported checkpoint.
Source: Jain et al., CVPR 2025, arXiv 2411.16738 (static and dynamic transition point, opposite guidance).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from threading import get_ident
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Module

Factor = Callable[[float], float]
PLAIN_GRID = {"refine": 1, "anchor": False}  # of a record whose guidance is a choice of scales and no more
FACTORS: dict[str, Factor] = {  # by prediction type, from abar
    "epsilon": lambda signal: 1.0,
    "v_prediction": lambda signal: signal**0.5,
    "sample": lambda signal: (signal / max(1 - signal, 1e-12)) ** 0.5,
}


def combine(eps_uncond: Tensor, eps_cond: Tensor, scale: Tensor | float) -> Tensor:
    """`eps_uncond + scale * (eps_cond - eps_uncond)`, the only place where guidance is applied.

    Predictions are [B, ...]: epsilon, v or velocity, since all are linear in each other. `scale` is [B], or one number
    for all: 0 = unconditional, 1 = conditional, negative = opposite.

    Source: Ho and Salimans, arXiv 2207.12598, eq. 6, in diffusers' convention.
    """
    weight = torch.as_tensor(scale).to(eps_cond).reshape(-1, *[1] * (eps_cond.ndim - 1))
    return eps_uncond + weight * (eps_cond - eps_uncond)


def gap(eps_uncond: Tensor, eps_cond: Tensor) -> Tensor:
    """Root-mean-square difference of the two epsilon predictions, [B].

    Source: arXiv 2411.16738, section 4 (d_t), divided by sqrt(numel) so that it does not depend on resolution.
    """
    return (eps_cond.float() - eps_uncond.float()).flatten(1).pow(2).mean(1).sqrt()


def epsilon_factor(scheduler: Any) -> Factor:
    """What turns a difference of two raw predictions into one of epsilon, as a function of the timestep.

    None stands for flow matching: x = (1 - sigma) x_0 + sigma eps, velocity eps - x_0, sigma = t / 1000.

    Raises:
        ValueError: its timesteps are not training timesteps in [0, 1000], so a rule would mistake them.

    Source: Salimans and Ho, arXiv 2202.00512, appendix D: eps = sqrt(abar) v + sqrt(1 - abar) x.
    """
    config: Mapping[str, Any] = {} if scheduler is None else scheduler.config
    squared, kind = getattr(scheduler, "alphas_cumprod", None), config.get("prediction_type", "epsilon")
    if scheduler is None or kind == "flow_prediction" or type(scheduler).__name__.startswith("FlowMatch"):
        return lambda timestep: 1 - timestep / 1000
    if squared is None or config.get("timestep_type") == "continuous" or kind not in FACTORS:
        raise ValueError(
            f"{type(scheduler).__name__} (prediction type {kind!r}) does not count in training timesteps that a rule "
            f"could use; accepted: flow matchers, and schedulers with alphas_cumprod that predict {', '.join(FACTORS)}"
        )
    table = [FACTORS[kind](signal) for signal in torch.as_tensor(squared).double().tolist()]
    return lambda timestep: table[min(max(round(timestep), 0), len(table) - 1)]


class Rule(Protocol):
    """Decides the guidance scale of every sample. Frozen; what it remembers goes in and out as `state`."""

    reads_gap: bool = False  # if not, a branch that the scale makes irrelevant need not be evaluated at all

    def init(self, batch: int) -> Any:
        """The state before the first evaluation; None for a rule that remembers nothing."""
        return None

    def scale(self, timestep: Tensor, gap: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        """Scale of each sample [B] at `timestep` [B], given the gap [B] there, and the next state."""


def resolved(scale: float | None) -> float:
    """`scale`, unless it still waits for `resolve`."""
    if scale is None:
        raise ValueError("after=None stands for the caller's guidance scale; use resolve(rule, scale) before sampling")
    return scale


@dataclass(frozen=True)
class Constant(Rule):
    """The same scale everywhere: plain CFG (7.5), none (0 or 1), opposite (negative)."""

    value: float

    def scale(self, timestep: Tensor, gap: Tensor | None, state: None) -> tuple[Tensor, None]:
        """`value`, whatever the timestep."""
        return torch.full_like(timestep, self.value, dtype=torch.float32), None


@dataclass(frozen=True)
class SwitchAt(Rule):
    """Static transition point: `before` above `transition`, `after` at and below it.

    `transition` is a training timestep in [0, 999], or one for each prompt of the batch: a batch that is a multiple of
    them takes equal runs of neighbours for the images of one prompt. `after=None` is the caller's own guidance scale.

    Source: arXiv 2411.16738, section 4.2 (STP); with a negative `before`, section 4.4 (opposite guidance).
    """

    transition: float | tuple[float, ...]
    before: float = 0.0
    after: float | None = 7.5

    def __post_init__(self) -> None:
        points = self.transition if isinstance(self.transition, tuple) else (self.transition,)
        if not points or any(not 0 <= point <= 999 for point in points):
            raise ValueError(f"SwitchAt(transition={self.transition}): expected training timesteps in [0, 999]")

    def init(self, batch: int) -> None:
        """No state; refuses a batch that the transitions do not divide."""
        if isinstance(self.transition, tuple) and batch % len(self.transition):
            raise ValueError(f"SwitchAt has {len(self.transition)} transitions for a batch of {batch} samples")

    def scale(self, timestep: Tensor, gap: Tensor | None, state: None) -> tuple[Tensor, None]:
        """`before` above the transition, `after` at and below it; a flow matcher's T = 1000 counts as 999."""
        transition = torch.tensor(self.transition, dtype=torch.float32, device=timestep.device).reshape(-1)
        transition = transition.repeat_interleave(len(timestep) // len(transition))
        return torch.where(timestep.clamp(max=999) > transition, self.before, resolved(self.after)).float(), None


def resolve(rule: Rule, scale: float) -> Rule:
    """`rule` with `scale`, the caller's guidance scale, where it, or the rule inside it, says `after=None`."""
    if getattr(rule, "after", scale) is None:
        rule = replace(rule, after=scale)  # type: ignore[type-var]
    inner = getattr(rule, "rule", None)
    return rule if inner is None else replace(rule, rule=resolve(inner, scale))  # type: ignore[type-var]


def from_record(record: Mapping[str, Any]) -> SwitchAt:
    """The rule in a record's JSON form (`{"guidance": {"transition": ..., "before": ..., "after": ...}, ...}`).

    Raises:
        ValueError: a number is missing or out of range, or more was measured than a choice of scales; says what.
    """
    try:
        numbers = record["guidance"]
        more = [f"{key}={numbers[key]!s:.80}" for key, usual in PLAIN_GRID.items() if numbers.get(key, usual) != usual]
        after = numbers.get("after")
        rule = SwitchAt(float(numbers["transition"]), float(numbers["before"]), None if after is None else float(after))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"not a basinguard record, no usable 'guidance': {error!r:.200} in {record!s:.120}") from None
    if more:
        raise ValueError(
            f"the record was measured with {', '.join(more)}, which a stock pipeline cannot apply; calibrate without it"
        )
    return rule


@dataclass(frozen=True)
class Observation:
    """One evaluation of a steered denoiser: the scale [B] used, and the gap [B] where both branches were evaluated."""

    timestep: float
    scale: Tensor
    gap: Tensor | None
    unet_evals: int


@dataclass
class Steering:
    """A rule at work along one trajectory, in a sampler that stacks [uncond, cond] and computes `u + s * (c - u)`.

    Its hooks rewrite u to `c + (w - 1) / (s - 1) * (u - c)`: that line then gives `u + w * (c - u)` with the rule's w,
    and `guidance_rescale` sees the true c. Rows with w = s stay as they are; with w = 0 they are (u, u).
    """

    rule: Rule
    pipeline_scale: Callable[[], float]
    factor: Factor
    trace: list[Observation] = field(default_factory=list)
    _decision: tuple[float, Tensor, Any] | None = None  # timestep, scale, the rule's next state
    _timestep: float = 0.0
    _rows: int | None = None
    _lone: int | None = None

    def decide(self, timestep: float, gap: Tensor | None, batch: int) -> Tensor:
        """The scale of each sample, [B]; a timestep that comes again (second-order schedulers) keeps it."""
        if self._decision is None or self._decision[0] != timestep:
            rule = resolve(self.rule, self.pipeline_scale())
            state = self._decision[2] if self._decision else rule.init(batch)
            now = torch.full((batch,), timestep, device=None if gap is None else gap.device)
            self._decision = (timestep, *rule.scale(now, gap, state))
        return self._decision[1]

    def before(self, module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Takes the half that no row needs out of the inputs."""
        rows, self._timestep = _inputs(args, kwargs)
        half = self._lone = None if kwargs.get("guess_mode") else self._lone_branch(rows)  # a ControlNet's, cond alone
        if half is None:
            return args, kwargs
        return _each((args, kwargs), lambda x: x.chunk(2)[half] if x.ndim and len(x) == rows else x)

    def after(self, module: Any, args: tuple, kwargs: dict, output: Any) -> Any:
        """Rewrites the prediction."""
        y = output[0]
        gaps = gap(*y.chunk(2)) * self.factor(self._timestep) if self._lone is None else None
        scale = self.decide(self._timestep, gaps, len(y) // 2)
        self.trace.append(Observation(self._timestep, scale, gaps, len(y)))
        if gaps is None:
            return self.doubled(module, args, kwargs, output)
        bent = _bent(y, scale.to(y.device), self.pipeline_scale())
        return _each(output, lambda _: bent)

    def doubled(self, module: Any, args: tuple, kwargs: dict, output: Any) -> Any:
        """Gives one half for both, so that the sampler finds what it expects."""
        return output if self._lone is None else _each(output, lambda y: torch.cat([y, y]))

    def _lone_branch(self, rows: int) -> int | None:
        if not self.pipeline_scale() > 1 or rows % 2:
            raise ValueError(
                f"guidance_scale={self.pipeline_scale()} with a batch of {rows}: a rule needs the pipeline's batched "
                "CFG, so call it with guidance_scale > 1 (the rule decides what is applied), or unprotect it"
            )
        if self._rows not in (None, rows):  # skip-layer guidance, for one, evaluates the conditional half once more
            raise ValueError(f"a batch of {rows} after one of {self._rows}: a rule can steer CFG's two halves, no more")
        self._rows = rows
        return None if self.rule.reads_gap else lone_branch(self.decide(self._timestep, None, rows // 2))


def lone_branch(scale: Tensor) -> int | None:
    """0 (1) if all samples need the unconditional (conditional) prediction alone, None if any needs both."""
    return next((branch for branch in (0, 1) if bool((scale == branch).all())), None)


def _bent(both: Tensor, scale: Tensor, pipeline_scale: float) -> Tensor:
    farthest = max((abs(w - 1) for w in scale.tolist() if w not in (0, pipeline_scale)), default=0.0)
    if torch.finfo(both.dtype).eps * farthest > 0.1 * (pipeline_scale - 1):  # more of the guidance than may be lost
        raise ValueError(f"guidance_scale={pipeline_scale}: so near 1 that {both.dtype} rounds the rule away; raise it")
    (u, c), wide = both.chunk(2), torch.promote_types(both.dtype, torch.float32)
    rows = scale.reshape(-1, *[1] * (c.ndim - 1))
    bent = combine(c.to(wide), u.to(wide), (scale - 1) / (pipeline_scale - 1)).to(c.dtype)
    return torch.cat([torch.where((rows == pipeline_scale) | (rows == 0), u, bent), torch.where(rows == 0, u, c)])


def _inputs(args: tuple, kwargs: Mapping[str, Any]) -> tuple[int, float]:
    x = args[0] if args else kwargs["sample"] if "sample" in kwargs else kwargs["hidden_states"]
    timestep = args[1] if len(args) > 1 else kwargs["timestep"]
    return len(x), float(timestep.flatten()[0] if isinstance(timestep, Tensor) else timestep)


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return type(value)(**{key: _each(inner, change) for key, inner in value.items()})
    return type(value)([_each(inner, change) for inner in value]) if isinstance(value, list | tuple) else value


def _hook(undo: ExitStack, module: Any, before: Callable, after: Callable) -> None:
    compiled, thread = getattr(module, "_compiled_call_impl", None), get_ident()  # threads may share the module
    if compiled is None:
        pre, post = (lambda *x, own=own: own(*x) if get_ident() == thread else None for own in (before, after))
        undo.callback(module.register_forward_pre_hook(pre, with_kwargs=True).remove)
        undo.callback(module.register_forward_hook(post, with_kwargs=True).remove)
        return
    if getattr(compiled, "__name__", "") == "outside":
        raise RuntimeError("a compiled denoiser can be steered once at a time: give each thread one of its own")

    def outside(*args: Any, **kwargs: Any) -> Any:  # module.compile() would trace hooks into the graph
        if get_ident() != thread:
            return compiled(*args, **kwargs)
        args, kwargs = before(module, args, kwargs)
        return after(module, args, kwargs, compiled(*args, **kwargs))

    module._compiled_call_impl = outside
    undo.callback(setattr, module, "_compiled_call_impl", compiled)


@contextmanager
def steer(
    denoiser: Module, rule: Any, *, pipeline_scale: Callable[[], float], factor: Factor, helper: Module | None = None
) -> Iterator[Steering]:
    """Inside, every call of `denoiser` is steered by a rule, or a ready `Steering`, for one trajectory; then as before.

    Args:
        denoiser: a UNet or transformer that a sampler calls with the batch [uncond, cond] doubled.
        pipeline_scale: the guidance scale that the sampler itself will apply, read at every call; must be above 1.
        helper: a ControlNet that is called before it with the same batch, and can skip the same half.
    """
    steering = rule if isinstance(rule, Steering) else Steering(rule, pipeline_scale, factor)
    with ExitStack() as undo:
        _hook(undo, denoiser, steering.before, steering.after)
        if helper is not None:
            _hook(undo, helper, steering.before, steering.doubled)
        yield steering
