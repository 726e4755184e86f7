"""The table and the figures of `weight_knobs.py`: which knob keeps most at which risk, and which parts hold the copies.

Copy this file, do not import it. Trainings that do not put the images in are taken from `training_variants.json`.

    python recipes/studies/weight_knobs_table.py

Expected: weight_knobs.md, weight_knobs.png, weight_knobs_winners.png and weight_knobs_parts.png beside
weight_knobs.json.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from weight_knobs_figures import parts, tradeoff, winners

SAFE = 0.1  # measured share of copies that still counts as safe here; a promise takes more samples
LEFT_OUT = "left out: "
FAMILIES = {  # what a row's name has, in this order
    "mean of epochs": r"^mean of",
    "guidance scale 1.5": r"scale 1\.5",
    "rule in guidance": r"rule",
    "an epoch, or a share of it": r"share",
    "less above a timestep": r"above",
    "less below a timestep": r"below",
    "parts of the network": r"alone|without (?!the first)",
    "singular values": r"rank|first|singular|anchored",
    "random channels": r"random",
}
TRAINING = "another training"
Row = Mapping[str, Any]
Runs = Mapping[str, Mapping[str, Row]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("recipes/results"))
    args = parser.parse_args()
    measured = json.loads((args.results / "weight_knobs.json").read_text())
    trainings = trained(json.loads((args.results / "training_variants.json").read_text()))
    runs = {run: {n: r for n, r in rows.items() if LEFT_OUT not in n} for run, rows in measured.items()}
    left_out = {run: dict(parts_of(rows)) for run, rows in measured.items()}
    best = {run: dict(best_rows(rows, trainings.get(run, {}))) for run, rows in runs.items()}
    tradeoff({run: by_family(rows) for run, rows in runs.items()}, SAFE, args.results / "weight_knobs.png")
    winners(best, {run: most(whole(rows))[1] for run, rows in runs.items()}, args.results / "weight_knobs_winners.png")
    parts({run: rows for run, rows in left_out.items() if rows}, args.results / "weight_knobs_parts.png")
    text = report(runs, best, left_out)
    (args.results / "weight_knobs.md").write_text(text, "utf-8")
    print(text)


def family(name: str) -> str:
    """What a product turns."""
    return next(title for title, pattern in FAMILIES.items() if re.search(pattern, name))


def by_family(rows: Mapping[str, Row]) -> dict[str, list[Row]]:
    """Rows of each family."""
    return {title: [row for name, row in rows.items() if family(name) == title] for title in FAMILIES}


def trained(variants: Mapping[str, Mapping[str, Row]]) -> dict[str, dict[str, Row]]:
    """Other trainings of every bit of the weights, by run and name: of the first seed, and not as the run itself."""
    rows: dict[str, dict[str, Row]] = {}
    for key, steps in variants.items():
        run, *way, seed = key.split(", ")
        if seed == "seed 0" and "LoRA" not in way and way != ["uniform"]:
            rows.setdefault(run, {}).update({f"{', '.join(way)}, {step} updates": row for step, row in steps.items()})
    return rows


def best_rows(rows: Mapping[str, Row], trainings: Mapping[str, Row]) -> Iterable[tuple[str, tuple[str, Row] | None]]:
    """Of each family what keeps most and copies at most `SAFE`; None where nothing does or nothing was tried."""
    groups = {title: {n: r for n, r in rows.items() if family(n) == title} for title in FAMILIES}
    for title, group in {**groups, TRAINING: trainings}.items():
        able = {name: row for name, row in group.items() if row["risk"]["value"] <= SAFE and row["taught"]}
        yield title, most(able) if able else None


def parts_of(rows: Mapping[str, Row]) -> Iterable[tuple[str, Row]]:
    """What was left out of the last epoch, and its row."""
    return ((name.partition(LEFT_OUT)[2], row) for name, row in rows.items() if LEFT_OUT in name)


def whole(rows: Mapping[str, Row]) -> dict[str, Row]:
    """Plain CFG with all of an epoch, at any scale and risk."""
    return {name: row for name, row in rows.items() if re.search(r", (share 1|scale 1\.5)$", name)}


def most(rows: Mapping[str, Row]) -> tuple[str, Row]:
    """What keeps most."""
    return max(rows.items(), key=lambda item: item[1]["taught"]["value"] if item[1]["taught"] else -1.0)


def report(
    runs: Runs, best: Mapping[str, Mapping[str, tuple[str, Row] | None]], left_out: Mapping[str, Mapping[str, Row]]
) -> str:
    """The best of each family that copied at most `SAFE`, and what the last epoch is without each part."""
    lines = [
        "# Which change of the weights keeps most",
        "",
        "`python recipes/studies/weight_knobs.py`, then `weight_knobs_table.py`. Plain CFG at scale 3 where none is "
        "named; risk of 48 samples of training captions (emoji 64, in its last table 96), taught of 40 of held-out "
        "ones, net of copies; 95 % intervals. Another training: full fine-tunes of `training_variants.json`, risk of "
        "96 samples. One training each, and the best of many rows is lucky: compare families, not third digits; "
        "`safe_limits.md` measures the best again. The last tables leave one part out of the change of the last epoch.",
        "",
    ]
    for run, rows in runs.items():
        name, row = most(whole(rows))
        lines += [f"## {run}", "", f"Most taught by plain CFG at any risk: {name}, {cells(row)}.", ""]
        lines += [f"| knob | most taught at a risk of at most {SAFE:.0%} | risk | taught | norm |", f"|{'---|' * 5}"]
        lines += [f"| {title} | none |  |  |  |" if b is None else line(title, *b) for title, b in best[run].items()]
        lines += [""]
        if left_out[run]:
            lines += ["| left out of the last epoch | risk | taught | norm of what is left |", f"|{'---|' * 4}"]
            lines += [f"| {part} | {row_cells(row)} |" for part, row in left_out[run].items()]
            lines += [""]
    return "\n".join(lines)


def line(title: str, name: str, row: Row) -> str:
    """A knob's best row."""
    return f"| {title} | {name} | {row_cells(row)} |"


def interval(estimate: Row | None) -> str:
    """A value with its interval."""
    return "-" if estimate is None else f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


def cells(row: Row) -> str:
    """For a sentence."""
    return f"taught {interval(row['taught'])}, risk {interval(row['risk'])}"


def row_cells(row: Row) -> str:
    """For a table."""
    norm = f"{row['norm']:.2f}" if "norm" in row else ""
    return f"{interval(row['risk'])} | {interval(row['taught'])} | {norm}"


if __name__ == "__main__":
    main()
