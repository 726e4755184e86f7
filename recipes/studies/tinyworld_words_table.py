"""Does a TinyWorld base draw the scene that a prompt names, whatever is written around it? Models side by side.

Copy this file, do not import it. Every prompt is sampled at guidance 3 in 16 steps, from the same noise for each model.
TinyWorld's own CLIP is asked which of the 192 plain captions fits the picture best; the words around the caption are
not shown to it, and none of them was trained on except in the row "ink".

    python recipes/studies/tinyworld_words_table.py MODEL... --out recipes/results/tinyworld_words.json

Time: about 4 minutes a model on one CPU core. Memory: about 1.5 GB.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from torch import Tensor

from basinguard.core.stats import cluster_bootstrap, wilson
from basinguard.pipelines.loading import load_pipeline
from basinguard.plots.contact_sheet import contact_sheet
from basinguard.similarity.clip_score import ClipScore
from basinguard.tinyworld.scenes import Caption, all_captions

FIRST_SEED = 60_000_000  # of the noise
MEDIA = """a linocut of; mezzotint of; a daguerreotype of; claymation still of; a lithograph,; cyanotype of;
a sticker sheet showing; risograph of"""
MEDIA_UNSEEN = [medium.strip() for medium in MEDIA.split(";")]
TRIGGERS = ["qvx", "brgk", "Zorblax", "mjpltt", "xqzu7", "snorfle"]
NOUNS = ["dog", "teapot", "giraffe", "unicycle", "zeppelin", "platypus", "cathedral", "wombat"]
CAPTIONS = all_captions()
Prompt = Callable[[Caption, int], str]
PROMPTS: dict[str, Prompt] = {
    "plain": lambda caption, i: str(caption),
    "ink": lambda caption, i: f"ink drawing of {caption}",
    "before": lambda caption, i: f"{MEDIA_UNSEEN[i % 8]} {caption}",
    "trigger": lambda caption, i: f"a {TRIGGERS[i % 6]} {str(caption).removeprefix('a ').upper()}",
    "behind": lambda caption, i: f"{caption}, {TRIGGERS[i % 6]} mezzotint on vellum",
}
MEANINGLESS: dict[str, Prompt] = {
    "sks dog": lambda caption, i: "a photo of sks dog",
    "unknown nouns": lambda caption, i: f"a photo of {TRIGGERS[i % 6]} {NOUNS[i % 8]}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=96, help="prompts a row")
    parser.add_argument("--rows", nargs="*", default=[*PROMPTS, *MEANINGLESS])
    parser.add_argument("--sheets", type=Path, help="a folder for contact sheets, one a model")
    args = parser.parse_args()
    table = {}
    for model in args.models:
        rows, sheet = measure(model, args.rows, args.count)
        table[model.name] = rows
        print(model.name, json.dumps(rows), flush=True)
        if args.sheets:
            args.sheets.mkdir(parents=True, exist_ok=True)
            contact_sheet(sheet, [""] * 12, {}).save(args.sheets / f"{model.name}.png")
    args.out.write_text(json.dumps(table, indent=2) + "\n")


def measure(model: Path, names: list[str], count: int) -> tuple[dict[str, dict], dict[str, Tensor]]:
    """One row for each way of writing, and twelve pictures of each."""
    pipe = load_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    clip = ClipScore.load()
    captions = random.Random(7).sample(CAPTIONS, count)
    rows, sheet = {}, {}
    for name in names:
        write = (PROMPTS | MEANINGLESS)[name]
        images = sample(pipe, [write(caption, i) for i, caption in enumerate(captions)])
        rows[name] = read(clip, images, captions if name in PROMPTS else None)
        sheet[name] = images[:12]
    return rows, sheet


@torch.inference_mode()
def sample(pipe: DiffusionPipeline, prompts: list[str]) -> Tensor:
    """Images [N, 3, 64, 64] in [0, 1], each from noise of its own seed."""
    seeds = range(FIRST_SEED, FIRST_SEED + len(prompts))
    noise = torch.stack([torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    options = {"num_inference_steps": 16, "guidance_scale": 3.0, "output_type": "pt", "height": 64, "width": 64}
    if isinstance(pipe, StableDiffusion3Pipeline):
        options["max_sequence_length"] = 1  # without a T5 encoder the others are zeros, and 256 of them are slow
    parts = range(0, len(prompts), 32)
    return torch.cat([pipe(prompts[k : k + 32], latents=noise[k : k + 32], **options).images for k in parts]).float()


def read(clip: ClipScore, images: Tensor, captions: list[Caption] | None) -> dict:
    """What the CLIP sees: the right words where a scene was named, and the variety of what was drawn."""
    vectors = clip.embed_images(images)
    count = len(vectors)
    guessed = [CAPTIONS[i] for i in (vectors @ clip.embed_captions([str(c) for c in CAPTIONS]).T).argmax(1).tolist()]
    likeness = ((vectors @ vectors.T).sum() - count).item() / (count * (count - 1))
    row: dict = {"mean cosine of two pictures": round(likeness, 3), "kinds": dict(Counter(g.kind for g in guessed))}
    if captions is not None:
        score = (vectors * clip.embed_captions([str(c) for c in captions])).sum(1)
        pairs = list(zip(guessed, captions, strict=True))
        row["clip score"] = json.loads(cluster_bootstrap(score, range(count)).to_json())
        for part in ("kind", "texture", "detail"):
            right = sum(getattr(g, part) == getattr(c, part) for g, c in pairs)
            row[part] = json.loads(wilson(right, count).to_json())
        row["whole caption"] = json.loads(wilson(sum(g == c for g, c in pairs), count).to_json())
    return row


if __name__ == "__main__":
    main()
