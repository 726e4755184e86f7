"""The table and the figure of `acting_study.py`, and the coefficients of the forecast.

Copy this file, do not import it.

    python recipes/studies/acting_table.py --runs runs/acting --out recipes/results

Writes acting_study.json, .md and .png. The forecast is fitted on the runs whose risk exceeded alpha and scored on
each of them with that run left out; its interval is learnt the same way. Coefficients go into `guard.forecast` by hand.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from basinguard.core import stats
from basinguard.core.provenance import versions
from basinguard.core.report import Report
from basinguard.guard.forecast import features
from basinguard.guard.verdict import judge
from basinguard.similarity.structure import Structure

ALLOWED = 0.1
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
FEATURES = {"gap, critical scale, width": (0, 1, 2), "gap, width": (0, 2)}
MAIN = "gap, critical scale, width"
LEVEL, RIDGE = 0.8, 0.1  # of the forecast's interval; of the fit, on standardised features


@dataclass(frozen=True)
class Row:
    """One probe before a breach: what had risen, and log(t* / t)."""

    run: str
    train_step: int
    features: tuple[float, ...]
    left: float
    images: int


def breach_of(history: list[Report]) -> tuple[int, float] | None:
    """Index of the first report above the allowed risk, and t*: between it and the one before, on a log scale."""
    for k, report in enumerate(history):
        if report.epoch >= 0 and report.samples.risk is not None and report.samples.risk.value > ALLOWED:
            before = max(1, history[k - 1].train_step)
            return k, float(np.sqrt(before * report.train_step))
    return None


def rows_of(name: str, images: int, history: list[Report]) -> list[Row]:
    """Every probe before the breach of one run; none where there was no breach."""
    found = breach_of(history)
    if found is None:
        return []
    before = (r for r in history[: found[0]] if r.epoch >= 0)
    return [Row(name, r.train_step, features(r), float(np.log(found[1] / r.train_step)), images) for r in before]


def fitted_line(rows: list[Row], used: tuple[int, ...]) -> np.ndarray:
    """Constant and coefficients by ridge regression on standardised features; every run weighs the same."""
    x, y = np.array([[row.features[k] for k in used] for row in rows]), np.array([row.left for row in rows])
    weight = np.array([1 / sum(other.run == row.run for other in rows) for row in rows])
    weight /= weight.sum()
    mean, spread = weight @ x, np.sqrt(weight @ (x - weight @ x) ** 2) + 1e-9
    z, middle = (x - mean) / spread, weight @ y
    slope = np.linalg.solve(z.T @ (weight[:, None] * z) + RIDGE * np.eye(len(used)), z.T @ (weight * (y - middle)))
    return np.array([middle - slope / spread @ mean, *(slope / spread)])


def told(line: np.ndarray, seen: tuple[float, ...], used: tuple[int, ...]) -> float:
    """The forecast of log(t* / t)."""
    return float(line[0] + sum(c * seen[k] for c, k in zip(line[1:], used, strict=True)))


def left_out(rows: list[Row], used: tuple[int, ...]) -> list[float]:
    """Error of each row, truth less forecast, by a line fitted without its run."""
    errors = []
    for row in rows:
        line = fitted_line([other for other in rows if other.run != row.run], used)
        errors.append(row.left - told(line, row.features, used))
    return errors


def ends_of(errors: list[float]) -> tuple[float, float]:
    """Quantiles that leave (1 - LEVEL) / 2 outside on each side, by rank (n + 1); the extremes where n is small."""
    ranked, n = np.sort(errors), len(errors)
    k = max(1, int(np.floor((n + 1) * (1 - LEVEL) / 2)))
    return float(ranked[k - 1]), float(ranked[n - k])


def scored(rows: list[Row], used: tuple[int, ...]) -> dict[str, Any]:
    """Errors on runs left out, and how often an interval learnt without the run holds the truth."""
    errors, inside, naive = left_out(rows, used), [], []
    for row, error in zip(rows, errors, strict=True):
        others = [other for other in rows if other.run != row.run]
        low, high = ends_of(left_out(others, used))
        inside.append(low <= error <= high)
        passes = np.median([other.left + np.log(other.train_step / other.images) for other in others])
        naive.append(row.left - float(passes + np.log(row.images / row.train_step)))
    runs = [row.run for row in rows]
    return {
        "rows": len(rows),
        "runs": len(set(runs)),
        "coverage": stats.rate(inside, runs).model_dump(),
        "wanted_coverage": LEVEL,
        "mean_absolute_log_error": stats.cluster_bootstrap(np.abs(errors), runs).model_dump(),
        "usual_passes_instead": stats.cluster_bootstrap(np.abs(naive), runs).model_dump(),
        "mean_log_error": float(np.mean(errors)),
        "coefficients": fitted_line(rows, used).tolist(),
        "interval": ends_of(errors),
        "errors": dict(zip([f"{r.run} at {r.train_step}" for r in rows], errors, strict=True)),
    }


def never_rows(histories: dict[str, list[Report]], line: list[float], high: float) -> dict[str, Any]:
    """Runs without a breach: how often the interval lay wholly within what was trained, and was so wrong."""
    without = [history for history in histories.values() if breach_of(history) is None]
    wrong = [
        r.train_step * np.exp(told(np.array(line), features(r), FEATURES[MAIN]) + high) < history[-1].train_step
        for history in without
        for r in history[1:-1]
    ]
    return {"runs": len(without), "forecasts": len(wrong), "breach_said_within_the_run": int(sum(wrong))}


def summary_of(out: Path) -> dict[str, Any]:
    """Everything that was measured, in one object."""
    base = json.loads((out / "ship-base.json").read_text())
    rows, histories, sizes = [], {}, {}
    for path in sorted(out.glob("[0-9]*.json"), key=_by_run):
        found, sold = json.loads(path.read_text()), out / f"ship-{path.name}"
        name, sizes[path.stem] = path.stem, found["run"]["size"]
        histories[name] = [Report.model_validate(row) for row in found["history"]]
        if sold.exists():
            rows.append({"run": name, **said_of(histories[name]), **sold_by(json.loads(sold.read_text()), base)})
    if STUDY.exists():  # another recipe's run, whose unconditional branch is held
        histories["basin study"] = [Report.model_validate(row) for row in json.loads(STUDY.read_text())["history"]]
        sizes["basin study"] = 32
    known = [row for name, history in histories.items() for row in rows_of(name, sizes[name], history)]
    forecasts = {name: scored(known, used) for name, used in FEATURES.items()}
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
        "allowed": ALLOWED,
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


def said_of(history: list[Report]) -> dict[str, Any]:
    """What the guard said, epoch by epoch."""
    verdicts = [judge(history[: k + 1], ALLOWED) for k in range(len(history))]
    return {
        "probed": [r.epoch for r in history[1:]],
        "first_alarm": next((v.epoch for v in verdicts if v.level >= 1), None),
        "would_stop": next((v.epoch for v in verdicts if v.breaches()), None),
        "would_stop_guarded": next((v.epoch for v in verdicts if v.breaches("guarded")), None),
        "first_copy": next((r.epoch for r in history[1:] if r.samples.risk and r.samples.risk.value > 0), None),
        "verdicts": {str(v.epoch): v.state for v in verdicts},
    }


def sold_by(ships: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """What each policy ships, measured on fresh seeds."""
    sold: dict[str, Any] = {}
    for name in POLICIES:
        epoch = ships["epochs"][name]
        kept = ships["guarded" if name == "guarded" else "plain"].get(str(epoch))
        sold[name] = {"epoch": epoch, **(kept or {})}
        if kept:
            sold[name]["fidelity"] = fidelity(kept["distance"], base)
    return sold


def fidelity(distance: dict[str, float], base: dict[str, Any]) -> dict[str, float]:
    """How much of the way from the base model's style to the set's was gone, with the interval of the distance."""
    whole = base["distance"]["value"]
    ends = {"value": "value", "low": "high", "high": "low"}
    return {end: 1 - distance[other] / whole for end, other in ends.items()}


def interval(found: dict[str, float], digits: int = 2) -> str:
    return f"{found['value']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


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


def markdown(found: dict[str, Any]) -> str:
    """The tables, for people."""
    lines = [HEAD.format(count=len(found["runs"]), allowed=found["allowed"])]
    lines.append("| run | probed | first alarm | would stop | first copy | " + " | ".join(POLICIES.values()) + " |")
    lines.append("|---|---|---|---|---|" + "---|" * len(POLICIES))
    for row in found["runs"]:
        said = [row[key] for key in ("first_alarm", "would_stop", "first_copy")]
        cells = [row["run"], ", ".join(map(str, row["probed"])), *("never" if e is None else str(e) for e in said)]
        lines.append("| " + " | ".join([*cells, *(_sold(row[name]) for name in POLICIES)]) + " |")
    lines += ["", f"| {' | '.join(COLUMNS)} |"]
    lines.append("|---|---|---|---|---|---|---|")
    lines += ["| " + " | ".join(means(found, name, text)) + " |" for name, text in POLICIES.items()]
    lines += ["", "## Forecast of the breach", "", *forecast_lines(found)]
    if found["acting"]:
        lines += ["", ACTED, "| option | risk | fidelity | alignment | at the end |", "|---|---|---|---|---|"]
    for one in found["acting"]:
        cells = [one["name"], *(interval(one[k]) for k in ("risk", "fidelity", "alignment")), one["did"]]
        lines.append("| " + " | ".join(cells) + " |")
    metric = found["metric"]
    lines += ["", f"Metric: {metric['embedder']}, threshold {metric['threshold']:g}. Commit {found['commit']}."]
    return "\n".join(lines) + "\n"


def _sold(one: dict[str, Any]) -> str:
    if "risk" not in one:
        return "none"
    more = f"fidelity {one['fidelity']['value']:.2f}, alignment {one['alignment']['value']:.2f}"
    return f"epoch {one['epoch']}: risk {interval(one['risk'])}, {more}"


def means(found: dict[str, Any], name: str, text: str) -> list[str]:
    """One row of the policies' table; runs are the clusters."""
    sold = [row[name] for row in found["runs"] if "risk" in row[name]]
    if not sold:
        return [text, "0", "", "", "", "", ""]
    over = sum(one["risk"]["value"] > found["allowed"] for one in sold)
    columns = [[one[k]["value"] for one in sold] for k in ("risk", "fidelity", "alignment")]
    risk, faith, alignment = (stats.cluster_bootstrap(c, range(len(c))).model_dump() for c in columns)
    told = [text, str(len(sold)), interval(risk), f"{over} of {len(sold)}", interval(faith), interval(alignment)]
    return [*told, ", ".join(_less(found, name, key) for key in ("fidelity", "alignment"))]


