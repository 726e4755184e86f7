"""How far a detector that reads the gap (dynamic transition) is from the true exit, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..core import stats
from ..core.estimate import Estimate
from ..core.report_parts import Exit
from ..diffusion.sampling import sample_trajectory
from ..guidance.dynamic import SwitchAfter
from .trajectories import GuidedModel, Pairs


@dataclass(frozen=True)
class DetectorError:
    """A detector against the exits of the same trajectories.

    Attributes:
        early: share of memorizing pairs for which it turns guidance on at or above the exit: they copy.
        never: share of memorizing pairs for which it does not fire at all: guidance stays off.
        distance: median of exit less detected timestep over memorizing pairs for which it fires; positive is late
            (safe, at the price of guidance), negative is early. None when it fires for none.
        fired: timestep at which guidance comes on, for each pair; None where it does not.
    """

    early: Estimate
    never: Estimate
    distance: Estimate | None
    fired: tuple[float | None, ...]


def detector_error(model: GuidedModel, pairs: Pairs, exits: Sequence[Exit], rule: SwitchAfter) -> DetectorError:
    """Runs the rule on trajectories whose exit is known.

    Args:
        model: the model and the sampler that the exits were measured with.
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
    fired = _fired(model, pairs, rule)
    memorizing = [(e, f) for e, f in zip(exits, fired, strict=True) if e.timestep is not None]
    clusters = [e.caption for e, _ in memorizing]
    late = [(e.timestep - f, e.caption) for e, f in memorizing if f is not None and e.timestep is not None]
    return DetectorError(
        early=stats.rate([f is not None and e.reproduced_from(f) for e, f in memorizing], clusters),
        never=stats.rate([f is None for _, f in memorizing], clusters),
        distance=stats.cluster_bootstrap([d for d, _ in late], [c for _, c in late], stats.median) if late else None,
        fired=tuple(fired),
    )


def _fired(model: GuidedModel, pairs: Pairs, rule: SwitchAfter) -> list[float | None]:
    when = torch.full((len(pairs),), -1.0)
    arguments = (pairs.noise, pairs.prompt, model.schedule, model.timesteps, rule, model.solver)
    for visit in sample_trajectory(model.evaluate, *arguments):
        new = (visit.scale == rule.after) & (when < 0)
        when[new] = visit.timestep[new].float()
    return [None if t < 0 else t for t in when.tolist()]
