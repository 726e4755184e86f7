"""How fast is `basinguard curate`, and what does it find, beside imagededup's perceptual hash on the same images?

    python recipes/benchmarks/curate.py recall                     # 200 pictures x 15 edits, 512 px
    python recipes/benchmarks/curate.py scale --sizes 1000 5000    # time and memory of each stage; 50000: 5 GB disk
    python recipes/benchmarks/curate.py vectors --vectors 1000000  # the pairwise stage on synthetic 512-d vectors

Needs `pip install imagededup` for the first. Pictures are made here (noise at several scales and discs), so anyone can
make the same ones; photographs may give other numbers. Prints one JSON object.
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
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from curation_pictures import EDITS, FIRST_SEED, enlarged, make_folder

BLOCK = 2**16  # vectors made at once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["recall", "scale", "one-size", "vectors"])
    parser.add_argument("--pictures", type=int, default=200, help="pictures that are edited")
    parser.add_argument("--strangers", type=int, default=600, help="pictures that are not")
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--folder", type=Path, help="of one-size")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 5000, 20000, 50000])
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="of recall: how often both are timed, in turn")
    parser.add_argument("--alone", action="store_true", help="recall without imagededup")
    parser.add_argument("--out", type=Path, help="write the result here, with the command, commit and time")
    args = parser.parse_args()
    import torch  # here and below, not above: every worker process imports this file, and none needs torch

    torch.set_num_threads(args.workers)
    parts = {"recall": recall, "scale": scale, "one-size": one_size, "vectors": vectors}
    result = parts[args.part](args)
    if args.out:
        args.out.write_text(json.dumps(provenance(args) | result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def provenance(args: argparse.Namespace) -> dict:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    said = [given for given in sys.argv[1:] if given not in ("--out", str(args.out))]
    return {
        "command": " ".join(["python recipes/benchmarks/curate.py", *said]),
        "commit": commit,
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "cores": len(os.sched_getaffinity(0)),
        "load_average_before": os.getloadavg()[0],
    }


# recall and speed, side by side


def recall(args: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        make_folder(directory, pictures=args.pictures, strangers=args.strangers, side=args.side, workers=args.workers)
        count = len(list(directory.iterdir()))
        ours = [run_ours(directory, args.workers) for _ in range(args.rounds if args.alone else 0)]
        rounds = [
            (run_ours(directory, args.workers), run_imagededup(directory, args.workers))
            for _ in range(0 if args.alone else args.rounds)
        ]
        sweep = {} if args.alone else sweep_imagededup(directory, args.workers)
    ours = ours or [mine for mine, _ in rounds]
    ours_scored = score(ours[0]["pairs"], args.pictures)
    result = {
        "images": count,
        "side": args.side,
        "workers": args.workers,
        "rounds": args.rounds,
        "basinguard": {**times(ours, count), "stages": [run["stages"] for run in ours], **ours_scored},
    }
    return result if args.alone else result | beside(rounds, count, sweep, ours_scored, args.pictures)


def beside(rounds: list[tuple[dict, dict]], count: int, sweep: dict, ours_scored: dict, pictures: int) -> dict:
    """The rival's times, and what it finds at its default distance and at the largest that is as precise."""
    floor = ours_scored["precision"]["value"]
    scored = {limit: score(pairs, pictures) for limit, pairs in sweep.items()}
    equal = [limit for limit, matched in scored.items() if matched["precision"]["value"] >= floor]
    return {
        "cpu_ratio": spread([one["cpu_seconds"] / two["cpu_seconds"] for one, two in rounds]),
        "clock_ratio": spread([one["seconds"] / two["seconds"] for one, two in rounds]),
        "imagededup": {
            **times([two for _, two in rounds], count),
            "at_its_default_distance_10": scored[10],
            "largest_distance_with_equal_precision": max(equal, default=None),
            "at_equal_precision": scored[max(equal)] if equal else None,
        },
    }


