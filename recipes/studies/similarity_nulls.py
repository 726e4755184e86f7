"""Measures where the shipped thresholds of the offline embedders come from.

Copy this file with `similarity_pictures.py` and `similarity_page.py`, do not import it.

    python recipes/studies/similarity_nulls.py scenes structure
    python recipes/studies/similarity_nulls.py scenes aligned --sets 50 --queries 32
    python recipes/studies/similarity_nulls.py windows
    python recipes/studies/similarity_nulls.py figures clipart DIR

`scenes` and `windows` need nothing: fresh TinyWorld scenes against others. `figures` takes a folder of pictures on
an empty ground, see `similarity_table.py`. Expected: similarity_table.json and .md in recipes/results; a run replaces
its part.
Time: 2 minutes each on one core. Memory: about 2 GB.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from similarity_page import markdown
from similarity_pictures import CAPTIONS, SERIES, draw, read
from similarity_table import run, share
from torch import Tensor

from basinguard.core.stats import cluster_bootstrap, wilson
from basinguard.similarity.aligned import Aligned
from basinguard.similarity.embedder import Embedder, embed_all
from basinguard.similarity.local_copies import COPIED, TEMPLATE, window_correlation
from basinguard.similarity.matching import search
from basinguard.similarity.structure import Structure
from basinguard.similarity.structure_figure import StructureFigure, on_empty_ground
from basinguard.similarity.thresholds import null_threshold

SIDE = 128
GALLERY = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("recipes/results"))
    parts = parser.add_subparsers(dest="part", required=True)
    null_part = parts.add_parser("scenes", help="a threshold, on TinyWorld scenes")
    null_part.add_argument("embedder", choices=("structure", "aligned"))
    null_part.add_argument("--sets", type=int, default=200, help="sets of scenes; the published one of aligned: 50")
    null_part.add_argument("--queries", type=int, default=96, help="fresh scenes a set; the published one: 32")
    parts.add_parser("windows", help="what copied windows of pictures must stand above, on TinyWorld scenes")
    figures = parts.add_parser("figures", help="the same for the embedder for figures, on one source")
    figures.add_argument("name")
    figures.add_argument("folder", type=Path)
    figures.add_argument("--images", type=int, default=2000)
    args = parser.parse_args()
    torch.manual_seed(0)
    start, path = time.process_time(), args.results / "similarity_table.json"
    result = json.loads(path.read_text()) if path.is_file() else {"recipe": "similarity_table", "table": {}}
    if args.part == "scenes":
        embedder = {"structure": Structure(), "aligned": Aligned()}[args.embedder]
        measured = scene_null(embedder, args.sets, args.queries) | {"run": run(start)}
        result["nulls"] = result.get("nulls", {}) | {args.embedder: measured}
    elif args.part == "windows":
        result["local_null"] = local_null(2000) | {"run": run(start)}
    else:
        images, owner = read(args.folder, args.images, SIDE, skip=SERIES)
        measured = figure_null(images, owner) | {"run": run(start)}
        result["figure_null"] = result.get("figure_null", {}) | {args.name: measured}
    args.results.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(result))
    print(markdown(result | {"table": {}}))


def scene_null(embedder: Embedder, sets: int, queries: int) -> dict[str, Any]:
    """Fresh scenes against sets of 32 others with 32 captions; each query shares its caption with one of the set."""
    rng, best = np.random.default_rng(0), []
    for number in range(sets):
        words = rng.choice(len(CAPTIONS), GALLERY, replace=False)
        gallery = embed_all(draw(words, 60_000_000 + 1000 * number), embedder)
        fresh = draw(words[np.arange(queries) % GALLERY], 70_000_000 + 1000 * number)
        views = (embed_all(scene, embedder) for scene in (fresh, fresh.flip(-1)))
        best.append(torch.maximum(*(search(view, gallery, embedder)[0] for view in views))[:, 0])
    values = torch.stack(best)
    clusters = np.repeat(np.arange(sets), queries)
    quantile = cluster_bootstrap(values.flatten(), clusters, statistic=lambda v: np.quantile(v, 0.999, axis=-1))
    above = int((values > embedder.metric.threshold).sum())
    return {
        "embedder": embedder.name,
        "what": f"best mirror-aware match of a fresh scene against {GALLERY} scenes, one with the same caption",
        "quantile_0.999": quantile.model_dump(),
        "scenes": values.numel(),
        "median": float(values.median()),
        "shipped_threshold": embedder.metric.threshold,
        "above_shipped_threshold": wilson(above, values.numel()).model_dump(),
    }


def figure_null(images: Tensor, owner: Tensor) -> dict[str, Any]:
    """Pictures of one source, each against 32 others of it: how alike are strangers on an empty ground?"""
    embedder = StructureFigure()
    views, gallery = (embed_all(images, embedder), embed_all(images.flip(-1), embedder)), embed_all(images, embedder)
    columns = others(owner)
    values = torch.stack([(view[:, None] * gallery[columns]).sum(2).amax(1) for view in views]).amax(0).numpy()
    nulls = {
        f"quantile_{1 - part:g}": null_threshold(
            values, name="others", gallery=GALLERY, false_positives=part
        ).threshold.model_dump()
        for part in (0.05, 0.01, 0.001)
    }
    return {
        "embedder": embedder.name,
        "what": f"best mirror-aware match of a picture against {GALLERY} others of its source",
        **nulls,
        "pictures": len(values),
        "on_empty_ground": share(on_empty_ground(images).numpy()),
        "shipped_threshold": embedder.metric.threshold,
        "above_shipped_threshold": share(values > embedder.metric.threshold),
    }


def others(owner: Tensor) -> Tensor:
    """32 pictures from other files for each, [N, 32]; few files give fewer."""
    draws = torch.rand(len(owner), len(owner), generator=torch.Generator().manual_seed(0))
    draws[owner[:, None] == owner] = -1
    return draws.topk(min(GALLERY, int((draws >= 0).sum(1).min()))).indices


def local_null(pairs: int) -> dict[str, Any]:
    """Correlation of windows of unrelated scenes with one caption: what `local.COPIED` must stand above."""
    words = np.arange(pairs) % len(CAPTIONS)
    correlation, telling = window_correlation(draw(words, 62_000_000), draw(words, 63_000_000))
    shares = [float((c[t] > COPIED).float().mean()) for c, t in zip(correlation, telling, strict=True)]
    return {
        "what": f"share of telling windows that correlate above {COPIED}, in pairs of scenes with one caption",
        "mean": cluster_bootstrap(shares, np.arange(pairs)).model_dump(),
        "pairs_with_share_of_a_quarter": wilson(sum(s >= TEMPLATE for s in shares), pairs).model_dump(),
    }


if __name__ == "__main__":
    main()
