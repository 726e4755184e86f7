"""How near what ships comes to the best that plain CFG reaches at any risk, and where the limit lies: on fresh noise.

Copy this file, do not import it. It takes the runs that `weight_knobs.py` has measured and that `basinguard demo` or
`shipped_products.py` have exported, and a second one of each, trained with high noise a quarter as often, if there is
one. With noise that nothing was chosen by, and on all held-out captions, it measures again: what shipped, for those
who apply it and for plain loaders; the best of plain CFG at any epoch and scale, whatever it copies; and of all points
tried those that kept most at a risk of at most 10 %. Captions and noise are the same for all: shares are paired.

    python recipes/studies/safe_limits.py ink=runs/demo,runs/shipped/ink-24-images-seed-0-high-noise-0.25

Expected: safe_limits.json and .md under recipes/results. Time: 8 minutes a task on one core. Memory: 2 GB.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from weight_knobs import Study
from weight_knobs_edits import Knob, packaged, share
from weight_knobs_table import family, interval

from basinguard.core.estimate import Estimate
from basinguard.core.record import read_record
from basinguard.exports.layout import RECORD_FILE
from basinguard.similarity.prompt_draws import estimate_of
from basinguard.similarity.taught import Taught
from basinguard.training.guarded_export import plain_directory

COPIES, HELDOUT, PROMPTS = 96, 96, 48
FRESH = 100_000  # added to every seed
SAFE = 0.1
MEASURED_AGAIN = 3  # rows of a group
TRAININGS = USUAL, HIGH_NOISE = "", "high noise a quarter as often, "
APPLIED = ("rule in guidance", "less above a timestep", "less below a timestep")  # families that a loader must apply
PLAIN, FOR_PLAIN, SHIPS = "plain CFG, whatever it copies", "ships for plain loaders", "ships"
BEST_WEIGHTS = "of all plain weights tried, at most 10 % of copies"
BEST = "of all rules and schedules tried, at most 10 % of copies"


@dataclass(frozen=True)
class Point:
    """What is measured again, and as what: an epoch, or the mean of some, and what is done to its change."""

    role: str
    name: str
    epochs: Sequence[int]
    knob: Knob


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER[,FOLDER]", help="the usual training, and high noise")
    parser.add_argument("--results", type=Path, default=Path("recipes/results"), help="with weight_knobs.json in it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = args.results / "safe_limits.json"
    for name, _, folders in (run.partition("=") for run in args.runs):
        knobs = json.loads((args.results / "weight_knobs.json").read_text())[name]
        done = json.loads(path.read_text()) if path.exists() else {}
        if name not in done:
            rows = measured([Path(folder) for folder in folders.split(",")], knobs)
            done = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps({**done, name: rows}, indent=1))
            path.with_suffix(".md").write_text(table({**done, name: rows}), encoding="utf-8")


def measured(runs: Sequence[Path], knobs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every point of every run, and what share it is of the best of plain CFG of the first."""
    results: list[tuple[str, Point, Estimate, Taught]] = []
    for training, run in zip(TRAININGS, runs, strict=False):
        study = Study(run, "tinyworld", COPIES, HELDOUT, PROMPTS, FRESH)
        measured_once: dict[str, tuple[Estimate, Taught]] = {}
        for point in (*shipped(run), *(best_of(study, knobs) if training == USUAL else ())):
            if point.name not in measured_once:
                measured_once[point.name] = study.measure(study.mean_change(point.epochs), point.knob)
            risk, taught = measured_once[point.name]
            results.append((training, point, risk, taught))
            print(training, point.role, point.name, risk.value, taught.value, flush=True)
    plain = [taught for _, point, _, taught in results if point.role == PLAIN]
    best = max(plain, key=lambda taught: taught.value.value)
    return [row(*result, best) for result in results]


