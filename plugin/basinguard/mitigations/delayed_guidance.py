"""Jain et al., delayed guidance by its equations: static or dynamic transition, none or opposite guidance before it.

Source: Jain et al., CVPR 2025, arXiv 2411.16738: STP (section 4.2), DTP (4.3), OG (4.4). Defaults of the paper: tau 500
for a fine-tuned SD 2.1 (600 to 700 for class prompts), OG with s = 2 at tau 650; CFG 7.5. The rules are those of
`guidance.core`, whose docstring says where the released code differs; `delayed_guidance_released` has what that code
intends.

Weights written for CFG 7.5 are scaled to the testbed's own guidance scale. Cost: STP one evaluation instead of two
before the transition; DTP and OG two throughout.
"""

from __future__ import annotations

from torch import Tensor

from ..guidance.core import SwitchAt
from ..guidance.dynamic import LocalMinimum, SwitchAfter
from .base import Mitigation
from .stock_pipeline import sample_pipeline
from .testbed import Batch, Testbed

PAPER = "Jain et al., CVPR 2025, arXiv 2411.16738"
TRANSITIONS = (950.0, 850.0, 750.0, 650.0, 500.0)
OPPOSITE = 2.0  # the paper's s at CFG 7.5


def _stp(testbed: Testbed, batch: Batch, transition: float) -> Tensor:
    return sample_pipeline(testbed, batch, SwitchAt(transition, before=0.0, after=None))


def _og_stp(testbed: Testbed, batch: Batch, transition: float) -> Tensor:
    return sample_pipeline(testbed, batch, SwitchAt(transition, before=-OPPOSITE * testbed.units, after=None))


def _dtp(testbed: Testbed, batch: Batch, depth: float) -> Tensor:
    return sample_pipeline(testbed, batch, SwitchAfter(LocalMinimum(depth), before=0.0, after=None))


def _og_dtp(testbed: Testbed, batch: Batch, opposite: float) -> Tensor:
    return sample_pipeline(testbed, batch, SwitchAfter(LocalMinimum(), before=-opposite * testbed.units, after=None))


STP = Mitigation("stp", f"{PAPER}, section 4.2", "transition, timestep", TRANSITIONS, 650.0, _stp)
OG_STP = Mitigation("og-stp", f"{PAPER}, section 4.4; s = 2", "transition, timestep", TRANSITIONS, 650.0, _og_stp)
DTP = Mitigation(
    "dtp",
    f"{PAPER}, section 4.3",
    "depth a minimum needs, share of the peak; 0 is the paper's",
    (0.0, 0.1, 0.2, 0.3, 0.5),
    0.0,
    _dtp,
)
OG_DTP = Mitigation(
    "og-dtp", f"{PAPER}, section 4.4", "opposite scale s, at CFG 7.5", (0.5, 1.0, 2.0, 4.0, 7.5), 2.0, _og_dtp
)
