"""The table and the figure of `acting_study.py`, and the coefficients of the forecast.

    python recipes/studies/acting_table.py --runs runs/acting --out recipes/results

Writes acting_study.json, .md and .png; the forecast is fitted by `forecast_fit.py` beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
from forecast_fit import ALPHA, FEATURES, MAIN, never_rows, rows_of, scored

from basinguard.core import stats
from basinguard.core.provenance import versions
from basinguard.core.report import Report
from basinguard.guard.verdict import verdict_on
from basinguard.similarity.structure import Structure

STUDY = Path(__file__).parents[1] / "results" / "basin_study.json"
POLICIES = {
    "fixed": "at most 30 updates per image",
    "validation": "lowest validation loss",
    "last": "last epoch",
    "plain": "the guard's, plain CFG",
    "guarded": "the guard's, guarded sampling",
}
LOOKS = {
    "fixed": ("o", "#7f7f7f"),
    "validation": ("s", "#E69F00"),
    "last": ("^", "#D55E00"),
    "plain": ("D", "#0072B2"),
    "guarded": ("*", "#009E73"),
}


def summary_of(out: Path) -> dict[str, Any]:
    """Everything that was measured, in one object."""
    base = json.loads((out / "ship-base.json").read_text())
    rows, histories, sizes = [], {}, {}
    for path in sorted(out.glob("[0-9]*.json"), key=_by_run):
        run, fresh_samples = json.loads(path.read_text()), out / f"ship-{path.name}"
        name, sizes[path.stem] = path.stem, run["run"]["size"]
        histories[name] = [Report.model_validate(row) for row in run["history"]]
        if fresh_samples.exists():
            rows.append(
                {"run": name, **verdicts_of(histories[name]), **shipped_by(json.loads(fresh_samples.read_text()), base)}
            )
    if STUDY.exists():  # another recipe's run, whose unconditional branch is held
        histories["basin study"] = [Report.model_validate(row) for row in json.loads(STUDY.read_text())["history"]]
        sizes["basin study"] = 32
    probes = [row for name, history in histories.items() for row in rows_of(name, sizes[name], history)]
    forecasts = {name: scored(probes, used) for name, used in FEATURES.items()}
    best = forecasts[MAIN]
    acted = [json.loads(path.read_text()) for path in sorted(out.glob("act-*.json"), key=lambda p: p.stat().st_mtime)]
    for one in acted:
        one["fidelity"] = fidelity(one["distance"], base)
        one["history"] = [{"epoch": r["epoch"], "risk": r["risk"]} for r in one["history"]]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "runs": rows,
        "base": base,
        "forecast": forecasts,
        "forecast_without_breach": never_rows(histories, best["coefficients"], best["interval"][1]),
        "acting": acted,
        "allowed": ALPHA,
        "sizes": sizes,
        "metric": Structure().metric.model_dump(),
        "versions": versions(),
        "commit": commit,
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": "python recipes/studies/acting_study.py train all (ship all, act all); "
        "python recipes/studies/acting_table.py",
        "histories": {name: [brief(report) for report in history] for name, history in histories.items()},
    }


def brief(report: Report) -> dict[str, Any]:
    """A report without its lists: what the figure and the forecast read."""
    basin = report.basin.model_copy(update={"exits": (), "curve": ()})
    less = report.model_copy(update={"basin": basin, "images": (), "groups": ()})
    return json.loads(less.to_json())


def _by_run(path: Path) -> tuple[int, str]:
    size, method = path.stem.split("-", 1)
    return int(size), method


def verdicts_of(history: list[Report]) -> dict[str, Any]:
    """What the guard said, epoch by epoch."""
    verdicts = [verdict_on(history[: k + 1], ALPHA) for k in range(len(history))]
    return {
        "probed": [r.epoch for r in history[1:]],
        "first_alarm": next((v.epoch for v in verdicts if v.level >= 1), None),
        "would_stop": next((v.epoch for v in verdicts if v.breaches()), None),
        "would_stop_guarded": next((v.epoch for v in verdicts if v.breaches("guarded")), None),
        "first_copy": next((r.epoch for r in history[1:] if r.samples.risk and r.samples.risk.value > 0), None),
        "verdicts": {str(v.epoch): v.state for v in verdicts},
    }


def shipped_by(ships: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """What each policy ships, measured on fresh seeds."""
    shipped: dict[str, Any] = {}
    for name in POLICIES:
        epoch = ships["epochs"][name]
        samples = ships["guarded" if name == "guarded" else "plain"].get(str(epoch))
        shipped[name] = {"epoch": epoch, **(samples or {})}
        if samples:
            shipped[name]["fidelity"] = fidelity(samples["distance"], base)
    return shipped


def fidelity(distance: dict[str, float], base: dict[str, Any]) -> dict[str, float]:
    """How much of the way from the base model's style to the set's was gone, with the interval of the distance."""
    whole = base["distance"]["value"]
    ends = {"value": "value", "low": "high", "high": "low"}
    return {end: 1 - distance[other] / whole for end, other in ends.items()}


def interval(estimate: dict[str, float], digits: int = 2) -> str:
    return f"{estimate['value']:.{digits}f} [{estimate['low']:.{digits}f}, {estimate['high']:.{digits}f}]"


HEAD = """# When to stop and which epoch to ship, on TinyWorld