def times(runs: list[dict], count: int) -> dict:
    return {
        "cpu_ms_per_image": spread([1000 * run["cpu_seconds"] / count for run in runs]),
        "ms_per_image": spread([1000 * run["seconds"] / count for run in runs]),
    }


def spread(values: list[float]) -> dict:
    return {"median": round(float(np.median(values)), 3), "all": [round(value, 3) for value in values]}


def run_ours(directory: Path, workers: int) -> dict:
    from basinguard.curation.duplicates import find_pairs
    from basinguard.curation.folder import read_folder
    from basinguard.curation.groups import find_groups
    from basinguard.curation.scan import scan_images

    cpu, marks = cpu_seconds(), [time.perf_counter()]
    folder = read_folder(directory, decode=False)
    scan = scan_images(folder.items, workers=workers)
    marks.append(time.perf_counter())
    pairs = find_pairs(scan)
    marks.append(time.perf_counter())
    groups = find_groups(scan, pairs)
    marks.append(time.perf_counter())
    used = cpu_seconds() - cpu
    named = {(g.members[0], m) for g in groups for m in g.members[1:]}
    names = [item.file_name for item in scan.items]
    seconds = dict(zip(("scan", "pairs", "groups"), np.diff(marks).round(2).tolist(), strict=True))
    return {
        "pairs": [(names[a], names[b]) for a, b in named],
        "seconds": marks[-1] - marks[0],
        "cpu_seconds": used,
        "stages": seconds,
    }


def cpu_seconds() -> float:
    """Of this process and its finished children: unlike the clock, hardly touched by what else the machine does."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def run_imagededup(directory: Path, workers: int) -> dict:
    from imagededup.methods import PHash

    cpu, started = cpu_seconds(), time.perf_counter()
    method = PHash(verbose=False)
    encodings = method.encode_images(image_dir=directory, num_enc_workers=workers)
    method.find_duplicates(encoding_map=encodings, max_distance_threshold=10, num_dist_workers=workers)
    return {"seconds": time.perf_counter() - started, "cpu_seconds": cpu_seconds() - cpu}


def sweep_imagededup(directory: Path, workers: int) -> dict[int, list[tuple[str, str]]]:
    """Pairs within each distance, for the largest that is as precise."""
    from imagededup.methods import PHash

    method = PHash(verbose=False)
    encodings, pairs = method.encode_images(image_dir=directory, num_enc_workers=workers), {}
    for limit in range(0, 17, 2):
        neighbours = method.find_duplicates(
            encoding_map=encodings, max_distance_threshold=limit, num_dist_workers=workers
        )
        pairs[limit] = sorted({(min(a, b), max(a, b)) for a, others in neighbours.items() for b in others})
    return pairs


def score(pairs: list[tuple[str, str]], pictures: int) -> dict:
    """Precision of the reported pairs, and for each edit the share of copies that pairs connect to their original."""
    from basinguard.core.stats import rate, wilson

    right = [a[:6] == b[:6] for a, b in pairs]
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.get(name, name) != name:
            name = parent[name]
        return name

    for (one, two), same in zip(pairs, right, strict=True):
        if same:
            parent[root(one)] = root(two)
    labels = {name: name.replace("%", "").replace(":", "-") for name in EDITS}
    hits = {
        name: [root(f"{n:06d} {label}.jpg") == root(f"{n:06d}.jpg") for n in range(pictures)]
        for name, label in labels.items()
    }
    flat = [hit for per_edit in hits.values() for hit in per_edit]
    clusters = [n for per_edit in hits.values() for n in range(len(per_edit))]
    return {
        "pairs": len(pairs),
        "wrong_pairs": right.count(False),
        "precision": wilson(sum(right), len(right)).model_dump() if pairs else None,
        "recall": rate(flat, clusters).model_dump(),
        "recall_by_edit": {name: str(wilson(sum(per_edit), pictures)) for name, per_edit in hits.items()},
    }


# growth


def save_enlarged(number: int, directory: Path, side: int) -> None:
    enlarged(FIRST_SEED + number, side).save(directory / f"{number:06d}.jpg", quality=90)


def scale(args: argparse.Namespace) -> dict:
    """Every size in a process of its own, so that peak memory is that size's; each set holds the smaller ones."""
    results = []
    with tempfile.TemporaryDirectory() as name:
        made = 0
        for size in sorted(args.sizes):
            with ProcessPoolExecutor(args.workers) as pool:
                save = partial(save_enlarged, directory=Path(name), side=args.side)
                list(pool.map(save, range(made, size), chunksize=16))
            made = size
            command = [sys.executable, __file__, "one-size", "--folder", name, "--workers", str(args.workers)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout))
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    first = results[0]
    for result in results:
        grown = result["images"] / first["images"]
        allowed = grown * np.log(result["images"]) / np.log(first["images"])
        for kind in ("seconds", "cpu_seconds"):
            used = result["hashing"][kind] / first["hashing"][kind]
            result["hashing"][f"{kind}_against_n_log_n"] = round(used / allowed, 3)
    return {"side": args.side, "sizes": results}