def _less(found: dict[str, Any], name: str, key: str) -> str:
    """The guard's plain epoch less another policy's, over the runs that ship both."""
    pairs = [(row["plain"], row[name]) for row in found["runs"] if "risk" in row["plain"] and "risk" in row[name]]
    gains = [ours[key]["value"] - theirs[key]["value"] for ours, theirs in pairs]
    return interval(stats.cluster_bootstrap(gains, range(len(gains))).model_dump())


def forecast_lines(found: dict[str, Any]) -> list[str]:
    """How well the breach was foretold."""
    lines = []
    for name, one in found["forecast"].items():
        error, usual = one["mean_absolute_log_error"], one["usual_passes_instead"]
        factor, other = np.exp(error["value"]), np.exp(usual["value"])
        lines.append(
            f"- from {name}: {one['rows']} forecasts on {one['runs']} runs, each run left out in turn. Mean absolute "
            f"error of log time {interval(error)}, a factor of {factor:.2f}; the usual number of passes instead gives "
            f"{interval(usual)}, a factor of {other:.2f}. The {one['wanted_coverage']:.0%} interval held the truth in "
            f"{interval(one['coverage'])}."
        )
    never = found["forecast_without_breach"]
    lines.append(
        f"- runs that never exceeded the allowed risk: {never['runs']}; {never['breach_said_within_the_run']} of "
        f"{never['forecasts']} forecasts put the whole interval before their end, and were wrong."
    )
    return lines


