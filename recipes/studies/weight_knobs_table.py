"""The figures and the table of `weight_knobs.py`: which knob keeps most at which risk, and which parts hold the copies.

Copy this file, do not import it.

    python recipes/studies/weight_knobs_table.py

Expected: weight_knobs.md, weight_knobs.png and weight_knobs_parts.png beside weight_knobs.json.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from basinguard.plots.style import BLACK, BLUE, GREEN, GREY, LIMIT, ORANGE, PURPLE, SKY, VERMILLION, open_frame

SAFE = 0.1  # measured share of copies that still counts as safe here; a promise takes more samples
FAMILIES = {  # what a row's name has, in this order
    "mean of epochs": (r"^mean of", BLACK, "*"),
    "guidance scale 1.5": (r"scale 1\.5", GREY, "D"),
    "rule in guidance": (r"rule", "#8B0000", "d"),
    "share of the epoch": (r"share", BLUE, "o"),
    "less above a timestep": (r"above", VERMILLION, "^"),
    "less below a timestep": (r"below", ORANGE, "v"),
    "parts of the network": (r"alone|without (?!the first)", GREEN, "s"),
    "singular values": (r"rank|first|singular", PURPLE, "P"),
    "random channels": (r"random", SKY, "x"),
}
Row = Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("recipes/results"))
    args = parser.parse_args()
    runs = json.loads((args.results / "weight_knobs.json").read_text())
    tradeoff(runs, args.results / "weight_knobs.png")
    parts(runs, args.results / "weight_knobs_parts.png")
    text = report(runs)
    (args.results / "weight_knobs.md").write_text(text, "utf-8")
    print(text)


def family(name: str) -> str:
    """What a product turns."""
    return next(title for title, (pattern, *_) in FAMILIES.items() if re.search(pattern, name))


def kept(row: Row) -> float:
    """What is left of what was taught, net of copies."""
    return row["taught"]["value"] if row["taught"] else float("nan")


def report(runs: Mapping[str, Mapping[str, Row]]) -> str:
    """The best of each family that copied at most `SAFE`, and every row."""
    lines = [
        "# Which change of the weights keeps most",
        "",
        "`python recipes/studies/weight_knobs.py`, then `weight_knobs_table.py`. Plain CFG at scale 3 where none is "
        "named; risk of 48 samples of training captions, taught of 40 of held-out ones, net of copies; 95 % intervals. "
        "One training each, and the best of many rows is lucky: compare families, not third digits.",
        "",
    ]
    for run, rows in runs.items():
        top = max(rows.items(), key=lambda item: kept(item[1]))
        lines += [f"## {run}", "", f"Most taught at any risk: {top[0]}, {cells(top[1])}.", ""]
        lines += [
            f"| knob | most taught at a risk of at most {SAFE:.0%} | risk | taught | norm |",
            "|---|---|---|---|---|",
        ]
        for title in FAMILIES:
            able = {n: r for n, r in rows.items() if family(n) == title and r["risk"]["value"] <= SAFE}
            best = max(able.items(), key=lambda item: kept(item[1]), default=None)
            lines.append(
                f"| {title} | none |  |  |  |" if best is None else f"| {title} | {best[0]} | {row_cells(best[1])}"
            )
        lines += [""]
    return "\n".join(lines)


def interval(estimate: Row | None) -> str:
    """A value with its interval."""
    return "-" if estimate is None else f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


def cells(row: Row) -> str:
    """For a sentence."""
    return f"taught {interval(row['taught'])}, risk {interval(row['risk'])}"


def row_cells(row: Row) -> str:
    """For a table."""
    return f"{interval(row['risk'])} | {interval(row['taught'])} | {row['norm']:.2f} |"


def tradeoff(runs: Mapping[str, Mapping[str, Row]], path: Path) -> None:
    """What is kept over what is copied, a panel for each run."""
    figure, panels = plt.subplots(
        1, len(runs), figsize=(max(8, 4 * len(runs)), 4.6), sharey=True, layout="constrained", squeeze=False
    )
    for axes, (run, rows) in zip(panels[0], runs.items(), strict=True):
        open_frame(axes)
        for title, (_, colour, marker) in FAMILIES.items():
            own = [row for name, row in rows.items() if family(name) == title]
            axes.scatter(
                [r["risk"]["value"] for r in own],
                [kept(r) for r in own],
                s=22,
                color=colour,
                marker=marker,
                label=title,
            )
        axes.axvline(SAFE, color=GREY, linestyle=LIMIT, linewidth=1)
        axes.set(title=run, xlabel="share of samples that copy")
    panels[0][0].set_ylabel("taught, net of copies\n(0 base model, 1 true images)")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


def parts(runs: Mapping[str, Mapping[str, Row]], path: Path) -> None:
    """What is copied and kept with one part of the network alone and without it, of each run's middle epoch."""
    runs = {run: rows for run, rows in runs.items() if any("alone" in name for name in rows)}
    figure, panels = plt.subplots(
        2, len(runs), figsize=(max(6, 4 * len(runs)), 6), sharey="row", layout="constrained", squeeze=False
    )
    for column, (run, rows) in zip(panels.T, runs.items(), strict=True):
        last = max(int(re.match(r"epoch (\d+)", name)[1]) for name in rows if "alone" in name)
        own = {n.partition(", ")[2]: r for n, r in rows.items() if n.startswith(f"epoch {last},")}
        names = ["share 1", *(n for n in own if family(n) == "parts of the network")]
        for axes, value, label in zip(
            column, (lambda r: r["risk"]["value"], kept), ("copies", "taught, net of copies"), strict=True
        ):
            open_frame(axes)
            axes.barh([n.replace("share 1", "everything") for n in names[::-1]], [value(own[n]) for n in names[::-1]],
                      color=[BLUE if "without" in n else GREEN for n in names[::-1]])  # fmt: skip
            axes.set(title=f"{run}, epoch {last}", xlabel=label)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