def shipped(run: Path) -> Iterator[Point]:
    """What a run has exported: for those who apply it, and for plain loaders where that is something else."""
    apart, record = plain_directory(run / "export"), read_record(run / "export" / RECORD_FILE)
    roles = {SHIPS: record} | ({FOR_PLAIN: record} if record.needs_nothing else {})
    if apart.exists():
        roles[FOR_PLAIN] = read_record(apart / RECORD_FILE)
    for role, record in roles.items():
        guidance, weights = record.guidance, record.product
        assert weights.epoch is not None
        assert weights.strength_schedule is None
        ruled = None if guidance.plain else (guidance.before, guidance.transition)
        name = f"epoch {weights.epoch + 1}, share {weights.strength:g}, scale {record.scale:g}"
        name += "" if ruled is None else f", rule {ruled[0]:g} above {ruled[1]:g}"
        edit = packaged(weights.update_filter) if weights.update_filter else share(weights.strength)
        yield Point(role, name, [weights.epoch], Knob(name, edit, scale=record.scale, rule=ruled))


def best_of(study: Study, knobs: Mapping[str, Any]) -> Iterator[Point]:
    """The rows that kept most: of plain CFG whatever it copies, and of all with at most 10 % of copies."""
    ways = {name: (epochs, knob) for name, epochs, knob in study.points()}
    tried = {name: knobs[name] for name in ways if "left out" not in name and knobs.get(name, {}).get("taught")}
    able = {name: row for name, row in tried.items() if row["risk"]["value"] <= SAFE}
    groups = (
        (PLAIN, {n: r for n, r in tried.items() if re.search(r", (share 1|scale 1\.5)$", n)}),
        (BEST_WEIGHTS, {n: r for n, r in able.items() if family(n) not in APPLIED and "rule" not in n}),
        (BEST, {n: r for n, r in able.items() if family(n) in APPLIED or "rule" in n}),
    )
    for role, rows in groups:
        for name in sorted(rows, key=lambda n: -rows[n]["taught"]["value"])[:MEASURED_AGAIN]:
            yield Point(role, name, *ways[name])


def row(training: str, point: Point, risk: Estimate, taught: Taught, best: Taught) -> dict[str, Any]:
    """What is written of a point; no share of a best that cannot be told from nothing."""
    of_best = estimate_of(taught.replicas / best.replicas, taught.n) if best.value.low > 0 else None
    return {
        "training": training, "role": point.role, "name": point.name, "risk": risk.model_dump(),
        "taught": taught.value.model_dump(), "of_best": of_best and of_best.model_dump(),
    }  # fmt: skip


def table(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Every task with its points."""
    lines = [
        "# What ships, of the best that plain CFG reaches",
        "`python recipes/studies/safe_limits.py`. TinyWorld, full fine-tunes, one training each. Risk: "
        f"structure-colour-v1 above the 99th percentile of the held-out images, {COPIES} samples of training captions; "
        f"`taught`: the smaller of two rulers, net of copies, {HELDOUT} samples of held-out captions (n: captions). "
        "Noise that nothing was chosen by, the same for all. Of the best: the paired share of the best plain CFG of "
        "the usual training among the rows here, at any epoch and guidance scale and whatever it copies; 95 % "
        "intervals. Rows of all that was tried were chosen by `weight_knobs.json`, on other noise. Ink with high noise "
        "was trained on 24 drawings, of which two are copies in the usual training.",
    ]
    for name, rows in results.items():
        lines += [f"## {name}", "| as | what | risk | taught | of the best |\n|---|---|---|---|---|\n" + rows_of(rows)]
    return "\n\n".join(lines) + "\n"


def rows_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """In the order of their roles, best first."""
    order = (PLAIN, SHIPS, FOR_PLAIN, BEST_WEIGHTS, BEST)
    ordered = sorted(rows, key=lambda r: (order.index(r["role"]), -r["taught"]["value"]))
    return "\n".join(
        f"| {r['role']} | {r['training']}{r['name']} | {interval(r['risk'])} | {interval(r['taught'])} "
        f"(n = {r['taught']['n']}) | {share_of(r['of_best'])} |"
        for r in ordered
    )


def share_of(estimate: Mapping[str, Any] | None) -> str:
    """In percent."""
    if estimate is None:
        return "cannot be told"
    return f"{estimate['value']:.0%} [{estimate['low']:.0%}, {estimate['high']:.0%}]"


if __name__ == "__main__":
    with torch.no_grad():
        main()
