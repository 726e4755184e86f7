"""The tables of `taught_study.py`: what is kept and copied, whether the rulers agree, and what a promise could ship.

Copy this file, do not import it.

    python recipes/studies/taught_study_table.py --eye recipes/results/taught_study_eye.json

Expected: taught_study.md beside taught_study.json. Rank correlations are Spearman's over all products of all trainings
but the base model's rows; their interval draws trainings, 2,000 times. `--eye` is {training: letters, best first},
written before the key was read.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr, t

DRAWS = 2000
LEAST_TRAININGS = 5  # below that a paired interval says nothing
CHOOSING = "net of copies, products with at most 10 % of them measured"
SAFE = 0.1  # measured share of copies that still counts as safe here; a promise takes more samples
NETWORK, COLOURS = "efficientnet-lite0", "colour-texture-v1"
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("recipes/results"))
    parser.add_argument("--eye", type=Path)
    args = parser.parse_args()
    study = json.loads((args.results / "taught_study.json").read_text())
    eye = json.loads(args.eye.read_text()) if args.eye and args.eye.exists() else {}
    path = args.results / "taught_study.md"
    path.write_text(report(study, eye), encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


def report(study: dict[str, Any], eye: dict[str, Any]) -> str:
    """Everything, as Markdown."""
    kinds = defaultdict(list)
    for training in study.values():
        kinds[kind_of(training)].append(training)
    tables = [table(kind, trainings) for kind, trainings in kinds.items()]
    return (
        "\n\n".join(
            ["# What fine-tunes keep and copy", agreement(study, eye), shippable(kinds), shares(kinds), *tables]
        )
        + "\n"
    )


def kind_of(training: Row) -> str:
    keep = training["keep_unconditional"]
    held = f", keep_unconditional {keep:g}" if keep else ""
    few = f" and {training['few']} x {training['repeats']}" if training.get("few") else ""
    rank = training.get("rank", 16)
    method = training["method"] if rank == 16 else f"{training['method']} of rank {rank}"
    return f"{training['task']}, {method}, {training['images']}{few} images, {training['rate']:g}{held}"


def raw(row: Row, ruler: str = "") -> float:
    """A ruler before copies are taken off, the smallest where none is named."""
    free = 1 - row["copies"]
    values = row["rulers"].values() if not ruler else [row["rulers"].get(ruler, np.nan)]
    return min(values) / free if free and values else np.nan


def value(row: Row) -> float:
    return row["value"]["value"] if row["value"] else np.nan


def is_base(name: str) -> bool:
    return name.startswith("base model") or ", strength 0," in name


def points(training: Row) -> list[Row]:
    """Products of a training, the base model left out."""
    return [row for name, row in training["rows"].items() if not is_base(name)]


def correlation(trainings: Sequence[Row], first: Callable[[Row], float], second: Callable[[Row], float]) -> str:
    """Spearman's over all products, with the interval over trainings."""
    pairs = [np.array([(first(row), second(row)) for row in points(training)]) for training in trainings]
    everything = _kept(np.concatenate(pairs))
    draws = np.random.default_rng(0).integers(len(pairs), size=(DRAWS, len(pairs)))
    drawn = [spearmanr(*_kept(np.concatenate([pairs[k] for k in draw])).T).statistic for draw in draws]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return f"{spearmanr(*everything.T).statistic:.2f} [{low:.2f}, {high:.2f}] ({len(everything)} products)"


def _kept(pairs: np.ndarray) -> np.ndarray:
    return pairs[np.isfinite(pairs).all(1)]