{count} fine-tunes to a style, dusk; a run is named set size, method, learning rate. Allowed risk {allowed:g}, probes of
16 (8 images) or 24 samples. What would be shipped was sampled anew on fresh seeds: 32 (caption, seed) pairs for the
risk, a sample of each of 16 held-out captions for alignment and fidelity (share of the way from the base model to the
style; 1 is all of it). 95 % intervals. Epochs count from 0; only some were probed, so "first copy" and "would stop" are
the first *probed* epochs.
"""
ACTED = """## Interventions, at equal updates

One fine-tune of 8 images, 120 passes in batches of 4, full at learning rate 0.0016 (LoRA 0.005); its last epoch under
plain CFG, 48 pairs and 32 samples of held-out captions. One training each: a difference of two rows also holds the
chance of that training.
"""


COLUMNS = (
    *("shipped by", "runs", "mean risk", "above the allowed risk", "mean fidelity", "mean alignment"),
    "the guard's plain epoch less this one, run by run: fidelity, alignment",
)


def markdown(summary: dict[str, Any]) -> str:
    """The tables, for people."""
    lines = [HEAD.format(count=len(summary["runs"]), allowed=summary["allowed"])]
    lines.append("| run | probed | first alarm | would stop | first copy | " + " | ".join(POLICIES.values()) + " |")
    lines.append("|---|---|---|---|---|" + "---|" * len(POLICIES))
    for row in summary["runs"]:
        said = [row[key] for key in ("first_alarm", "would_stop", "first_copy")]
        cells = [row["run"], ", ".join(map(str, row["probed"])), *("never" if e is None else str(e) for e in said)]
        lines.append("| " + " | ".join([*cells, *(_shipped(row[name]) for name in POLICIES)]) + " |")
    lines += ["", f"| {' | '.join(COLUMNS)} |"]
    lines.append("|---|---|---|---|---|---|---|")
    lines += ["| " + " | ".join(means(summary, name, text)) + " |" for name, text in POLICIES.items()]
    lines += ["", "## Forecast of the breach", "", *forecast_lines(summary)]
    if summary["acting"]:
        lines += ["", ACTED, "| option | risk | fidelity | alignment | at the end |", "|---|---|---|---|---|"]
    for one in summary["acting"]:
        cells = [one["name"], *(interval(one[k]) for k in ("risk", "fidelity", "alignment")), one["did"]]
        lines.append("| " + " | ".join(cells) + " |")
    metric = summary["metric"]
    lines += ["", f"Metric: {metric['embedder']}, threshold {metric['threshold']:g}. Commit {summary['commit']}."]
    return "\n".join(lines) + "\n"


def _shipped(one: dict[str, Any]) -> str:
    if "risk" not in one:
        return "none"
    more = f"fidelity {one['fidelity']['value']:.2f}, alignment {one['alignment']['value']:.2f}"
    return f"epoch {one['epoch']}: risk {interval(one['risk'])}, {more}"


def means(summary: dict[str, Any], name: str, text: str) -> list[str]:
    """One row of the policies' table; runs are the clusters."""
    sold = [row[name] for row in summary["runs"] if "risk" in row[name]]
    if not sold:
        return [text, "0", "", "", "", "", ""]
    over = sum(one["risk"]["value"] > summary["allowed"] for one in sold)
    columns = [[one[k]["value"] for one in sold] for k in ("risk", "fidelity", "alignment")]
    risk, faith, alignment = (stats.cluster_bootstrap(c, range(len(c))).model_dump() for c in columns)
    cells = [text, str(len(sold)), interval(risk), f"{over} of {len(sold)}", interval(faith), interval(alignment)]
    return [*cells, ", ".join(_less(summary, name, key) for key in ("fidelity", "alignment"))]


