"""Measures the offline descriptor: its null, and how often it recognises edited copies, beside other eyes.

Copy this file, do not import it. The images come from folders that you name, drawn by no one here; none is committed.
Made for Debian's openclipart-png (public domain; without its icons, flags, cards and gradients, which are series) and
the npm package emoji-datasource-twitter (img/twitter/64; Twemoji, CC-BY 4.0).

    python recipes/similarity_table.py --source openclipart=DIR --source twemoji=DIR

Expected: similarity_table.json and .md under recipes/results. A recall stands at the threshold that 1 % of the best
matches of *other* images of the same source exceed, set on one half of a source and tested on the other.
Time: about 10 minutes on one CPU core with the defaults. Memory: about 2 GB.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as edit

from basinguard.similarity.carlini import tiled_l2
from basinguard.similarity.embed import embed_all, unit
from basinguard.similarity.files import image_paths, load_image
from basinguard.similarity.local import window_correlation
from basinguard.similarity.match import search
from basinguard.similarity.null import null
from basinguard.similarity.structure import Structure
from basinguard.stats import cluster_bootstrap, wilson
from basinguard.tinyworld.scenes import all_captions, draw_scene

SIDE = 128
GALLERY = 32
LARGEST = 400_000  # bytes; larger files take long to decode and show nothing more at 128 px
CAPTIONS = all_captions()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", action="append", default=[], help="NAME=FOLDER; at least two for the table")
    parser.add_argument("--images", type=int, default=600, help="pictures from each source, at most")
    parser.add_argument("--sets", type=int, default=200, help="scene sets for the null of the default threshold")
    parser.add_argument("--model", type=Path, help="a StableDiffusionPipeline folder for VAE round trip and re-draw")
    parser.add_argument("--results", type=Path, default=Path("recipes/results"))
    args = parser.parse_args()
    torch.manual_seed(0)
    edits = EDITS | (model_edits(args.model) if args.model else {})
    result: dict = {
        "recipe": "similarity_table",
        "null": scene_null(args.sets),
        "local_null": local_null(),
        "table": {},
    }
    for text in args.source:
        name, _, folder = text.partition("=")
        print(f"source {name}", flush=True)
        result["table"][name] = table(read(Path(folder), args.images), edits)
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / "similarity_table.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.results / "similarity_table.md").write_text(markdown(result))
    print(markdown(result))


def scene_null(sets: int, queries: int = 96) -> dict:
    """Fresh scenes against sets of 32 others with 32 captions; each query shares its caption with one of the set."""
    eye, rng, best = Structure(), np.random.default_rng(0), []
    for number in range(sets):
        words = rng.choice(len(CAPTIONS), GALLERY, replace=False)
        known = embed_all(draw(words, 60_000_000 + 1000 * number), eye)
        fresh = draw(words[np.arange(queries) % GALLERY], 70_000_000 + 1000 * number)
        best.append(torch.maximum(*(search(embed_all(s, eye), known)[0] for s in (fresh, fresh.flip(-1))))[:, 0])
    values = torch.stack(best)
    clusters = np.repeat(np.arange(sets), queries)
    quantile = cluster_bootstrap(values.flatten(), clusters, statistic=lambda v: float(np.quantile(v, 0.999)))
    above = int((values > eye.metric.threshold).sum())
    return {
        "embedder": eye.name,
        "what": f"best mirror-aware match of a fresh scene against {GALLERY} scenes, one with the same caption",
        "quantile_0.999": quantile.model_dump(),
        "scenes": values.numel(),
        "median": float(values.median()),
        "shipped_threshold": eye.metric.threshold,
        "above_shipped_threshold": wilson(above, values.numel()).model_dump(),
    }


def draw(words: np.ndarray, first_seed: int) -> Tensor:
    drawn = [np.asarray(draw_scene(CAPTIONS[w], first_seed + i)) for i, w in enumerate(words)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 255


def local_null(pairs: int = 2000) -> dict:
    """Correlation of windows of unrelated scenes with one caption: what `local.COPIED` must stand above."""
    words = np.arange(pairs) % len(CAPTIONS)
    correlation, telling = window_correlation(draw(words, 62_000_000), draw(words, 63_000_000))
    shares = [float((c[t] > 0.8).float().mean()) for c, t in zip(correlation, telling, strict=True)]
    return {
        "what": "share of telling windows that correlate above 0.8, in pairs of scenes with one caption",
        "mean": cluster_bootstrap(shares, np.arange(pairs)).model_dump(),
        "pairs_with_share_of_a_quarter": wilson(sum(s >= 0.25 for s in shares), pairs).model_dump(),
    }


def read(folder: Path, most: int) -> Tensor:
    """Pictures at 128 px, [N, 3, 128, 128]: no blank ones, one of each series (equal name but for its numbers)."""
    series: dict[str, Path] = {}
    for path in sorted(image_paths(folder), key=lambda p: hashlib.sha256(str(p.relative_to(folder)).encode()).digest()):
        stem = re.sub(r"[\W\d_]+", "", path.stem)[:8] if re.search(r"[g-zG-Z]", path.stem) else path.stem.split("-")[0]
        series.setdefault(stem, path)
    kept: list[Tensor] = []
    for path in series.values():
        if len(kept) == most:
            break
        if path.stat().st_size > LARGEST:
            continue
        try:
            image = load_image(path)
        except ValueError:
            continue
        small = F.interpolate(image[None], (SIDE, SIDE), mode="bilinear", antialias=True).clamp(0, 1)
        if float(small.std()) > 0.08:
            kept.append(small)
    return torch.cat(kept)


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


EDITS: dict[str, Callable[[Tensor], Tensor]] = {
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
    "over-saturation, blur and shift": lambda x: EDITS["shift 4 %"](guided(EDITS["blur, sigma 2.5 px"](x))),
}


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
        small = F.interpolate(x[None], (64, 64), mode="bilinear", antialias=True)
        return vae.encode(small * 2 - 1).latent_dist.mean * vae.config.scaling_factor

    @torch.no_grad()
    def decode(z: Tensor) -> Tensor:
        return edit.resize((vae.decode(z / vae.config.scaling_factor).sample[0] / 2 + 0.5).clamp(0, 1), [SIDE, SIDE])

    @torch.no_grad()
    def redrawn(x: Tensor, strength: float) -> Tensor:
        z = encode(x)
        scheduler.set_timesteps(20)
        steps = scheduler.timesteps[-int(20 * strength) :]
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(int(x.sum() * 1000) % 2**31))
        z = scheduler.add_noise(z, noise, steps[:1])
        for step in steps:
            z = scheduler.step(unet(z, step, empty).sample, step, z).prev_sample
        return decode(z)

    return {
        "VAE round trip (TinyWorld)": lambda x: decode(encode(x)),
        "re-draw 25 % (TinyWorld)": lambda x: redrawn(x, 0.25),
        "re-draw 50 % (TinyWorld)": lambda x: redrawn(x, 0.5),
    }


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


# How each eye sees an image, and how it compares two.
EYES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    Structure().name: (lambda x: embed_all(x, Structure()), product),
    "tiled l2, 64 px": (lambda x: F.adaptive_avg_pool2d(x, 64), lambda a, b: 1 - tiled_l2(a, b)),
    "pixel cosine, 32 px": (small_pixels, product),
    "difference hash, 256 bit": (difference_hash, product),
}


def table(images: Tensor, edits: dict[str, Callable[[Tensor], Tensor]]) -> dict:
    """Recall of each eye on each edit at 1 % false positives of the best match among 32, mirror-aware.

    The first half of a source sets each eye's threshold on images that are no copies; the second half tests it.
    """
    half = len(images) // 2
    tuning, testing = images[:half], images[half : 2 * half]
    changed = {name: torch.stack([way(x).clamp(0, 1) for x in testing]) for name, way in edits.items()}
    found: dict = {"images": len(images), "eyes": {}}
    for name, (see, compare) in EYES.items():
        print(f"  {name}", flush=True)
        own = null(others(tuning, see, compare), name="tuning half", gallery=GALLERY, false_positives=0.01)
        fresh = others(testing, see, compare)
        original = see(testing)
        copies = {e: both_ways(x, original, see, compare).numpy() for e, x in changed.items()}
        found["eyes"][name] = {"threshold_at_1_percent": own.threshold.model_dump()}
        found["eyes"][name] |= rates(copies, fresh, own.threshold.value)
        if name == Structure().name:
            found["eyes"][name]["at_shipped_threshold"] = rates(copies, fresh, Structure().metric.threshold)
    return found


def rates(copies: dict[str, np.ndarray], fresh: np.ndarray, threshold: float) -> dict:
    """Share of copies whose own original is above the threshold, and of other images whose best match is."""
    return {
        "false_positives_on_testing_half": above(fresh, threshold),
        "recall": {name: above(values, threshold) for name, values in copies.items()},
    }


def above(values: np.ndarray, threshold: float) -> dict:
    return wilson(int((values > threshold).sum()), len(values)).model_dump()


def others(images: Tensor, see: Callable, compare: Callable) -> np.ndarray:
    """Each image's best match among 32 other ones, either way round."""
    chosen = torch.rand(len(images), len(images), generator=torch.Generator().manual_seed(0)).fill_diagonal_(-1)
    views, seen, best = (see(images), see(images.flip(-1))), see(images), []
    for where in chosen.topk(min(GALLERY, len(images) - 1)).indices.T:
        best.append(torch.maximum(*(compare(view, seen[where]) for view in views)))
    return torch.stack(best).max(0).values.numpy()


