"""How many pictures does `basinguard curate` propose to drop from sets that hold no picture twice?

Twelve families of look-alikes (`lookalike_families`), several sets of each: whatever is dropped is wrong. Each set is
curated twice, with captions that say what is shown and with one caption for all of them, as a trigger word alone is.

    python recipes/benchmarks/wrong_drops.py --sets 32 --pictures 24 --first-seed 4000000 \\
        --out recipes/results/curate_lookalikes.json

Expected: none of 768 in any family. Time: about an hour of one core. Memory: 1 GB. What is finished is kept in the
result file, and a second call goes on from there. Thresholds were chosen on other sets.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

from lookalike_families import FAMILIES, draw

FIRST_SEED = 2_000_000  # development used smaller ones


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--sets", type=int, default=4, help="of each family")
    parser.add_argument("--pictures", type=int, default=24, help="in a set")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--keep", type=Path, help="folder for the sets of which something was dropped, to look at")
    parser.add_argument("--out", type=Path, default=Path("recipes/results/curate_lookalikes.json"))
    args = parser.parse_args()
    result = json.loads(args.out.read_text()) if args.out.exists() else {}
    settings = {name: getattr(args, name) for name in ("sets", "pictures", "first_seed")}
    if result.get("settings", settings) != settings:
        raise SystemExit(f"{args.out} holds another setting: {result['settings']}; delete it or name another --out")
    result = provenance() | {"settings": settings, "families": result.get("families", {})}
    for family in args.families:
        if family not in result["families"]:
            result["families"][family] = measured(family, args)
            args.out.write_text(json.dumps(result, indent=2) + "\n")
            print(family, result["families"][family], flush=True)


def provenance() -> dict:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "command": "python recipes/benchmarks/wrong_drops.py",
        "commit": commit,
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def measured(family: str, args: argparse.Namespace) -> dict:
    """Dropped pictures of all sets of a family, with captions that tell them apart and without."""
    from basinguard.core.stats import wilson

    started, dropped = time.process_time(), {"captioned": [], "one caption": []}
    for number in range(args.sets):
        pictures = draw(family, args.first_seed + number, args.pictures)
        for kind, names in dropped.items():
            with tempfile.TemporaryDirectory() as name:
                directory = args.keep / f"{family} {number} {kind}" if args.keep else Path(name)
                write(directory, pictures, captioned=kind == "captioned")
                names += [f"{number}/{file_name}" for file_name in drops(directory)]
    total = args.sets * args.pictures
    return {
        "pictures": total,
        "cpu_ms_per_image": round(1000 * (time.process_time() - started) / (2 * total), 1),
        **{
            kind: {"dropped": names, "share": wilson(len(names), total).model_dump()} for kind, names in dropped.items()
        },
    }


def write(directory: Path, pictures: list, *, captioned: bool) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for number, (picture, caption) in enumerate(pictures):
        picture.save(directory / f"{number:03d}.png")
        (directory / f"{number:03d}.txt").write_text(caption if captioned else "zxq style")


def drops(directory: Path) -> list[str]:
    """Names of the images of a folder that are proposed to be dropped as copies."""
    from basinguard.curation.duplicates import find_pairs
    from basinguard.curation.folder import read_folder
    from basinguard.curation.groups import find_groups
    from basinguard.curation.same_picture import Judge
    from basinguard.curation.scan import scan_images

    scan = scan_images(read_folder(directory, decode=False).items, workers=1)
    judge = Judge(scan)
    groups = find_groups(scan, find_pairs(scan, judge=judge), judge=judge)
    return [scan.items[row].file_name for group in groups for row in group.members[1:]]


if __name__ == "__main__":
    main()
