"""The figures of `weight_knobs_table.py`, which reads the results and gives rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from basinguard.plots.style import BLACK, BLUE, GREEN, GREY, LIMIT, ORANGE, PURPLE, SKY, VERMILLION, open_frame

LOOKS = [  # of the families, in their order
    (BLACK, "*"), (GREY, "D"), ("#8B0000", "d"), (BLUE, "o"), (VERMILLION, "^"), (ORANGE, "v"), (GREEN, "s"),
    (PURPLE, "P"), (SKY, "x"),
]  # fmt: skip
NOTHING = "nothing"
SHOWN = (-0.3, 1.1)  # of what was taught; a small subject's intervals are wider
Row = Mapping[str, Any]


def tradeoff(runs: Mapping[str, Mapping[str, Sequence[Row]]], safe: float, path: Path) -> None:
    """What is kept over what is copied, a panel for each run, a colour for each family."""
    figure, panels = plt.subplots(
        1, len(runs), figsize=(max(8, 4 * len(runs)), 4.6), sharey=True, layout="constrained", squeeze=False
    )
    for axes, (run, families) in zip(panels[0], runs.items(), strict=True):
        open_frame(axes)
        for (title, rows), (colour, marker) in zip(families.items(), LOOKS, strict=True):
            able = [row for row in rows if row["taught"]]
            x, y = [r["risk"]["value"] for r in able], [r["taught"]["value"] for r in able]
            axes.scatter(x, y, s=22, color=colour, marker=marker, label=title)
        axes.axvline(safe, color=GREY, linestyle=LIMIT, linewidth=1)
        axes.set(title=run, xlabel="share of samples that copy")
    panels[0][0].set_ylabel("taught, net of copies\n(0 base model, 1 true images)")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


def winners(best: Mapping[str, Mapping[str, tuple[str, Row] | None]], plain: Mapping[str, Row], path: Path) -> None:
    """What each knob keeps at most at a low risk, a panel for each run, beside plain CFG at any risk."""
    figure, panels = plt.subplots(
        1, len(best), figsize=(max(8, 3.4 * len(best)), 4.2), sharey=True, layout="constrained", squeeze=False
    )
    for axes, (run, rows) in zip(panels[0], best.items(), strict=True):
        open_frame(axes)
        names = list(rows)[::-1]
        able = {at: rows[name][1] for at, name in enumerate(names) if rows[name] is not None}
        dots(axes, {at: row["taught"] for at, row in able.items()}, BLUE)
        top = max(able, key=lambda at: able[at]["taught"]["value"])
        axes.plot(able[top]["taught"]["value"], top, "o", color=VERMILLION, markersize=9, zorder=3)
        value = plain[run]["taught"]["value"]
        axes.axvline(value, color=BLACK, linewidth=1)
        axes.axvline(0.95 * value, color=GREY, linestyle=LIMIT, linewidth=1)
        axes.set(title=run, xlabel="taught, net of copies", xlim=SHOWN)
        axes.set_yticks(range(len(names)), names)
    figure.suptitle(
        "Most taught at no more than 10 % of copies, by knob; red: the best. "
        "Line: plain CFG, whatever it copies; dashed: 95 % of it", fontsize=10,
    )  # fmt: skip
    figure.savefig(path, dpi=110)


def parts(left_out: Mapping[str, Mapping[str, Row]], path: Path) -> None:
    """What the last epoch copies and keeps without each part of its change, a panel for each run."""
    figure, panels = plt.subplots(
        1, len(left_out), figsize=(max(8, 3.6 * len(left_out)), 5.6), sharey=True, layout="constrained", squeeze=False
    )
    names = list(next(iter(left_out.values())))[::-1]
    for axes, (run, rows) in zip(panels[0], left_out.items(), strict=True):
        open_frame(axes)
        at = {name: place for place, name in enumerate(names)}
        for what, colour, shift in (("risk", VERMILLION, 0.12), ("taught", BLUE, -0.12)):
            measured = {at[n] + shift: row[what] for n, row in rows.items() if row[what]}
            dots(axes, measured, colour, "copies" if what == "risk" else "taught, net of copies")
            axes.axvline(rows[NOTHING][what]["value"], color=colour, linewidth=1, linestyle=LIMIT)
        axes.set(title=run, xlim=SHOWN)
        axes.set_yticks(range(len(names)), [f"without {n}" if n != NOTHING else "all of it" for n in names])
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=110)


def dots(axes: Axes, rows: Mapping[float, Mapping[str, float]], colour: str, label: str = "") -> None:
    """Values with their intervals, at heights."""
    x = [row["value"] for row in rows.values()]
    left = [row["value"] - row["low"] for row in rows.values()]
    right = [row["high"] - row["value"] for row in rows.values()]
    axes.errorbar(x, list(rows), xerr=[left, right], fmt="o", color=colour, markersize=5, linewidth=1.2, label=label)
