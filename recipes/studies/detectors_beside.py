"""Scores the samples of runs, from the base model to the last epoch, under every copy detector side by side.

Copy this file, do not import it. It takes what `basinguard demo` leaves behind: the training images and the epochs
that were kept; so does `shipped_products.py`. Nothing is trained; each epoch is sampled with plain CFG, the same
captions and seeds for all, and every detector sees the same samples. "auto" is what `choose_detector` takes on the
training images, where any of them separates copies from others.

    python recipes/studies/detectors_beside.py ink=runs/demo emoji=runs/emoji --sscd sscd.onnx

Expected: detectors_beside.json and .md under recipes/results, the risk of each epoch under each detector, and a .png
for each run: samples on which they differ, each beside the training image that the detector which calls it a copy
found.
Time: 2 minutes for each run on one core, half of it SSCD. Memory: 1 GB.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from basinguard.core import seeds as seed_table
from basinguard.core.metric import Match
from basinguard.core.stats import rate
from basinguard.diffusion.sampling_options import SamplingOptions
from basinguard.pipelines.latent_model import LatentModel
from basinguard.pipelines.loading import load_pipeline
from basinguard.pipelines.model_edits import model_edits
from basinguard.pipelines.stock_sampling import fresh_pairs, sample_stock
from basinguard.plots.contact_sheet import contact_sheet
from basinguard.similarity.aligned import Aligned
from basinguard.similarity.copy_detector import CopyDetector
from basinguard.similarity.detector_choice import choose_detector
from basinguard.similarity.embedder import Embedder
from basinguard.similarity.sscd import load_sscd
from basinguard.similarity.structure import Structure
from basinguard.similarity.structure_figure import StructureFigure
from basinguard.training.data import ImageFolder
from basinguard.training.epoch_archive import EpochArchive

SHOWN = 8  # samples on the sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER", help="what a demo wrote")
    parser.add_argument("--base", default="tinyworld")
    parser.add_argument("--sscd", type=Path, help="weights of SSCD disc_mixup, a state dict or ONNX")
    parser.add_argument("--per-caption", type=int, default=2)
    parser.add_argument("--scale", type=float, default=3.0)
    parser.add_argument("--timesteps", type=int, default=16)
    parser.add_argument("--results", type=Path, default=Path("recipes/results"))
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    results = {
        name: compared(Path(folder), name, args) for name, _, folder in (run.partition("=") for run in args.runs)
    }
    path = args.results / "detectors_beside.json"
    path.write_text(json.dumps({"recipe": "detectors_beside", "runs": results}, indent=1) + "\n")
    parts = ["# Runs under every copy detector\n", *(markdown(name, result) for name, result in results.items())]
    path.with_suffix(".md").write_text("\n".join(parts))


def compared(run: Path, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The risk of each epoch of a run under each detector; writes the picture of what they differ on."""
    start, pipe = time.process_time(), load_pipeline(args.base)
    images = ImageFolder(str(run / "data" / "train"), resolution=LatentModel(pipe).resolution)
    images.setup("score")
    pixels, captions = images.all_pixels(), [caption for _, caption in images.items]
    print(f"{name}: {len(captions)} training images", flush=True)
    detectors = {e.name: CopyDetector(pixels, captions, e) for e in embedders(args.sscd, pixels, pipe)}
    each = args.per_caption
    prompt, seeds = fresh_pairs(len(captions), each, seed_table.VERIFICATION)
    rows, samples = [], {}
    sampling = SamplingOptions(scale=args.scale, timesteps=args.timesteps)
    for epoch in epochs_of(run, pipe):
        texts = [captions[k] for k in prompt]
        drawn = sample_stock(pipe, texts, seeds, None, sampling).images
        matches = {name: detector.matches(drawn) for name, detector in detectors.items()}
        risks = {name: rate(d.copied(matches[name]).numpy(), prompt).model_dump() for name, d in detectors.items()}
        rows.append({"epoch": epoch, "risk": risks})
        samples[epoch] = (drawn, matches)
        print(line(rows[-1]), flush=True)
    differing(samples, detectors, pixels).save(args.results / f"detectors_beside_{name}.png")
    return {
        "n": len(prompt), "images": len(captions), "rows": rows,
        "metrics": {name: d.embedder.metric.model_dump() for name, d in detectors.items()},
        "command": f"python recipes/studies/detectors_beside.py {name}=RUN --sscd FILE --per-caption {each}",
        "processor_seconds": round(time.process_time() - start),
    }  # fmt: skip


