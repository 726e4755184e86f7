"""All scenarios of `rivals_tinyworld.py` in one table: what each mitigation retains at a risk of at most alpha.

Copy this file, do not import it.

    python recipes/studies/rivals_table.py runs/s1/comparison runs/art/comparison
    python recipes/studies/rivals_table.py runs/ink/comparison runs/few/comparison --best 12

A folder is what `basinguard compare` wrote; the one above it names the scenario and says the commit. Publishes, under
recipes/results/, rivals_NAME.json and .png for each, and rivals_table.md. Nothing is sampled; it takes seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from basinguard.mitigations.comparison import Comparison
from basinguard.mitigations.measure import Point
from basinguard.mitigations.ranking import RivalWin, best_within
from basinguard.mitigations.registry import MITIGATIONS
from basinguard.mitigations.tradeoff_figure import tradeoff

ALPHA = 0.1
DASH = "\N{EN DASH}"  # not measured
SCENARIOS = {
    "ink": "24 drawings in a style of ink, a caption of its own for each",
    "few": "4 ink drawings, each 12 times, among 40 that are there once",
    "subject": "24 pictures of one creature",
    "brick": "24 things made of brick",
    "emoji": "24 emoji with their names",
    "s1": "32 scenes, a caption of its own for each, two of them stored twice",
    "s2": "32 scenes, class prompts",
    "s3": "8 scenes, each 32 times, among 256 others",
    "s4": "24 scenes, each 32 times, among 1,000 others, trained twice as long as s3",
    "art": "32 animals of OpenMoji (openmoji.org, CC BY-SA 4.0) with their names",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("recipes/results"))
    parser.add_argument("--best", type=int, help="name so many rivals instead")
    args = parser.parse_args()
    comparisons = {folder.parent.name: read(folder) for folder in args.folders}
    if args.best:
        print(",".join(best_rivals(list(comparisons.values()), args.best)))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    commits = {folder.parent.name: (folder.parent / "commit").read_text("utf-8").strip() for folder in args.folders}
    for name, result in comparisons.items():
        publish(name, result, args.out, commits[name])
    pages = [page(name, result) for name, result in comparisons.items()]
    (args.out / "rivals_table.md").write_text("\n".join([HEAD, *pages]), encoding="utf-8")


HEAD = f"""# Every mitigation beside ours, on the same noise

