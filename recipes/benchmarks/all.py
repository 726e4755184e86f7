"""Every speed claim as a ratio, measured here and now, in one table beside what is wanted.

    python recipes/benchmarks/all.py --quick --out runs/bench_all     about ten minutes on two idle cores
    python recipes/benchmarks/all.py --full --out runs/bench_all      an hour and a half: also full size, TinyWorld

Each claim is measured by the benchmark that it names, as a process of its own, both sides of the ratio interleaved in
it; this file asks them and reads their answers. A benchmark that fails is a row that says so, and the exit status is 1.
Ratios of times move with other work on the machine, whose load each row tells; those of evaluations do not.

Expected: bench_all.md and bench_all.json in the folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from basinguard.core.provenance import versions
from basinguard.tinyworld import model_directory

RECIPES = Path(__file__).parents[1]
Result = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One ratio.

    Attributes:
        claim: what is compared with what.
        ratio: the median.
        spread: lowest and highest, or the interval; "" where it is a count.
        wanted: what it should be.
        met: whether it is.
    """

    claim: str
    ratio: float
    spread: str
    wanted: str
    met: bool


@dataclass(frozen=True)
class Benchmark:
    """A benchmark, how it is asked, and how its answer is read."""

    script: str
    quick: tuple[str, ...] | None  # None: with --full only
    full: tuple[str, ...]
    rows: Callable[[Result], Iterator[Row]]


def guidance(result: Result) -> Iterator[Row]:
    """Guided sampling over plain CFG."""
    for name, most in (("og", 1.02), ("dtp", 1.02), ("stp", 0.83)):
        ratio = result["rows"][name]["cpu_ratio"]
        spread = f"{ratio['low']:.3f} to {ratio['high']:.3f} (n = {ratio['n']})"
        claim = f"sampling with {name} over plain CFG, batch {result['batch']}, processor time"
        yield Row(claim, ratio["median"], spread, f"at most {most:g}", ratio["median"] <= most)


def probe(result: Result) -> Iterator[Row]:
    """Exits by the search over exits by a sweep."""
    for size, row in result.items():
        least = 20.0
        same = row["same_exits"]
        spread = f"the same exit in {same['value']:.3f} [{same['low']:.3f}, {same['high']:.3f}]"
        claim = f"evaluations of a stock sweep over the search's, {size}"
        yield Row(claim, row["fewer_than_stock"], spread, f"at least {least:g}", row["fewer_than_stock"] >= least)
        claim = f"time of a thrifty sweep over the search's, {size}"
        yield Row(claim, row["faster_than_thrifty"], "", "at least 12", row["faster_than_thrifty"] >= 12)


def calibration(result: Result) -> Iterator[Row]:
    """Proofs in rounds over the fixed design."""
    ratio = result["ratio"]
    spread = f"{ratio['low']:.2f} to {ratio['high']:.2f} ({len(result['rows'])} settings)"
    claim = "evaluations of a calibration, in rounds over fixed, search included"
    yield Row(claim, ratio["value"], spread, "at most 0.25", ratio["value"] <= 0.25)
    worst = result["highest_ratio"]
    yield Row("the same, the worst single calibration", worst, "", "at most 1", worst <= 1)


def latents(result: Result) -> Iterator[Row]:
    """Updates that encode over updates from the cache."""
    cache = result["cache"]
    spread = f"{cache['lowest']:.2f} to {cache['highest']:.2f} (n = {cache['pairs']})"
    yield Row("an update that encodes over one from the cache", cache["ratio"], spread, "above 1", cache["ratio"] > 1)


TINYWORLD = ("--model", str(model_directory()), "--batch", "4", "--only", "cfg", "og", "dtp", "stp")
TOY = ("--model", "toy")
SETTINGS = ("--alphas", "0.1", "0.2", "--deltas", "0.1", "--leaks", "0.1", "0.01", "--true-pairs", "4000")
BENCHMARKS = (
    Benchmark("benchmarks/guidance.py", (*TINYWORLD, "--repeats", "5"), (*TINYWORLD, "--repeats", "15"), guidance),
    Benchmark(
        "benchmarks/guidance.py", None,
        ("--model", "sd21", "--batch", "4", "--repeats", "5", "--only", "cfg", "og", "dtp", "stp"), guidance,
    ),
    Benchmark("benchmarks/probe.py", TOY, (*TOY, "--captions", "32", "--seeds", "16"), probe),
    Benchmark("benchmarks/probe.py", None, ("--model", "tinyworld"), probe),
    Benchmark(
        "studies/calibration_montecarlo.py", ("--calibrations", "20", *SETTINGS), ("--calibrations", "100", *SETTINGS),
        calibration,
    ),
    Benchmark("benchmarks/latents.py", ("--images", "32", "--repeats", "6", "--step", "0.1"), (), latents),
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the default: what ten minutes are enough for")
    parser.add_argument("--full", action="store_true", help="everything")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    answers = [ask(benchmark, args.full) for benchmark in BENCHMARKS if args.full or benchmark.quick is not None]
    command = f"python recipes/benchmarks/all.py --{'full' if args.full else 'quick'}"
    result = {"command": command, "versions": versions(), "cores": os.cpu_count(), "benchmarks": answers}
    (args.out / "bench_all.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    (args.out / "bench_all.md").write_text(page(command, answers), "utf-8")
    print(page(command, answers))
    return 1 if any(answer["problem"] for answer in answers) else 0


def ask(benchmark: Benchmark, full: bool) -> dict[str, Any]:
    """Runs a benchmark and reads its answer."""
    options = benchmark.full if full else benchmark.quick or ()
    start, load = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, str(RECIPES / benchmark.script), *options, "--out", str(out)]
        print(f"{benchmark.script} {' '.join(options)}", flush=True)
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        rows, problem = [], "" if run.returncode == 0 else (run.stderr.strip().splitlines() or ["it failed"])[-1]
        if not problem:
            rows = [asdict(row) for row in benchmark.rows(json.loads(out.read_text("utf-8")))]
    seconds = round(time.monotonic() - start)
    words = {"script": benchmark.script, "options": " ".join(options)}
    return {**words, "rows": rows, "problem": problem, "load_before": round(load, 1), "seconds": seconds}


def page(command: str, answers: list[dict[str, Any]]) -> str:
    """One table in markdown."""
    lines = ["# Speed claims, as ratios", "", f"`{command}`", ""]
    lines += ["| what | ratio | spread | wanted | met | load | seconds |", "|---|---|---|---|---|---|---|"]
    for answer in answers:
        end = f"{answer['load_before']:g} | {answer['seconds']} |"
        if answer["problem"]:
            lines.append(f"| {answer['script']} {answer['options']} | | {answer['problem']} | | no | {end}")
        for row in answer["rows"]:
            met = "yes" if row["met"] else "**no**"
            lines.append(f"| {row['claim']} | {row['ratio']:.3g} | {row['spread']} | {row['wanted']} | {met} | {end}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
