"""The change of colours that turns one picture into another: none, one of light and tint, or grey.

A tint, an exposure or a gamma moves all colours of a picture by one rule. A shirt in another colour does not: what lies
around it stays. So a rule is believed only where it explains nearly everything with few numbers, and never where the
picture has hardly more colours than the rule has numbers, or where a part of the picture did not change at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CLOSE = 8.0  # levels by which the mean colour of a cell may be off
MOST = 0.75  # share of the cells that a rule must explain; the rest may lie under something
GAMMAS = tuple(np.geomspace(0.45, 2.2, 25).tolist())
GAINS, SHIFT = (0.6, 1.5), 45.0  # what an edit of light or tint does at most
GREY_GAINS, GREY_SHIFT = (0.93, 1.07), 10.0  # turning grey changes no light
CHROMA = 6.0  # levels between the channels up to which a cell is grey
WHITE = 248.0  # a cell that was white and would leave the range says that the rule is wrong, not that it is clipped
GROUND, UNCHANGED = 0.1, 4.0  # share of cells, and levels up to which a cell did not change: a ground under a new shirt
COLOURS = 12  # bins of 32 levels that must be filled before a rule of six numbers is believed
ROUNDS = 6
LUMA = np.array([0.299, 0.587, 0.114], np.float32)

Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class ColourRule:
    """`gain * 255 * (v / 255) ** gamma + shift` of each channel, of the luminance where `grey`, clipped to 0..255."""

    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    gamma: float = 1.0
    grey: bool = False

    def __call__(self, pixels: Pixels) -> Pixels:
        """Pixels [..., 3] under this rule, 0 to 255."""
        return self.unclipped(pixels).clip(0, 255)

    def unclipped(self, pixels: Pixels) -> Pixels:
        """The same, out of the range where it leads there."""
        values = np.repeat((pixels @ LUMA)[..., None], 3, -1) if self.grey else pixels
        if self.gamma != 1:
            values = 255 * (values / 255) ** np.float32(self.gamma)
        return values * np.array(self.gain, np.float32) + np.array(self.shift, np.float32)


NONE = ColourRule()


def find_rule(cells: Pixels, target: Pixels) -> ColourRule | None:
    """The rule that turns the mean colours of one picture into those of the other.

    Args:
        cells: mean colours [N, 3] of one picture, 0 to 255.
        target: those at the same places of the other.

    Returns:
        The rule, or None where none explains enough of them.
    """
    if explained(NONE, cells, target) >= MOST:
        return NONE
    if np.percentile(np.ptp(target, 1), 95) <= CHROMA < np.percentile(np.ptp(cells, 1), 50):
        rules = [ColourRule(grey=True), *_fits(cells, target, (1.0,), grey=True)]
        rules = [rule for rule in rules if _within(rule, GREY_GAINS, GREY_SHIFT)]
    elif _colours(cells) >= COLOURS and _unchanged(cells, target) < GROUND:
        rules = [rule for rule in _fits(cells, target, GAMMAS) if _within(rule, GAINS, SHIFT)]
    else:
        rules = []
    best = max(rules, key=lambda rule: explained(rule, cells, target), default=None)
    return best if best is not None and explained(best, cells, target) >= MOST else None


def explained(rule: ColourRule, cells: Pixels, target: Pixels) -> float:
    """Share of the cells whose colour a rule gets right."""
    raw = rule.unclipped(cells)
    right = np.abs(raw.clip(0, 255) - target) <= CLOSE
    if rule != NONE:
        right &= ~((raw > 255 + CLOSE) & (cells >= WHITE))
    return float(right.all(1).mean())


def _fits(cells: Pixels, target: Pixels, gammas: Sequence[float], *, grey: bool = False) -> list[ColourRule]:
    """For each gamma gains and shifts by least squares with weights that let go of what does not fit."""
    bent = np.stack([ColourRule(gamma=gamma, grey=grey)(cells) for gamma in gammas])
    x, y = np.ascontiguousarray(bent.transpose(0, 2, 1)), np.ascontiguousarray(target.T)  # [gammas, 3, N] and [3, N]
    inside = (y > 3) & (y < 252)
    weights = np.broadcast_to(inside, x.shape).astype(np.float32)
    for _ in range(ROUNDS):
        total = np.maximum(weights.sum(-1), 1e-6)
        mean_x, mean_y = (weights * x).sum(-1) / total, (weights * y).sum(-1) / total
        from_mean = x - mean_x[..., None]
        variance = (weights * from_mean**2).sum(-1)
        covariance = (weights * from_mean * (y - mean_y[..., None])).sum(-1)
        gain = np.divide(covariance, variance, out=np.ones_like(total), where=variance > total)
        shift = mean_y - gain * mean_x
        residual = np.abs(gain[..., None] * x + shift[..., None] - y)
        squared = np.square(residual / _scales(residual, inside)[..., None])
        weights = inside / (1 + squared * squared)
    return [
        ColourRule(tuple(g), tuple(s), gamma, grey)
        for g, s, gamma in zip(gain.tolist(), shift.tolist(), gammas, strict=True)
    ]


def _scales(residual: Pixels, inside: NDArray[np.bool_]) -> Pixels:
    """The robust spread of residuals [gammas, 3, N] of each channel, [gammas, 3]."""
    scales = np.full(residual.shape[:2], CLOSE, np.float32)
    for channel, rows in enumerate(inside):
        if rows.any():
            middle = np.median(residual[:, channel, rows], axis=-1)
            scales[:, channel] = np.maximum(CLOSE / 2, 1.4826 * middle)
    return scales


def _within(rule: ColourRule, gains: tuple[float, float], shift: float) -> bool:
    return all(gains[0] <= gain <= gains[1] for gain in rule.gain) and all(abs(s) <= shift for s in rule.shift)


def _unchanged(cells: Pixels, target: Pixels) -> float:
    """Share of the cells that have the same colour in both, which a change of light does not leave."""
    return float((np.abs(cells - target).max(1) <= UNCHANGED).mean())


def _colours(cells: Pixels) -> int:
    bins, counts = np.unique((cells // 32).astype(int) @ (1, 8, 64), return_counts=True)
    return int((counts >= max(2, len(cells) // 500)).sum()) if len(bins) else 0
