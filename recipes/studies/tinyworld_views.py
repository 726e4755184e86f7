"""Draws the scenes that tinyworld_shapes.py trains on, as latents of the packaged VAE.

Copy this file, do not import it. "whole" scenes fill the picture. Of "views" half do; four in ten are the 64 by 64
pixels of a crop out of a larger picture, and one in ten is a smaller picture enlarged: what SDXL's size and crop
conditioning tells apart (Podell et al., arXiv 2307.01952, section 2.2).

    python recipes/studies/tinyworld_views.py whole --first-seed 62000000 --count 24000 --out WHOLE
    python recipes/studies/tinyworld_views.py views --first-seed 61000000 --count 12000 --out VIEWS

Writes a file for every 3000 scenes: latents [N, 4, 16, 16], sizes [N, 4] (height and width of the picture, top and left
of the crop) and the index of each caption [N]. Time: 50 to 100 scenes a second on one core. Memory: 1 GB.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file

from basinguard.tinyworld import model_directory
from basinguard.tinyworld.scenes import SIZE, all_captions, reduced, scene_canvas

CAPTIONS = all_captions()
FILE, BATCH = 3000, 200
Size = tuple[int, int, int, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("whole", "views"))
    parser.add_argument("--first-seed", type=int, required=True)
    parser.add_argument("--count", type=int, default=12000)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    vae = AutoencoderKL.from_pretrained(model_directory() / "vae").eval()
    for start in range(0, args.count, FILE):
        views = [view(args.kind, args.first_seed, i) for i in range(start, start + FILE)]
        images, sizes = zip(*views, strict=True)
        words = torch.arange(start, start + FILE) % len(CAPTIONS)
        tensors = {"latents": encode(vae, images), "sizes": torch.tensor(sizes), "words": words}
        save_file(tensors, args.out / f"{args.kind}_{start:06d}.safetensors")
        print(f"{start + FILE} scenes", flush=True)


def view(kind: str, first_seed: int, i: int) -> tuple[Image.Image, Size]:
    """Scene `i` and its height, width, top and left; it has caption i modulo 192."""
    canvas, draw = scene_canvas(CAPTIONS[i % len(CAPTIONS)], first_seed + i), random.Random(first_seed + i)
    share = draw.random()
    if kind == "whole" or share < 0.5:
        return reduced(canvas), (SIZE, SIZE, 0, 0)
    if share < 0.9:
        side = draw.randint(SIZE + 1, 112)
        top, left = draw.randint(0, side - SIZE), draw.randint(0, side - SIZE)
        picture = canvas.resize((side, side), Image.Resampling.BOX)
        return picture.crop((left, top, left + SIZE, top + SIZE)), (side, side, top, left)
    side = draw.randint(24, SIZE - 1)
    small = canvas.resize((side, side), Image.Resampling.BOX)
    return small.resize((SIZE, SIZE), Image.Resampling.BILINEAR), (side, side, 0, 0)


@torch.inference_mode()
def encode(vae: AutoencoderKL, images: tuple[Image.Image, ...]) -> torch.Tensor:
    """Scaled latents [N, 4, 16, 16]."""
    parts = []
    for start in range(0, len(images), BATCH):
        x = torch.from_numpy(np.stack([np.asarray(image) for image in images[start : start + BATCH]]))
        parts.append(vae.encode(x.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mean * vae.config.scaling_factor)
    return torch.cat(parts).contiguous()


if __name__ == "__main__":
    main()