For each mitigation the point with the best utility (what is left of what was taught, net of copies; alignment where the
scenario teaches nothing that the base cannot draw) among those whose measured risk is at most {ALPHA:.0%}; where
there is none, its point of least risk, marked. The intensity is chosen on the very pairs it is reported for, which
flatters mitigations with many intensities, ours among them. Brackets are 95 % intervals, prompts drawn again with all
their seeds; a risk of 0 still has the interval that its n allows. Time and memory are ratios to plain CFG at the
mitigation's default intensity, measured where they stand. Curves: `rivals_NAME.png`; every point with every sample's
similarity: `rivals_NAME.json`. What it says: `rivals_findings.md`. Made by `python
recipes/studies/rivals_tinyworld.py NAME` and `python recipes/studies/rivals_table.py`.
"""


def best_rivals(comparisons: Sequence[Comparison], count: int) -> list[str]:
    """The rivals with the lowest mean place: by utility within the budget, then, without such a point, by risk."""
    places: Counter[str] = Counter()
    for result in comparisons:
        order = rivals(result)
        places.update({name: place for place, name in enumerate(sorted(order, key=order.__getitem__))})
    return sorted(places, key=lambda name: (places[name], name))[:count]


def rivals(result: Comparison) -> dict[str, tuple[bool, float]]:
    """What each rival is ordered by in a scenario, best first when ascending."""
    order = {}
    for entry in best_within(result.points, ALPHA):
        if MITIGATIONS[entry.mitigation].ours or entry.mitigation == "plain":
            continue
        mine = [point for point in result.points if point.mitigation == entry.mitigation]
        merit = None if entry.point is None else result.points[entry.point].utility
        order[entry.mitigation] = (merit is None, -merit.value if merit else min(p.risk.value for p in mine))
    return order


def read(folder: Path) -> Comparison:
    """What `compare` measured."""
    return Comparison.from_json((folder / "comparison.json").read_text(encoding="utf-8"))


def publish(name: str, result: Comparison, out: Path, commit: str) -> None:
    """The comparison with the commit that sampled, time and machine, and its figure."""
    made = {
        "command": result.command,
        "commit": commit,
        "time": time.strftime("%Y-%m-%d %H:%M"),
        "machine": f"{result.machine} of a shared {os.cpu_count()}-core machine without GPU",
    }
    everything = made | {"scenario": SCENARIOS[name], "comparison": json.loads(result.to_json())}
    (out / f"rivals_{name}.json").write_text(json.dumps(everything) + "\n", encoding="utf-8")
    tradeoff(result.points).savefig(out / f"rivals_{name}.png")


def page(name: str, result: Comparison) -> str:
    """One scenario in markdown."""
    s = result.settings
    costs = {cost.mitigation: cost for cost in result.costs}
    lines = [
        f"## {name}: {SCENARIOS[name]}",
        "",
        f"{s.captions} captions x {s.per_caption} seeds (n = {len(result.clusters)}), {s.timesteps} sampling steps, "
        f"CFG {s.scale:g}. A copy: similarity >= {s.metric.threshold:.3f}, {s.metric.embedder}. "
        f"Alignment: {s.aligned_by}.",
    ]
    if result.points[0].quality:
        lines += [f"Quality: {result.points[0].quality.method.split('; ', 1)[-1]}."]
    lines += [
        "",
        "| mitigation | intensity | risk | taught | similarity p95 | alignment | quality | diversity | UNet rows "
        "| time x | memory x |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in best_within(result.points, ALPHA):
        able = entry.point is not None
        mine = [p for p in result.points if p.mitigation == entry.mitigation]
        point = result.points[entry.point] if entry.point is not None else min(mine, key=lambda p: p.risk.value)
        cost = costs.get(entry.mitigation)
        ratios = [cost.time_ratio.interval(2), f"{cost.memory_ratio:.2f}"] if cost else ["-", "-"]
        lines.append("| " + " | ".join([*cells(point, able), *ratios]) + " |")
    lines += [f"| {skipped.mitigation} | not run: {skipped.reason} |" + " |" * 9 for skipped in result.skipped]
    return "\n".join([*lines, "", *verdict(result), "", f"    {result.command}", ""])


def cells(point: Point, able: bool) -> Iterator[str]:
    """The columns of one mitigation; ours in bold, what is above alpha marked."""
    yield f"**{point.mitigation}**" if MITIGATIONS[point.mitigation].ours else point.mitigation
    yield f"{point.intensity:g}"
    yield point.risk.interval() + ("" if able else " above it")
    yield from (e.interval() if e else DASH for e in (point.taught, point.similarity_p95, point.alignment))
    yield point.quality.interval(4) if point.quality else DASH
    yield point.diversity.interval() if point.diversity else DASH
    yield f"{point.unet_evals:.1f}"


def verdict(result: Comparison) -> Iterator[str]:
    """Where a rival beats ours, one line a point; those whose utility none of ours reaches, in one line."""
    if not result.rival_wins:
        yield "No rival point copies less than every one of ours of at least its utility."
        return
    yield "Rival points that copy less than each of ours of at least their utility:"
    yield ""
    yield from (
        f"- {entry.rival} at {entry.intensity:g}: {difference(entry)}"
        for entry in result.rival_wins
        if entry.difference
    )
    beyond = Counter(entry.rival for entry in result.rival_wins if not entry.difference)
    if beyond:
        yield "- points whose utility none of ours reaches: " + ", ".join(f"{n} ({k})" for n, k in beyond.items())


def difference(entry: RivalWin) -> str:
    """How far ours is behind."""
    sure = "certainly" if entry.certain else "not certainly"
    return f"{entry.ours} at {entry.our_intensity:g} copies {entry.difference.interval()} more, {sure}"


if __name__ == "__main__":
    main()
