"""How long `basinguard watch` takes from a checkpoint to its verdict, and what it takes while it waits.

    python recipes/benchmarks/watch.py --data DIR --checkpoint FILE_OR_FOLDER --out recipes/results/bench_watch.json

Measures TinyWorld as the base once, starts a watch at its default settings, and copies the checkpoint into the watched
folder a few seconds later, at another moment between two looks each time. The verdict is the first line about it: of a
checkpoint that breaches the allowed risk that comes before its basin is measured. `--checkpoint` may be given more than
once. At the end a watch waits for a minute with nothing to do.

Expected on two idle cores: below 20 s to the verdict, below 1 % of a core and 150 MB while it waits. About a minute for
each repetition.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from basinguard.core.provenance import versions
from basinguard.watching.reaction import WatchPace, WatchReaction
from basinguard.watching.request import WatchRequest
from basinguard.watching.watcher import Watcher

BEFORE = 4.0  # seconds that a watch is at rest before the checkpoint comes
IDLE = 60.0  # seconds of nothing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, action="append", required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = Path(folder) / "base"
        Watcher(request(measured, args.data), WatchPace(once=True), WatchReaction(), print).run()
        rows = [latency(path, measured, Path(folder), args) for path in args.checkpoint]
        idle = at_rest(measured, args.data)
    result = {"command": " ".join(["python", *sys.argv]), "versions": versions(), "latency": rows, "idle": idle}
    args.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def request(output: Path, data: Path) -> WatchRequest:
    """A watch of this folder at its defaults."""
    return WatchRequest(output, data, "tinyworld")


def latency(checkpoint: Path, measured: Path, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds to the verdict, and to the whole report, of one checkpoint, again and again."""
    tries = [
        one_latency(checkpoint, measured, folder / "watched", args.data, k / args.repeats) for k in range(args.repeats)
    ]
    verdicts, wholes = (sorted(values) for values in zip(*tries, strict=True))
    print(f"{checkpoint}: verdict after {verdicts} s")
    middle = len(tries) // 2
    return {
        "checkpoint": checkpoint.name, "n": len(tries),
        "verdict_s": {"median": verdicts[middle], "least": verdicts[0], "most": verdicts[-1]},
        "whole_s": {"median": wholes[middle], "least": wholes[0], "most": wholes[-1]},
    }  # fmt: skip


def one_latency(checkpoint: Path, measured: Path, output: Path, data: Path, phase: float) -> tuple[float, float]:
    """Seconds from the checkpoint, which comes at a phase between two looks, to the first word and to the last."""
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(measured, output)
    pace, moments = WatchPace(idle_minutes=0.6), []

    def come() -> None:
        time.sleep(BEFORE + phase * pace.interval)
        whole = output / "checkpoint-100"
        partial = output / ".coming"
        if checkpoint.is_dir():
            shutil.copytree(checkpoint, partial)
        else:
            partial.mkdir()
            shutil.copy(checkpoint, partial)
        partial.rename(whole)
        moments.append(time.monotonic())

    def say(line: str) -> None:
        if line.startswith("checkpoint-100") and ": breach," not in line:
            moments.append(time.monotonic())

    threading.Thread(target=come, daemon=True).start()
    Watcher(request(output, data), pace, WatchReaction(), say).run()
    return round(moments[1] - moments[0], 1), round(moments[-1] - moments[0], 1)


def at_rest(measured: Path, data: Path) -> dict[str, float]:
    """Share of a core and most resident memory of a watch, and all it started, that has nothing to do."""
    command = [sys.executable, "-P", "-m", "basinguard", "watch", measured, "--data", data, "--base", "tinyworld"]
    with subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL) as process:
        watch = psutil.Process(process.pid)
        time.sleep(10)
        start, most = cpu_seconds(watch), 0
        for _ in range(round(IDLE)):
            time.sleep(1)
            most = max(most, sum(p.memory_info().rss for p in [watch, *watch.children(recursive=True)]))
        share = (cpu_seconds(watch) - start) / IDLE
        process.terminate()
    return {"core_share": round(share, 4), "rss_mb": round(most / 1e6, 1), "seconds": IDLE}


def cpu_seconds(process: psutil.Process) -> float:
    """Processor time of a process and what it started."""
    return sum(sum(p.cpu_times()[:2]) for p in [process, *process.children(recursive=True)])


if __name__ == "__main__":
    main()
