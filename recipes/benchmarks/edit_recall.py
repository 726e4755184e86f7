"""Recall of `basinguard curate` on 3,000 edits: 200 pictures, fifteen edits of each, two pictures and two others a set.

    python recipes/benchmarks/edit_recall.py --out recipes/results/curate_edits.json

An edit counts as found where it is proposed to go, or to stay, with its picture in one group: every one was compared
with the copy that stays. Finished sets are kept in the result, and a second call goes on from there. Seeds are those of
`curation_pictures`. Expect 0.99; 12 minutes of one idle core, 1 GB of memory. `--minutes` ends earlier.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from curate import provenance, run_ours
from curation_pictures import EDITS, save_with_edits

IN_A_SET = 2
STRANGERS = 500_000  # numbers of pictures that are not edited


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--minutes", type=float, default=1e6, help="of this call")
    parser.add_argument("--out", type=Path, default=Path("recipes/results/curate_edits.json"))
    args = parser.parse_args()
    import torch  # here: processes that make pictures import this file, and need none

    torch.set_num_threads(1)
    ends = time.monotonic() + 60 * args.minutes
    result = json.loads(args.out.read_text()) if args.out.exists() else {"sets": []}
    done = {each["first"] for each in result["sets"]}
    for first in range(0, args.pictures, IN_A_SET):
        if first not in done and time.monotonic() < ends:
            result["sets"].append(one_set(first, args.side))
            said = provenance(args) | {"command": "python recipes/benchmarks/edit_recall.py", "side": args.side}
            args.out.write_text(json.dumps(said | summary(result["sets"]) | {"sets": result["sets"]}) + "\n")
    print(json.dumps(summary(result["sets"]), indent=2))


def one_set(first: int, side: int) -> dict:
    """What was missed of the edits of two pictures, and pairs of different pictures."""
    numbers = range(first, first + IN_A_SET)
    with tempfile.TemporaryDirectory() as name:
        for number in numbers:
            save_with_edits(number, Path(name), side, tuple(EDITS))
            save_with_edits(STRANGERS + number, Path(name), side, ())
        run = run_ours(Path(name), 1)
    stays = {copy: best for best, copy in run["pairs"]}
    missed = [
        (number, edit)
        for number in numbers
        for edit, file in ((edit, f"{number:06d} {edit.replace('%', '').replace(':', '-')}.jpg") for edit in EDITS)
        if stays.get(file, file) != stays.get(f"{number:06d}.jpg", f"{number:06d}.jpg")
    ]
    return {
        "first": first,
        "edits": IN_A_SET * len(EDITS),
        "missed": missed,
        "wrong_pairs": sum(best[:6] != copy[:6] for best, copy in run["pairs"]),
        "original_stays": sum(f"{number:06d}.jpg" not in stays for number in numbers),
        "cpu_seconds": round(run["cpu_seconds"], 2),
    }


def summary(sets: list[dict]) -> dict:
    """Recall with its interval, clustered by picture, and the rest added up."""
    from basinguard.core.stats import rate

    pictures = [number for each in sets for number in range(each["first"], each["first"] + IN_A_SET)]
    missed = {tuple(pair) for each in sets for pair in each["missed"]}
    hits = [(number, edit) not in missed for number in pictures for edit in EDITS]
    of_edit = {edit: sum((number, edit) in missed for number in pictures) for edit in EDITS}
    return {
        "edits": len(hits),
        "recall": rate(hits, [number for number in pictures for _ in EDITS]).model_dump() if hits else None,
        "missed_by_edit": {edit: count for edit, count in of_edit.items() if count},
        "wrong_pairs": sum(each["wrong_pairs"] for each in sets),
        "original_stays": sum(each["original_stays"] for each in sets),
        "pictures": len(pictures),
        "cpu_seconds": round(sum(each["cpu_seconds"] for each in sets), 1),
    }


if __name__ == "__main__":
    main()