def _less(summary: dict[str, Any], name: str, key: str) -> str:
    """The guard's plain epoch less another policy's, over the runs that ship both."""
    pairs = [(row["plain"], row[name]) for row in summary["runs"] if "risk" in row["plain"] and "risk" in row[name]]
    gains = [ours[key]["value"] - theirs[key]["value"] for ours, theirs in pairs]
    return interval(stats.cluster_bootstrap(gains, range(len(gains))).model_dump())


def forecast_lines(summary: dict[str, Any]) -> list[str]:
    """How well the breach was foretold."""
    lines = []
    for name, one in summary["forecast"].items():
        error, usual = one["mean_absolute_log_error"], one["usual_passes_instead"]
        factor, other = np.exp(error["value"]), np.exp(usual["value"])
        lines.append(
            f"- from {name}: {one['rows']} forecasts on {one['runs']} runs, each run left out in turn. Mean absolute "
            f"error of log time {interval(error)}, a factor of {factor:.2f}; the usual number of passes instead gives "
            f"{interval(usual)}, a factor of {other:.2f}. The {one['wanted_coverage']:.0%} interval held the truth in "
            f"{interval(one['coverage'])}."
        )
    never = summary["forecast_without_breach"]
    lines.append(
        f"- runs that never exceeded the allowed risk: {never['runs']}; {never['breach_said_within_the_run']} of "
        f"{never['forecasts']} forecasts put the whole interval before their end, and were wrong."
    )
    return lines


def figure(summary: dict[str, Any]) -> Any:
    """Risk and fidelity of what each policy ships, run by run, and forecasts against the truth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), dpi=120, layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.2, 1.2, 1])
    names = [row["run"] for row in summary["runs"]]
    for axes, key, title in ((left, "risk", "risk, fresh seeds"), (middle, "fidelity", "fidelity, share of the style")):
        for k, (name, (mark, colour)) in enumerate(LOOKS.items()):
            at = [(row[name][key]["value"], i) for i, row in enumerate(summary["runs"]) if "risk" in row[name]]
            x, y = [value for value, _ in at], [i + 0.14 * (k - 2) for _, i in at]
            axes.plot(x, y, mark, color=colour, markersize=6, label=POLICIES[name])
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.invert_yaxis()
        axes.set_title(title, fontsize=10)
    left.axvline(summary["allowed"], color="#7f7f7f", linestyle="--", linewidth=1)
    figure.legend(*left.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=5, frameon=False)
    _forecasts(right, summary)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    return figure


def _forecasts(axes: Any, summary: dict[str, Any]) -> None:
    one = summary["forecast"][MAIN]
    low, high = np.exp(one["interval"])
    for name, history in summary["histories"].items():
        for row in rows_of(name, summary["sizes"][name], [Report.model_validate(r) for r in history]):
            y = np.exp(row.left - one["errors"][f"{name} at {row.train_step}"])
            ends = [[max(0.0, y - y * low)], [max(0.0, y * high - y)]]
            axes.errorbar(
                np.exp(row.left), y, yerr=ends, fmt="o", markersize=4, color=LOOKS["plain"][1], elinewidth=0.7
            )
    axes.plot([1, 20], [1, 20], color="#7f7f7f", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="breach / now, in updates", ylabel="forecast of it")
    axes.set_title("forecasts, own run left out", fontsize=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/acting"))
    parser.add_argument("--out", type=Path, default=Path("recipes/results"))
    args = parser.parse_args()
    summary = summary_of(args.runs)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "acting_study.json").write_text(json.dumps(summary, indent=1) + "\n")
    (args.out / "acting_study.md").write_text(markdown(summary))
    figure(summary).savefig(args.out / "acting_study.png")
    print(markdown(summary))


if __name__ == "__main__":
    main()