def both_ways(samples: Tensor, known: Tensor, see: Callable, compare: Callable) -> Tensor:
    return torch.maximum(compare(see(samples), known), compare(see(samples.flip(-1)), known))


def markdown(result: dict) -> str:
    head = result["null"]
    lines = ["# Offline descriptor, measured", ""]
    lines += [f"Null of {head['embedder']} ({head['what']}; n={head['scenes']}): 0.999 quantile "
              f"{show(head['quantile_0.999'])}; shipped threshold {head['shipped_threshold']} is exceeded by "
              f"{show(head['above_shipped_threshold'])}.", ""]  # fmt: skip
    for source, part in result["table"].items():
        eyes = part["eyes"]
        lines += [f"## {source} ({part['images']} images; recall at 1 % false positives, 95 % Wilson intervals)", ""]
        lines += ["| edit | " + " | ".join(eyes) + " |", "|---|" + "---|" * len(eyes)]
        first = next(iter(eyes.values()))["recall"]
        lines += [f"| {e} | " + " | ".join(show(eye["recall"][e]) for eye in eyes.values()) + " |" for e in first]
        wrong = " | ".join(show(eye["false_positives_on_testing_half"]) for eye in eyes.values())
        lines += [f"| (false positives, test half) | {wrong} |", ""]
    return "\n".join(lines)


def show(estimate: dict) -> str:
    return f"{estimate['value']:.3g} [{estimate['low']:.3g}, {estimate['high']:.3g}] (n={estimate['n']})"


if __name__ == "__main__":
    main()
