"""How far a detector that reads the gap (dynamic transition) is from the true exit, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import stats
from ..core.estimate import Estimate
from ..core.report import Exit
from ..diffusion.sampling import sample
from ..guidance.dynamic import SwitchAfter
from .trajectories import Pairs, Probe


@dataclass(frozen=True)
class DetectorError:
    """A detector against the exits of the same trajectories.

    Attributes:
        early: share of memorizing pairs for which it turns guidance on at or above the exit: they copy.
        never: share of memorizing pairs for which it does not fire at all: guidance stays off.
        distance: median of exit less detected timestep over memorizing pairs for which it fires; positive is late
            (safe, at the price of guidance), negative is early. None when it fires for none.
        fired: timestep at which guidance comes on, for each pair; None where it does not.
        evals: sample-evaluations of the network.
    """

    early: Estimate
    never: Estimate
    distance: Estimate | None
    fired: tuple[float | None, ...]
    evals: int


def detector_error(probe: Probe, pairs: Pairs, exits: Sequence[Exit], rule: SwitchAfter) -> DetectorError:
    """Runs the rule on trajectories whose exit is known.

    Args:
        probe: the model and the sampler that the exits were measured with.
        pairs: those trajectories.
        exits: their exits, found with the same scale before the switch.
        rule: the detector, the scale before it fires and the one after.

    Raises:
        ValueError: none of the pairs memorizes, so there is no exit to compare with; or the rule's two scales are the
            same, so that its switch cannot be seen.
    """
    if rule.after is None or rule.after == rule.before:
        raise ValueError(f"{rule}: expected two different scales, before and after the switch")
    inside = [e.timestep is not None for e in exits]
    if not any(inside):
        raise ValueError(f"none of {len(exits)} pairs memorizes: there is no exit to compare the detector with")
    fired, evals = _fired(probe, pairs, rule)
    known = [(e, f) for e, f in zip(exits, fired, strict=True) if e.timestep is not None]
    clusters = [e.caption for e, _ in known]
    late = [(e.timestep - f, e.caption) for e, f in known if f is not None and e.timestep is not None]
    return DetectorError(
        early=stats.rate([f is not None and e.reproduced_from(f) for e, f in known], clusters),
        never=stats.rate([f is None for _, f in known], clusters),
        distance=stats.cluster_bootstrap([d for d, _ in late], [c for _, c in late], stats.median) if late else None,
        fired=tuple(fired),
        evals=evals,
    )


def _fired(probe: Probe, pairs: Pairs, rule: SwitchAfter) -> tuple[list[float | None], int]:
    when = torch.full((len(pairs),), -1.0)
    evals = 0
    args = (probe.evaluate, pairs.noise, pairs.prompt, probe.schedule, probe.timesteps, rule, probe.solver)
    for step in sample(*args):
        new = (step.scale == rule.after) & (when < 0)
        when[new] = step.timestep[new].float()
        evals += step.unet_evals
    return [None if t < 0 else t for t in _numbers(when)], evals


def _numbers(values: Tensor) -> list[float]:
    return [float(v) for v in values]