def embedders(sscd: Path | None, pixels: Tensor, pipe: Any) -> list[Embedder]:
    """The weight-free ones and SSCD at their published thresholds, and what "auto" takes of them."""
    embedders: list[Embedder] = [Structure(), StructureFigure(), Aligned()]
    if sscd is not None:
        embedders.append(load_sscd(sscd, "disc_mixup_288"))
    try:
        chosen = choose_detector(pixels, embedders=embedders, model_edits=model_edits(LatentModel(pipe)))[0]
    except ValueError as error:  # none of them separates copies of these images from the others
        print(error, flush=True)
        return embedders
    return [*embedders, Named(chosen)]


class Named:
    """The chosen embedder under a name of its own, so that it stands beside the one it is made of."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder, self.name, self.metric = embedder, f"auto: {embedder.name}", embedder.metric

    def __call__(self, images: Tensor) -> Tensor:
        """Vectors [B, D] of images [B, 3, H, W]."""
        return self.embedder(images)


def epochs_of(run: Path, pipe: Any) -> Any:
    """Puts the weights of each kept epoch into the pipeline, the base model's first (-1)."""
    base = {f"unet.{name}": value.clone() for name, value in pipe.unet.state_dict().items()}
    archive = EpochArchive(run / "export-epochs", most=100)
    yield -1
    for entry in archive.stored():
        weights = archive.weights(entry.epoch, base)
        pipe.unet.load_state_dict({name.removeprefix("unet."): value for name, value in weights.items()})
        yield entry.epoch


def line(row: Mapping[str, Any]) -> str:
    shares = (f"{r['value']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for r in row["risk"].values())
    name = "base" if row["epoch"] < 0 else row["epoch"]
    return f"| {name} | {' | '.join(shares)} |"


def markdown(name: str, result: Mapping[str, Any]) -> str:
    """One row for each epoch."""
    metrics = result["metrics"]
    heads = [f"{name} (at {metric['threshold']:.3g})" for name, metric in metrics.items()]
    what = f"plain CFG, n = {result['n']} samples of {result['images']} captions"
    lines = [f"## {name}", ""]
    lines += [f"Share of samples that are called copies, {what}; 95 % intervals, captions drawn with their seeds.", ""]
    lines += [f"| epoch | {' | '.join(heads)} |", "|---|" + "---|" * len(heads), *map(line, result["rows"])]
    return "\n".join(lines) + "\n"


def differing(
    samples: Mapping[int, tuple[Tensor, Mapping[str, Sequence[Match]]]],
    detectors: Mapping[str, CopyDetector],
    pixels: Tensor,
) -> Any:
    """Samples that some detectors call copies and others do not, later epochs first, each beside its match."""
    drawn, originals, titles = [], [], []
    for epoch in sorted(samples, reverse=True):
        images, matches = samples[epoch]
        called = {name: detectors[name].copied(rows) for name, rows in matches.items()}
        votes = torch.stack(list(called.values())).sum(0)
        for k in torch.nonzero((votes > 0) & (votes < len(called)))[:, 0].tolist():
            yes = [name for name, hit in called.items() if hit[k]]
            drawn.append(images[k])
            originals.append(pixels[matches[yes[0]][k].index])
            titles.append(f"epoch {epoch}, a copy to: " + ", ".join(short(name) for name in yes))
    if not drawn:
        drawn, originals, titles = [pixels[0]], [pixels[0]], ["no sample on which they differ"]
    columns = {"sample": torch.stack(drawn[:SHOWN]), "training image": torch.stack(originals[:SHOWN])}
    return contact_sheet(columns, titles[:SHOWN], {})


def short(name: str) -> str:
    return "auto" if name.startswith("auto") else name.split(" ")[0]


if __name__ == "__main__":
    main()