def figure(found: dict[str, Any]) -> Any:
    """Risk and fidelity of what each policy ships, run by run, and forecasts against the truth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), dpi=120, layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.2, 1.2, 1])
    names = [row["run"] for row in found["runs"]]
    for axes, key, title in ((left, "risk", "risk, fresh seeds"), (middle, "fidelity", "fidelity, share of the style")):
        for k, (name, (mark, colour)) in enumerate(LOOKS.items()):
            at = [(row[name][key]["value"], i) for i, row in enumerate(found["runs"]) if "risk" in row[name]]
            x, y = [value for value, _ in at], [i + 0.14 * (k - 2) for _, i in at]
            axes.plot(x, y, mark, color=colour, markersize=6, label=POLICIES[name])
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.invert_yaxis()
        axes.set_title(title, fontsize=10)
    left.axvline(found["allowed"], color="#7f7f7f", linestyle="--", linewidth=1)
    figure.legend(*left.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=5, frameon=False)
    _forecasts(right, found)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    return figure


def _forecasts(axes: Any, found: dict[str, Any]) -> None:
    one = found["forecast"][MAIN]
    low, high = np.exp(one["interval"])
    for name, history in found["histories"].items():
        for row in rows_of(name, found["sizes"][name], [Report.model_validate(r) for r in history]):
            y = np.exp(row.left - one["errors"][f"{name} at {row.train_step}"])
            ends = [[max(0.0, y - y * low)], [max(0.0, y * high - y)]]
            axes.errorbar(
                np.exp(row.left), y, yerr=ends, fmt="o", markersize=4, color=LOOKS["plain"][1], elinewidth=0.7
            )
    axes.plot([1, 20], [1, 20], color="#7f7f7f", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="breach / now, in updates", ylabel="forecast of it")
    axes.set_title("forecasts, own run left out", fontsize=10)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--runs", type=Path, default=Path("runs/acting"))
    ask.add_argument("--out", type=Path, default=Path("recipes/results"))
    told = ask.parse_args()
    found = summary_of(told.runs)
    told.out.mkdir(parents=True, exist_ok=True)
    (told.out / "acting_study.json").write_text(json.dumps(found, indent=1) + "\n")
    (told.out / "acting_study.md").write_text(markdown(found))
    figure(found).savefig(told.out / "acting_study.png")
    print(markdown(found))


if __name__ == "__main__":
    main()