def agreement(study: dict[str, Any], eye: dict[str, Any]) -> str:
    """Whether rulers, truths and the eye agree."""
    everything = list(study.values())
    lines = [
        "## Do the rulers agree?",
        f"`python recipes/studies/taught_study_table.py`; {len(everything)} trainings. Spearman, 95 % over trainings.",
        "| | all |\n|---|---|",
    ]
    rows = {
        "network and colours, before copies are taken off": (
            lambda r: raw(r["fresh"], NETWORK),
            lambda r: raw(r["fresh"], COLOURS),
        ),
        "fresh truth and training images as truth, net of copies": (
            lambda r: value(r["fresh"]),
            lambda r: value(r["training"]),
        ),
    }
    table = "\n".join(f"| {name} | {correlation(everything, *pair)} |" for name, pair in rows.items())
    asked = [training for training in everything if "captions" in next(iter(training["rows"].values()))]
    if asked:
        table += f"\n| {CHOOSING}, of the risk's own samples against held-out prompts | {by_captions(asked)} |"
    ranked = [f"| {name}, by eye, before the key was read | {by_eye(study, name, order)} |"
              for name, order in eye.items()]  # fmt: skip
    return "\n\n".join(lines[:2]) + "\n\n" + "\n".join([lines[2], table, *ranked])


def by_captions(trainings: Sequence[Row]) -> str:
    """What choosing by the samples that the risk takes anyway is worth: correlation, and what the choice loses."""
    safe = [{**training, "rows": _safe(training)} for training in trainings]
    agreed = correlation(safe, lambda r: value(r["fresh"]), lambda r: value(r["captions"]))
    losses = []
    for training in safe:
        rows = list(training["rows"].values())
        chosen = max(rows, key=lambda r: value(r["captions"]))
        losses.append(max(value(r["fresh"]) for r in rows) - value(chosen["fresh"]))
    draws = np.random.default_rng(0).integers(len(losses), size=(DRAWS, len(losses)))
    low, high = np.quantile(np.array(losses)[draws].mean(1), [0.025, 0.975])
    return f"{agreed}; the choice by it loses {np.mean(losses):.2f} [{low:.2f}, {high:.2f}] ({len(losses)} trainings)"


def _safe(training: Row) -> dict[str, Row]:
    return {n: row for n, row in training["rows"].items() if row["risk"] <= SAFE and not is_base(n)}


def by_eye(study: dict[str, Any], name: str, ranking: dict[str, Any]) -> str:
    """Correlation of a ranking by eye with each ruler, before copies are taken off: the eye judged style alone."""
    training = next(t for key, t in study.items() if key == name)
    order = [ranking["key"][letter] for letter in ranking["order"].split()]
    place = {product: -k for k, product in enumerate(order)}
    scores = {
        ruler or "smaller": [raw(training["rows"][p]["fresh"], ruler) for p in place]
        for ruler in ("", NETWORK, COLOURS)
    }
    parts = [f"{ruler} {spearmanr(list(place.values()), v).statistic:.2f}" for ruler, v in scores.items()]
    return f"{', '.join(parts)} ({len(order)} rows)"


def shippable(kinds: dict[str, list[Row]]) -> str:
    """The most of what was taught at a measured share of copies of at most SAFE, beside plain CFG at its best."""
    lines = [
        "## What could ship\n\n"
        f"Most taught (net of copies, fresh truth) of products with at most {SAFE:.0%} copies "
        "measured, beside the whole fine-tune at its best epoch and scale, whatever it copies; mean over trainings.\n",
        "| kind | trainings | safe product | plain CFG at its best | kept |\n|---|---|---|---|---|",
    ]
    for kind, trainings in kinds.items():
        safe, whole = zip(*(best_of(training) for training in trainings), strict=True)
        ratio = np.mean(safe) / np.mean(whole) if np.mean(whole) > 0 else np.nan
        lines.append(f"| {kind} | {len(trainings)} | {spread(safe)} | {spread(whole)} | {ratio:.0%} |")
    return "\n".join(lines)


def best_of(training: Row) -> tuple[float, float]:
    """The best safe product of a training, and the best of the whole fine-tune; 0 where nothing is safe."""
    rows = {name: row for name, row in training["rows"].items() if not is_base(name)}
    safe = [value(row["fresh"]) for row in rows.values() if row["risk"] <= SAFE]
    whole = [value(row["fresh"]) for name, row in rows.items() if ", strength 1, plain CFG" in name]
    return max([0.0, *safe]), float(np.nanmax(whole))