def one_size(args: argparse.Namespace) -> dict:
    """Hashing: files read, thumbnails, hashes and the pairs near by hash. Pairwise: everything after it."""
    from basinguard.curation.duplicates import find_pairs, hash_proposals
    from basinguard.curation.folder import read_folder
    from basinguard.curation.groups import find_groups
    from basinguard.curation.scan import scan_images

    marks = [(time.perf_counter(), cpu_seconds())]
    scan = scan_images(read_folder(args.folder, decode=False).items, workers=args.workers)
    hash_proposals(scan.thumbs)
    marks.append((time.perf_counter(), cpu_seconds()))
    pairs = find_pairs(scan)
    find_groups(scan, pairs)
    marks.append((time.perf_counter(), cpu_seconds()))
    spent = [{"seconds": round(b[0] - a[0], 2), "cpu_seconds": round(b[1] - a[1], 2)} for a, b in pairwise(marks)]
    return {
        "images": len(scan.items),
        "hashing": spent[0],
        "pairwise": spent[1],
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
        "peak_gib_of_a_worker": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20, 3),
        "pairs_found_among_strangers": len(pairs),
    }


def vectors(args: argparse.Namespace) -> dict:
    """Half of the vectors are noisy copies of the other half; the share found is the recall of the search."""
    import torch

    from basinguard.core.stats import wilson
    from basinguard.curation.nearest_neighbours import nearest_neighbours

    generator, half = torch.Generator().manual_seed(0), args.vectors // 2
    vectors = torch.empty(2 * half, 512)
    for start in range(0, half, BLOCK):
        rows = slice(start, min(start + BLOCK, half))
        vectors[rows].normal_(generator=generator)
        vectors[half:][rows] = vectors[rows] + 0.5 * torch.randn(vectors[rows].shape, generator=generator)
    vectors /= vectors.norm(dim=1, keepdim=True)
    started, cpu = time.perf_counter(), cpu_seconds()
    _, nearest_rows = nearest_neighbours(vectors, vectors, k=4, skip_self=True)
    seconds = round(time.perf_counter() - started, 1)
    partner = (np.arange(len(vectors)) + len(vectors) // 2) % len(vectors)
    hits = int((nearest_rows[: len(partner)] == partner[:, None]).any(1).sum())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    recall_of_copies = wilson(hits, len(vectors)).model_dump()
    return {
        "vectors": len(vectors),
        "dimensions": 512,
        "seconds": seconds,
        "cpu_seconds": round(cpu_seconds() - cpu, 1),
        "recall": recall_of_copies,
        "peak_gib": round(peak, 2),
    }


if __name__ == "__main__":
    main()
