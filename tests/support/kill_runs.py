"""Kills guarded runs with SIGKILL at random moments, resumes them, and counts what was lost.

    PYTHONPATH=tests python tests/support/kill_runs.py --kills 60 --out result.json

Each life is a run of two epochs that calibrates and exports at its end. It is killed two to six times, at a random
moment after it has entered a random phase, resumed from its newest checkpoint each time, and then left to finish. What
it has at the end must equal the outcome of a run that was never killed.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from basinguard.exports import directory as exporting
from basinguard.exports.integrity import check_export
from basinguard.guard.guard import Guard
from basinguard.training import guarded_run
from support.guarded_runs import TERMS, digest, fit, make_guard, picture_folder, untimed
from support.tiny_pipeline import build_tiny_pipeline

PHASES = ("start", "training", "probe", "checkpoint", "calibration", "export")
LONGEST = {"start": 0.3, "training": 0.3, "probe": 0.3, "checkpoint": 0.03, "calibration": 0.3, "export": 0.5}
EPOCHS = 2


class Clock(Callback):
    """Tells the parent that training has begun."""

    def __init__(self, enter):
        self.enter = enter

    def on_train_batch_start(self, *args):
        self.enter("training")


def announce(owner, name, phase, enter):
    """Makes a function say in which phase the process is."""
    inner = getattr(owner, name)

    def announced(*args, **kwargs):
        enter(phase)
        result = inner(*args, **kwargs)
        enter("training")
        return result

    setattr(owner, name, announced)


def newest(folder: Path) -> Path | None:
    """The newest checkpoint; every one that is there must be readable."""
    paths = sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    for path in paths:
        torch.load(path, weights_only=True)
    return paths[-1] if paths else None


def live(root: Path, place: mmap.mmap) -> None:
    """One process: begins or resumes the run in `root`, to its end."""

    def enter(phase: str) -> None:
        place[0] = PHASES.index(phase)

    announce(Guard, "measure", "probe", enter)
    announce(Trainer, "save_checkpoint", "checkpoint", enter)
    announce(guarded_run, "export_calibrated", "calibration", enter)
    announce(exporting, "whole_directory", "export", lambda phase: place.__setitem__(0, PHASES.index("export")))
    newest_three = {"save_top_k": 3, "monitor": "step", "mode": "max"}
    keep = ModelCheckpoint(root / "kept", filename="{step}", every_n_train_steps=1, **newest_three)
    keep_epochs = ModelCheckpoint(root / "kept", filename="epoch-{epoch}", every_n_epochs=1, save_top_k=-1)
    guard = make_guard(export_to=str(root / "shipped"), on_error="raise", terms=TERMS)
    _, module = fit(
        root.parent / "base", root.parent / "pictures", root, guard, keep, keep_epochs, Clock(enter),
        epochs=EPOCHS, ckpt=newest(root / "kept"), model={"method": "full"},
    )  # fmt: skip
    record = guard.run.record.model_copy(update={"history": ()})
    outcome = {
        "history": [report.to_json() for report in untimed(guard.history)],
        "record": record.to_json(),
        "weights": digest(dict(module.named_parameters())),
        "kept": digest(guard.run.best_weights.weights("guarded")),
    }
    (root / "outcome.json").write_text(json.dumps(outcome))


def spawn(root: Path, place: mmap.mmap) -> int:
    """Forks a process that lives; its output goes to a file."""
    place[0] = 0
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        log = os.open(root / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        live(root, place)
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def await_phase(pid: int, place: mmap.mmap, phase: str) -> bool:
    """Waits until the process is in the phase; False when it ended before."""
    while place[0] != PHASES.index(phase):
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        time.sleep(0.0005)
    return True


def kill_once(root: Path, place: mmap.mmap, draw: random.Random) -> str | None:
    """Starts or resumes the run and kills it; the phase it was in, or None when it ended first."""
    phase = draw.choice(PHASES)
    pid = spawn(root, place)
    if not await_phase(pid, place, phase):
        return None
    time.sleep(draw.uniform(0, LONGEST[phase]))
    if os.waitpid(pid, os.WNOHANG)[0]:
        return None
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return PHASES[place[0]]


def losses(root: Path, wanted: dict[str, object]) -> list[str]:
    """What a finished life lacks."""
    outcome = root / "outcome.json"
    if not outcome.is_file():
        return [f"did not finish: {(root / 'log.txt').read_text()[-600:]}"]
    result = json.loads(outcome.read_text())
    return [f"{key} differs" for key in wanted if result[key] != wanted[key]]


def broken_export(root: Path) -> list[str]:
    """An export is not there, or is whole."""
    shipped = root / "shipped"
    return list(check_export(shipped).problems) if shipped.exists() else []


def main() -> None:
    """Kills, resumes, compares, and writes what happened."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()

    draw, place, start = random.Random(asked.seed), mmap.mmap(-1, 1), time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="kills-"))
    build_tiny_pipeline().save_pretrained(work / "base")
    picture_folder(work / "pictures")
    (work / "whole").mkdir()
    os.waitpid(spawn(work / "whole", place), 0)
    wanted = json.loads((work / "whole" / "outcome.json").read_text())
    phases: Counter[str] = Counter()
    lost, lives = [], 0
    while phases.total() < asked.kills:
        lives += 1
        root = work / f"life{lives}"
        root.mkdir()
        for _ in range(draw.randint(2, 6)):
            phase = kill_once(root, place, draw)
            if phase is None:
                break
            phases[phase] += 1
            lost += [f"life {lives}, killed in {phase}: {problem}" for problem in broken_export(root)]
        if not (root / "outcome.json").is_file():
            os.waitpid(spawn(root, place), 0)
        lost += [f"life {lives}: {problem}" for problem in losses(root, wanted) + broken_export(root)]
        shutil.rmtree(root)
        print(f"{phases.total()} kills in {lives} lives, lost: {len(lost)}", flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    result = {
        "command": f"PYTHONPATH=tests python tests/support/kill_runs.py --kills {asked.kills} --seed {asked.seed}",
        "commit": commit.strip(),
        "kills": phases.total(),
        "killed_in": {phase: phases[phase] for phase in PHASES},
        "lives": lives,
        "lost": lost,
        "seconds": round(time.monotonic() - start),
        "machine": f"{platform.machine()}, python {platform.python_version()}, torch {torch.__version__}, CPU",
    }
    print(json.dumps(result, indent=2))
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=2) + "\n")
    shutil.rmtree(work)
    raise SystemExit(bool(lost))


if __name__ == "__main__":
    main()
