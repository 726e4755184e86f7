"""Trajectories to exits, widths and curves: how large the basin of attraction around the training images is.

For one (caption, seed), guidance is switched on at some timestep of the sampler's grid; the *exit* is the smallest one
at which the trajectory still ends in a training image. The unguided part before it does not depend on where guidance
begins, so it is run once (`probe.trunk`) and every candidate is a branch off it (`probe.branch`); the exit is searched
from a guess (`search`), all rows of a batch at once, each at its own timestep, and a branch stops as soon as its
predicted clean image decides (`early`). Two cheaper measures need no trajectory: `retention` (critical scale) and
`alarm` (gap of every caption).

Source: the basin and the transition are those of arXiv 2411.16738, section 3; the scalar width, its interval and the
search are ours.
"""

from .critical_scale import Retention, critical_scale
from .curves import curve, median_exit, static_transition, width
from .detectors import DetectorError, detector_error
from .early_decision import Anchors, Limits
from .exit_search import search
from .exits import Judge, find_exits
from .gap import Alarm, caption_gaps, raise_alarm, top_gap
from .trajectories import Pairs, Probe, Trunk, branch, pairs_of, prefix, trunk

__all__ = [
    "Alarm",
    "Anchors",
    "DetectorError",
    "Judge",
    "Limits",
    "Pairs",
    "Probe",
    "Retention",
    "Trunk",
    "branch",
    "caption_gaps",
    "critical_scale",
    "curve",
    "detector_error",
    "find_exits",
    "median_exit",
    "pairs_of",
    "prefix",
    "raise_alarm",
    "search",
    "static_transition",
    "top_gap",
    "trunk",
    "width",
]
