"""The finding of copies by `basinguard curate`, in turn with an older version of it and with two other programs.

    python recipes/benchmarks/curate_beside.py --images 1000 --side 512 --rounds 3 --before DIR \\
        --imagededup PYTHON --immaculate PROGRAM --out recipes/results/curate_beside_1000.json

DIR is a checkout of the older version, PYTHON an interpreter with imagededup, PROGRAM the command of immaculate; each
may be left out. Every run is a process of its own with one worker, on the same images, which hold no picture twice
unless `--copies` gives the share that are edits, fifteen of a picture. Seconds are of the processor, child
processes included, and without `startup`, which is imports; immaculate's are in. Expect: half a minute of the processor
for 1,000 images and a round, 1 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from curate import provenance, save_enlarged
from curation_pictures import EDITS, save_with_edits

OURS = """
import json, resource, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from basinguard.curation.duplicates import find_pairs
from basinguard.curation.folder import read_folder
from basinguard.curation.groups import find_groups
from basinguard.curation.scan import scan_images
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
marks, before = [time.process_time()], peak()
scan = scan_images(read_folder(Path(sys.argv[1]), decode=False).items, workers=1); marks.append(time.process_time())
pairs = find_pairs(scan); marks.append(time.process_time())
groups = find_groups(scan, pairs); marks.append(time.process_time())
scanned, paired, grouped = (round(b - a, 2) for a, b in zip(marks, marks[1:]))
print(json.dumps({"startup": round(marks[0], 2), "scan": scanned, "pairs": paired, "groups": grouped,
                  "seconds": round(marks[-1] - marks[0], 2), "mb_after_startup": peak() - before,
                  "dropped": sum(len(group.members) - 1 for group in groups)}))
"""
IMAGEDEDUP = """
import json, sys, time
from imagededup.methods import PHash
startup, method = time.process_time(), PHash(verbose=False)
encodings = method.encode_images(image_dir=sys.argv[1], num_enc_workers=0)
found = method.find_duplicates(encoding_map=encodings, num_dist_workers=0)
print(json.dumps({"startup": round(startup, 2), "found": sum(map(bool, found.values()))}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--copies", type=float, default=0.0, help="share of the images that are edits of others")
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", type=Path, help="checkout of an older version")
    parser.add_argument("--imagededup", help="an interpreter that has it")
    parser.add_argument("--immaculate", help="its command")
    parser.add_argument("--folder", type=Path, help="images that were made before, or where to keep them")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = args.folder or Path(name)
        make(folder, args)
        runs: dict[str, list[dict]] = {}
        for _ in range(args.rounds):
            for program, (command, environment) in programs(args, folder).items():
                runs.setdefault(program, []).append(one_run(command, environment))
                print(program, runs[program][-1], file=sys.stderr, flush=True)
    result = provenance(args) | {"command": said(args), "images": args.images, "copies": args.copies, "side": args.side}
    result |= {"programs": {program: {"seconds": spread(each), "runs": each} for program, each in runs.items()}}
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["programs"], indent=2))


def said(args: argparse.Namespace) -> str:
    """The command as anyone may type it."""
    words = f"--images {args.images} --copies {args.copies} --side {args.side} --rounds {args.rounds}"
    given = [("--before", args.before, "DIR"), ("--imagededup", args.imagededup, "PYTHON")]
    given += [("--immaculate", args.immaculate, "PROGRAM")]
    others = "".join(f" {option} {stands_for}" for option, value, stands_for in given if value)
    return f"python recipes/benchmarks/curate_beside.py {words}{others}"


def make(folder: Path, args: argparse.Namespace) -> None:
    """Images and, for a share of them, edits, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    if sum(1 for _ in folder.iterdir()) >= args.images:
        return
    edited = round(args.images * args.copies / len(EDITS))
    for number in range(edited):
        save_with_edits(number, folder, args.side, tuple(EDITS))
    for number in range(edited, args.images - edited * len(EDITS)):
        save_enlarged(number, folder, args.side)


def programs(args: argparse.Namespace, folder: Path) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Command and environment of each."""
    here = Path(__file__).resolve().parents[2]
    all_of_them = {"now": ([sys.executable, "-P", "-c", OURS, str(folder)], {"PYTHONPATH": str(here / "plugin")})}
    if args.before:
        all_of_them["before"] = (all_of_them["now"][0], {"PYTHONPATH": str(args.before / "plugin")})
    if args.imagededup:
        all_of_them["imagededup phash"] = ([args.imagededup, "-c", IMAGEDEDUP, str(folder)], {})
    if args.immaculate:
        all_of_them["immaculate pdq"] = ([args.immaculate, "--json", str(folder)], {})
    return all_of_them


def one_run(command: list[str], environment: dict[str, str]) -> dict:
    """What a run printed, and the processor seconds and peak memory of the whole process."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, **environment, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    whole = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    measured = {"whole": round(whole, 2), "clock": round(time.perf_counter() - started, 2)}
    if done.returncode not in (0, 1) or "Traceback" in done.stderr:
        return measured | {"problem": (done.stderr.strip().splitlines() or ["?"])[-1][:200]}
    last = (done.stdout.strip().splitlines() or ["{}"])[-1]
    with_json = json.loads(last) if last.startswith("{") and len(last) < 1000 else {}
    return measured | with_json


def spread(runs: list[dict]) -> dict:
    values = [run.get("seconds", round(run["whole"] - run.get("startup", 0.0), 2)) for run in runs]
    return {"median": round(float(np.median(values)), 2), "least": min(values), "most": max(values)}


if __name__ == "__main__":
    main()
