"""How strongly a prompt pulls, at every point of a trajectory: guidance as one number per sample.

Classifier-free guidance, none, and opposite guidance are not three mechanisms: they are `scale` = 7.5, 0 and -2 in
`eps = eps_uncond + scale * (eps_cond - eps_uncond)`. A *rule* only decides that number, per sample, from the timestep
(static transition point, STP) or from the gap between the two predictions (dynamic transition point, DTP).

This file needs torch alone. It ships, unchanged, beside every exported checkpoint.

Source: Jain et al., "Classifier-Free Guidance inside the Attraction Basin May Cause Memorization", CVPR 2025,
arXiv 2411.16738 (STP, DTP, OG).

Differences from the released code: its opposite guidance flips sign at every step, here it does not; its static
transition silently changes to a 200-step grid, here it never does; its dynamic rule uses scale 1 before the
transition although the paper says "without CFG", here `before` says which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor


def combine(eps_uncond: Tensor, eps_cond: Tensor, scale: Tensor) -> Tensor:
    """`eps_uncond + scale * (eps_cond - eps_uncond)`, the only place where guidance is applied.

    Args:
        eps_uncond, eps_cond: predictions, [B, ...]; epsilon, v or velocity, since all are linear in each other.
        scale: [B]; 0 = unconditional, 1 = conditional, negative = opposite.

    Source: Ho and Salimans, arXiv 2207.12598, eq. 6, in diffusers' convention.
    """
    weight = scale.to(eps_cond.dtype).reshape(-1, *[1] * (eps_cond.ndim - 1))
    return eps_uncond + weight * (eps_cond - eps_uncond)


def gap(eps_uncond: Tensor, eps_cond: Tensor) -> Tensor:
    """Root-mean-square difference of the two epsilon predictions, [B].

    Source: arXiv 2411.16738, section 4 (d_t), divided by sqrt(numel) so that it does not depend on resolution.
    """
    return (eps_cond.float() - eps_uncond.float()).flatten(1).pow(2).mean(1).sqrt()


class Rule(Protocol):
    """Decides the guidance scale of every sample. Frozen; what it remembers goes in and out as `state`.

    `reads_gap` says whether `scale` needs the gap: if not, a branch that the scale makes irrelevant (the conditional
    one at 0, the unconditional one at 1) need not be evaluated at all.
    """

    @property
    def reads_gap(self) -> bool:
        """Whether `scale` looks at the gap."""
        ...

    def init(self, batch: int) -> Any:
        """The state before the first step."""
        ...

    def scale(self, timestep: Tensor, gap: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        """Scale of each sample [B] at `timestep` [B], given the gap [B] there, and the next state."""
        ...


@dataclass(frozen=True)
class Constant:
    """The same scale everywhere: ordinary CFG (7.5), none (0 or 1), opposite (negative).

    Example:
        >>> Constant(7.5).scale(torch.tensor([999.0]), None, None)[0]
        tensor([7.5000])
    """

    value: float

    reads_gap = False

    def init(self, batch: int) -> None:
        """No state."""

    def scale(self, timestep: Tensor, gap: Tensor | None, state: None) -> tuple[Tensor, None]:
        """`value`, whatever the timestep."""
        return torch.full_like(timestep, self.value, dtype=torch.float32), None


@dataclass(frozen=True)
class SwitchAt:
    """Static transition point: `before` above `transition`, `after` at and below it.

    `transition` is a training timestep in [0, 999], or one for each prompt of the batch: a batch that is a multiple of
    them takes equal runs of neighbours for the images of one prompt. `after=None` is the caller's own guidance scale.
    A flow matcher's T = 1000 counts as 999.

    Source: arXiv 2411.16738, section 4.2 (STP); with a negative `before`, section 4.4 (opposite guidance).

    Example:
        >>> SwitchAt(600, before=0.0, after=7.5).scale(torch.tensor([601.0, 600.0]), None, None)[0]
        tensor([0.0000, 7.5000])
    """

    transition: float | tuple[float, ...]
    before: float = 0.0
    after: float | None = 7.5

    reads_gap = False

    def __post_init__(self) -> None:
        points = self.transition if isinstance(self.transition, tuple) else (self.transition,)
        if not points or any(not 0 <= point <= 999 for point in points):
            raise ValueError(f"SwitchAt(transition={self.transition}): expected training timesteps in [0, 999]")

    def init(self, batch: int) -> None:
        """No state."""
        if isinstance(self.transition, tuple) and batch % len(self.transition):
            raise ValueError(f"SwitchAt has {len(self.transition)} transitions for a batch of {batch} samples")

    def scale(self, timestep: Tensor, gap: Tensor | None, state: None) -> tuple[Tensor, None]:
        """`before` above the transition, `after` at and below it."""
        transition = torch.tensor(self.transition, dtype=torch.float32, device=timestep.device).reshape(-1)
        transition = transition.repeat_interleave(len(timestep) // len(transition))
        return torch.where(timestep.clamp(max=999) > transition, self.before, known_scale(self.after)).float(), None


def known_scale(scale: float | None) -> float:
    """`scale`, unless it still waits for `resolve`."""
    if scale is None:
        raise ValueError("after=None stands for the caller's guidance scale; use resolve(rule, scale) before sampling")
    return scale


def resolve(rule: Rule, scale: float) -> Rule:
    """`rule` with `scale`, the caller's guidance scale, where it says `after=None`.

    Example:
        >>> resolve(SwitchAt(600, after=None), 5.0)
        SwitchAt(transition=600, before=0.0, after=5.0)
    """
    if getattr(rule, "after", scale) is None:
        rule = replace(rule, after=scale)  # type: ignore[type-var]
    inner = getattr(rule, "rule", None)
    return rule if inner is None else replace(rule, rule=resolve(inner, scale))  # type: ignore[type-var]


BEYOND = {"refine": 1, "anchor": False}  # how a record's guidance may go beyond a choice of scales


def from_record(record: Mapping[str, Any]) -> SwitchAt:
    """The rule in a record's JSON form (`{"guidance": {"transition": ..., "before": ..., "after": ...}, ...}`).

    Raises:
        ValueError: a number is missing or out of range, or more was measured than a choice of scales; says what.
    """
    try:
        numbers = record["guidance"]
        after, beyond = numbers.get("after"), [key for key, usual in BEYOND.items() if numbers.get(key, usual) != usual]
        rule = SwitchAt(float(numbers["transition"]), float(numbers["before"]), None if after is None else float(after))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"not a basinguard record, no usable 'guidance': {repr(error)[:200]} in {str(record)[:120]}"
        ) from None
    if beyond:
        told = ", ".join(f"{key}={str(numbers[key])[:80]}" for key in beyond)
        raise ValueError(
            f"the record was measured with {told}, which a stock pipeline cannot apply; calibrate without it"
        )
    return rule


def epsilon_factor(scheduler: Any) -> Callable[[float], float]:
    """What turns a difference of two raw predictions into one of epsilon, as a function of the timestep.

    Args:
        scheduler: a diffusers scheduler, of which `config` and `alphas_cumprod` are read; or None for flow matching:
            x = (1 - sigma) x_0 + sigma eps, velocity eps - x_0, sigma = t / 1000.

    Raises:
        ValueError: its timesteps are not training timesteps in [0, 1000], so a rule would mistake them.

    Source: Salimans and Ho, arXiv 2202.00512, appendix D: eps = sqrt(abar) v + sqrt(1 - abar) x.
    """
    config: Mapping[str, Any] = {} if scheduler is None else scheduler.config
    squared = getattr(scheduler, "alphas_cumprod", None)
    kind = config.get("prediction_type", "epsilon")
    if scheduler is None or kind == "flow_prediction" or type(scheduler).__name__.startswith("FlowMatch"):
        return lambda timestep: 1 - timestep / 1000
    factors: dict[str, Callable[[float], float]] = {
        "epsilon": lambda signal: 1.0,
        "v_prediction": lambda signal: signal**0.5,
        "sample": lambda signal: (signal / max(1 - signal, 1e-12)) ** 0.5,
    }
    if squared is None or config.get("timestep_type") == "continuous" or kind not in factors:
        raise ValueError(
            f"{type(scheduler).__name__} (prediction type {kind!r}) does not count in training timesteps that a rule "
            f"could use; accepted: flow matchers, and schedulers with alphas_cumprod that predict {', '.join(factors)}"
        )
    table = [factors[kind](signal) for signal in torch.as_tensor(squared).double().tolist()]
    return lambda timestep: table[min(max(round(timestep), 0), len(table) - 1)]


@dataclass(frozen=True)
class Observation:
    """One evaluation of a steered denoiser: the scale [B] used, and the gap [B] where both branches were evaluated."""

    timestep: float
    scale: Tensor
    gap: Tensor | None
    unet_evals: int


@dataclass
class Steering:
    """A rule at work inside a sampler that stacks [uncond, cond] and computes `u + s * (c - u)` by itself.

    It rewrites the unconditional half to `c + (w - 1) / (s - 1) * (u - c)`, so that the sampler's own line gives
    `u + w * (c - u)` with the rule's scale w, and a rescaling towards the conditional half (`guidance_rescale`) sees
    the true one. Rows with w = s stay untouched to the bit; rows with w = 0 become (u, u). When all rows have scale 0
    (1), only the unconditional (conditional) half is evaluated. A timestep that is seen again (second-order
    schedulers, repeated timesteps) keeps its scale, so a detector sees every noise level once.

    Made by `steer`; `remove()`, or leaving it as a context manager, restores the denoiser.
    """

    rule: Rule
    pipeline_scale: Callable[[], float]
    factor: Callable[[float], float]
    trace: list[Observation] = field(default_factory=list)
    _undo: list[Callable[[], None]] = field(default_factory=list)
    _state: Any = None
    _scale: Tensor | None = None
    _timestep: float | None = None
    _now: float = 0.0
    _half: int | None = None
    _rows: int | None = None

    def reset(self) -> None:
        """Forgets the trajectory: the next evaluation is the first of a new one."""
        self._state = self._scale = self._timestep = self._half = self._rows = None
        self.trace.clear()

    def remove(self) -> None:
        """Restores the denoiser; safe to call twice."""
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def _decide(self, gap: Tensor | None, batch: int) -> Tensor:
        if self._scale is None or self._now != self._timestep:
            rule = resolve(self.rule, self.pipeline_scale())
            state = rule.init(batch) if self._scale is None else self._state
            now = torch.full((batch,), self._now, device=None if gap is None else gap.device)
            (self._scale, self._state), self._timestep = rule.scale(now, gap, state), self._now
        return self._scale

    def _before(self, module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        rows, self._now = _inputs(args, kwargs)
        self._half = None
        if kwargs.get("guess_mode"):  # a ControlNet that is given the conditional half alone
            return args, kwargs
        if not self.pipeline_scale() > 1 or rows % 2:
            raise ValueError(
                f"guidance_scale={self.pipeline_scale()} with a batch of {rows}: a rule needs the pipeline's batched "
                "CFG, so call it with guidance_scale > 1 (the rule decides what is applied), or unprotect it"
            )
        if self._rows not in (None, rows):  # skip-layer guidance, for one, evaluates the conditional half once more
            raise ValueError(f"a batch of {rows} after one of {self._rows}: a rule can steer CFG's two halves, no more")
        self._rows = rows
        if not self.rule.reads_gap:
            scale = self._decide(None, rows // 2)
            self._half = next((value for value in (0, 1) if bool((scale == value).all())), None)
        if self._half is None:
            return args, kwargs
        which = slice(rows // 2) if self._half == 0 else slice(rows // 2, None)
        return _each((args, kwargs), lambda x: x[which] if x.ndim and len(x) == rows else x)

    def _twice(self, module: Any, args: tuple, kwargs: dict, output: Any) -> Any:
        return output if self._half is None else _each(output, lambda y: torch.cat([y, y]))

    def _after(self, module: Any, args: tuple, kwargs: dict, output: Any) -> Any:
        y = output[0]
        if self._half is not None and self._scale is not None:
            self.trace.append(Observation(self._now, self._scale, None, len(y)))
            return self._twice(module, args, kwargs, output)
        u, c = y.chunk(2)
        seen = gap(u, c) * self.factor(self._now)
        scale = self._decide(seen, len(u))
        self.trace.append(Observation(self._now, scale, seen, len(y)))
        bent = torch.cat(_rewrite(u, c, scale.to(y.device), self.pipeline_scale()))
        return _each(output, lambda _: bent)


def _rewrite(u: Tensor, c: Tensor, scale: Tensor, pipeline_scale: float) -> tuple[Tensor, Tensor]:
    rows = scale.reshape(-1, *[1] * (c.ndim - 1))
    wide = torch.promote_types(c.dtype, torch.float32)
    bent = combine(c.to(wide), u.to(wide), (scale - 1) / (pipeline_scale - 1)).to(c.dtype)
    kept = (rows == pipeline_scale) | (rows == 0)
    return torch.where(kept, u, bent), torch.where(rows == 0, u, c)


def _inputs(args: tuple, kwargs: Mapping[str, Any]) -> tuple[int, float]:
    x = args[0] if args else kwargs["sample"] if "sample" in kwargs else kwargs["hidden_states"]
    timestep = args[1] if len(args) > 1 else kwargs["timestep"]
    return len(x), float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return type(value)(**{key: _each(inner, change) for key, inner in value.items()})
    if isinstance(value, list | tuple):
        return type(value)([_each(inner, change) for inner in value])
    return value


def _hook(module: Any, before: Callable, after: Callable) -> list[Callable[[], None]]:
    compiled = getattr(module, "_compiled_call_impl", None)
    if compiled is None:
        first = module.register_forward_pre_hook(before, with_kwargs=True)
        last = module.register_forward_hook(after, with_kwargs=True)
        return [first.remove, last.remove]

    def outside(*args: Any, **kwargs: Any) -> Any:  # module.compile() would trace hooks into the graph
        args, kwargs = before(module, args, kwargs)
        return after(module, args, kwargs, compiled(*args, **kwargs))

    module._compiled_call_impl = outside
    return [lambda: setattr(module, "_compiled_call_impl", compiled)]


def steer(
    denoiser: torch.nn.Module,
    rule: Rule,
    *,
    pipeline_scale: Callable[[], float],
    factor: Callable[[float], float] = lambda timestep: 1.0,
    helper: torch.nn.Module | None = None,
) -> Steering:
    """Steers every call of `denoiser` by `rule` until the result's `remove()`, one trajectory long.

    Args:
        denoiser: a UNet or transformer that a sampler calls with the batch [uncond, cond] doubled.
        rule: decides the scale of every sample.
        pipeline_scale: the guidance scale that the sampler itself will apply, read at every call; must be above 1.
        factor: see `epsilon_factor`.
        helper: a ControlNet that is called before the denoiser with the same batch, and can skip the same half.
    """
    steering = Steering(rule, pipeline_scale, factor)
    steering._undo.extend(_hook(denoiser, steering._before, steering._after))
    if helper is not None:
        steering._undo.extend(_hook(helper, steering._before, steering._twice))
    return steering