def shares(kinds: dict[str, list[Row]]) -> str:
    """What a share of the weights keeps beside all of them: of the same update, and of any at the same risk."""
    several = {kind: trainings for kind, trainings in kinds.items() if len(trainings) >= LEAST_TRAININGS}
    lines = [
        "## Is a share of the weights better than all of them?\n\n"
        "Differences of taught, net of copies, plain CFG at scale 3, paired within trainings; t intervals, 95 %, over "
        f"trainings. The last column: the best of 0.6 and 0.8 less the best of 1, at most {SAFE:.0%} copies measured, "
        "at any update and scale.\n",
        "| kind | 0.6, at 150 updates | 0.8, at 150 updates | 0.6, at 400 updates | 0.8, at 400 updates | at the same "
        "risk |\n|---|---|---|---|---|---|",
    ]
    for kind, trainings in several.items():
        cells = [
            paired([g for one in trainings if (g := gain(one, epoch, share)) is not None])
            for epoch in (150, 400)
            for share in ("0.6", "0.8")
        ]
        lines.append(f"| {kind} | {' | '.join(cells)} | {paired([safe_gain(one) for one in trainings])} |")
    return "\n".join(lines)


def gain(training: Row, epoch: int, share: str) -> float | None:
    """Of a share over all of the weights of an update; None where it was not looked at."""
    some, whole = (training["rows"].get(f"epoch {epoch}, strength {s}, plain CFG, scale 3") for s in (share, "1"))
    return value(some["fresh"]) - value(whole["fresh"]) if some and whole else None


def safe_gain(training: Row) -> float:
    """Of the best safe share over the best safe whole fine-tune; 0 is what a training without either keeps."""
    safe = {name: value(row["fresh"]) for name, row in _safe(training).items() if "plain CFG" in name}
    whole = [v for name, v in safe.items() if ", strength 1," in name]
    return max([0.0, *(v for name, v in safe.items() if ", strength 1," not in name)]) - max([0.0, *whole])


def paired(differences: Sequence[float | None]) -> str:
    """Mean difference with its interval."""
    values = np.array(differences, float)
    if len(values) < 2:
        return "one training"
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():+.2f} [{values.mean() - half:+.2f}, {values.mean() + half:+.2f}] ({len(values)})"


def spread(values: Sequence[float]) -> str:
    """Mean, and the least and the most of several."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def table(kind: str, trainings: Sequence[Row]) -> str:
    """Every product of a kind, mean over its trainings."""
    first = trainings[0]
    samples, threshold = first["samples"], [t["threshold"] for t in trainings]
    lines = [
        f"## {kind}: {len(trainings)} trainings",
        f"{samples[0]} samples of training captions for the copies (structure-colour-v1 above {spread(threshold)}), "
        f"{samples[1]} of held-out captions for the rest, each.",
        "| product | copies | taught, net of copies | network | colours | held-out copies | by training images |\n"
        "|---|---|---|---|---|---|---|",
    ]
    rows = [
        f"| {name}{'' if len(having) == len(trainings) else f' ({len(having)} of them)'} "
        f"| {spread([r['risk'] for r in having])} | {spread([value(r['fresh']) for r in having])} "
        f"| {np.mean([raw(r['fresh'], NETWORK) for r in having]):.2f} "
        f"| {np.mean([raw(r['fresh'], COLOURS) for r in having]):.2f} "
        f"| {np.mean([r['fresh']['copies'] for r in having]):.2f} "
        f"| {np.mean([value(r['training']) for r in having]):.2f} |"
        for name, having in _by_product(trainings).items()
    ]
    return "\n\n".join(lines[:2]) + "\n\n" + "\n".join([lines[2], *rows])


def _by_product(trainings: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each product, of the trainings that have it."""
    products = dict.fromkeys(name for training in trainings for name in training["rows"])
    return {name: [t["rows"][name] for t in trainings if name in t["rows"]] for name in products}


if __name__ == "__main__":
    main()
