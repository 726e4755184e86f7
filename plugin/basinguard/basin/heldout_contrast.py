"""A measure of training captions against the base model's and against that of captions never trained on.

Source: ours; held-out captions move too while a model learns, and only what training captions do beyond them warns.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..core import stats
from ..core.estimate import Estimate


@dataclass(frozen=True)
class HeldoutContrast:
    """How far the training captions have moved away from captions the model never saw.

    Attributes:
        since_base: mean rise of a training caption's measure since the base model.
        excess: that rise less the held-out captions' own; the alarm is raised when its interval lies above 0.
        auc: chance that a training caption rose more than a held-out one.
        ranking: training captions, the one that rose most first.
        rise: of each caption in that order.
    """

    since_base: Estimate
    excess: Estimate
    auc: Estimate
    ranking: tuple[int, ...]
    rise: tuple[float, ...]

    @property
    def raised(self) -> bool:
        """Whether the training captions rose more than chance explains."""
        return self.excess.low > 0


def contrast_with_heldout(now: Tensor, base: Tensor, control: Tensor, control_base: Tensor) -> HeldoutContrast:
    """Compares a measure of every caption with the base model's, and with that of held-out captions.

    Args:
        now, base: the measure of each training caption in this model and in the base model, same noise, [N].
        control, control_base: the same of held-out captions, [M].

    Raises:
        ValueError: no held-out captions, or lists that do not belong together.
    """
    if now.shape != base.shape or control.shape != control_base.shape or not len(now) or not len(control):
        raise ValueError(
            f"{list(now.shape)} against {list(base.shape)} training and {list(control.shape)} against "
            f"{list(control_base.shape)} held-out captions; expected one value for each caption in both models"
        )
    rise, control_rise = (now - base).double(), (control - control_base).double()
    order = rise.argsort(descending=True)
    return HeldoutContrast(
        since_base=stats.cluster_bootstrap(rise, range(len(rise))),
        excess=stats.mean_difference(rise, control_rise),
        auc=stats.auc_interval(rise, control_rise),
        ranking=tuple(order.tolist()),
        rise=tuple(rise[order].tolist()),
    )
