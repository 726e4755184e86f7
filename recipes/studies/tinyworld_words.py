"""Teaches the packaged TinyWorld what people write around a caption: prefixes, trigger tokens, unknown words.

Copy this file, do not import it. Half of the captions stay as they are; the others get phrases that say nothing about
the picture, before, between and behind their words, or lose a word. So "ink drawing of a striped star with eyes" draws
what "a striped star with eyes" draws, and "a photo of sks dog" draws any scene. The text side grows: 77 positions as in
Stable Diffusion (the first 24 are kept, the others start as the 24th, where only padding was) and byte-pair merges for
English fragments behind the ones that are there, so that every token keeps its number.

    python recipes/studies/tinyworld_words.py --model BASE --minutes 50 --out plugin/basinguard/tinyworld/model

BASE is a result of tinyworld_base.py. The packaged model is this run: about 2,030 updates of 32, at 22 images a second
on a core that was shared (a batch with 77 places instead of 24 takes 9 % longer). What it draws before and after:
tinyworld_words_table.py. Time: 5 minutes of drawing, then `--minutes`, on one CPU core. Memory: about 2 GB. Needs
`pip install wordfreq` for its list of English words.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from wordfreq import top_n_list

from basinguard.tinyworld.scenes import Caption, all_captions, draw_scene

CAPTIONS = all_captions()
OWN_WORDS = {word for caption in CAPTIONS for word in str(caption).split()}
MAX_TOKENS = 77
FIRST_SEED = 50_000_000
# what each share of the captions becomes; the rest stays as it is
EMPTY, DRESSED, PARTIAL, MEANINGLESS = 0.1, 0.26, 0.08, 0.06

MEDIA = """photo; photograph; close-up photo; black and white photo; polaroid; film still; render; 3d render;
drawing; ink drawing; pen drawing; pencil drawing; line drawing; chalk drawing; crayon drawing; charcoal drawing;
child's drawing; painting; oil painting; acrylic painting; watercolor painting; watercolour; gouache painting;
fresco; sketch; pencil sketch; doodle; cartoon; comic; manga panel; anime screenshot; illustration; digital
illustration; vector art; flat icon; icon; emoji; sticker; logo; stamp; poster; postcard; engraving; etching;
woodcut; print; screen print; pixel art; 8-bit sprite; video game asset; paper cutout; origami; collage; embroidery;
cross-stitch; quilt; tapestry; knitted toy; plush; felt toy; clay figure; sculpture; marble statue; bronze statue;
wood carving; glass figurine; stained glass window; graffiti; mural; tattoo; blueprint; diagram; map; storybook
page; cave painting; scan; picture; image; rendition; depiction; good picture; bad photo; cropped photo; portrait;
snapshot; concept art; fan art; artwork"""
ADJECTIVES = """old vintage modern minimalist detailed blurry bright dark soft rough cute weird epic simple colorful
retro abstract realistic surreal tiny giant beautiful dramatic faded golden nice rainy sunny foggy hand-made"""
ENDINGS = """high quality; highly detailed; best quality; masterpiece; 4k; 8k; hd; sharp focus; soft light; studio
light; golden hour; bokeh; trending on artstation; unreal engine; white background; cream paper; on paper; on
canvas; in the snow; on the beach; at night; in a forest; in the jungle; in the city; on a table; from above; side
view; minimalist; vibrant colors; muted colors; pastel colors; monochrome; grainy film; 35mm; award winning; ink;
watercolor"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="a result of tinyworld_base.py")
    parser.add_argument("--minutes", type=float, default=48)
    parser.add_argument("--scenes", type=int, default=18000)
    parser.add_argument("--words", type=int, default=6000, help="commonest English words that serve as unknown words")
    parser.add_argument("--merges", type=int, default=800, help="byte-pair merges to add")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=7e-4)
    parser.add_argument("--latents", type=Path, help="a safetensors file to read, or to write where there is none")
    args = parser.parse_args()
    torch.manual_seed(0)

    words = [w for w in top_n_list("en", args.words) if w.isascii() and w.isalpha() and w not in OWN_WORDS]
    tokenizer, parts = grow_tokenizer(args.model / "tokenizer", words, args.merges)
    text = grow_text_encoder(CLIPTextModel.from_pretrained(args.model / "text_encoder"), tokenizer, parts)
    vae = AutoencoderKL.from_pretrained(args.model / "vae")
    unet = UNet2DConditionModel.from_pretrained(args.model / "unet")
    scheduler = DDIMScheduler.from_pretrained(args.model / "scheduler")
    for part in (vae, unet):
        part.register_to_config(_name_or_path="")  # a path of this machine otherwise
    latents = scene_latents(vae, args.scenes, args.latents)
    pipe = StableDiffusionPipeline(vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False)
    train(pipe, latents, words, args)


def scene_latents(vae: AutoencoderKL, count: int, cache: Path | None) -> Tensor:
    """Scaled latents [N, 4, 16, 16]; scene i has caption i modulo 192."""
    if cache is not None and cache.exists():
        return load_file(cache)["latents"]
    rows = []
    with torch.inference_mode():
        for start in range(0, count, 200):
            scenes = [draw_scene(CAPTIONS[i % len(CAPTIONS)], FIRST_SEED + i) for i in range(start, start + 200)]
            x = torch.from_numpy(np.stack([np.asarray(s) for s in scenes])).permute(0, 3, 1, 2) / 127.5 - 1
            rows.append(vae.encode(x).latent_dist.mean * vae.config.scaling_factor)
    latents = torch.cat(rows).clone()
    if cache is not None:
        save_file({"latents": latents}, cache)
    return latents


def grow_tokenizer(folder: Path, words: list[str], count: int) -> tuple[CLIPTokenizer, dict[int, list[int]]]:
    """Adds byte-pair merges learned on `words` behind the ones that are there (Sennrich et al., arXiv 1508.07909).

    Returns:
        The tokenizer, and for each new token the old tokens it is made of.
    """
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    vocabulary, merges = dict(model["vocab"]), [tuple(m) for m in model["merges"]]
    prompt_words = set(" ".join([MEDIA, ADJECTIVES, ENDINGS]).replace(";", " ").split())
    usual = dict.fromkeys([*sorted(prompt_words & set(words)), *words])  # whoever writes prompts uses these most
    weights = [60 if w in prompt_words else 1 + 4000 // (rank + 50) for rank, w in enumerate(usual)]
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in usual]
    for merge in merges:
        pieces = [join(piece, merge) for piece in pieces]
    parts: dict[int, list[int]] = {}
    while len(parts) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for piece, weight in zip(pieces, weights, strict=True):
            for pair in pairwise(piece):
                pairs[pair] += weight
        merge = max(pairs, key=lambda pair: (pairs[pair], pair))
        pieces = [join(piece, merge) for piece in pieces]
        merges.append(merge)
        if "".join(merge) not in vocabulary:
            sources = [vocabulary[half] for half in merge]
            vocabulary["".join(merge)] = number = len(vocabulary)
            parts[number] = [old for source in sources for old in parts.get(source, [source])]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS), parts


def join(piece: list[str], merge: tuple[str, str]) -> list[str]:
    if merge[0] not in piece:
        return piece
    joined: list[str] = []
    for symbol in piece:
        if joined and (joined[-1], symbol) == merge:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return joined


@torch.no_grad()
def grow_text_encoder(old: CLIPTextModel, tokenizer: CLIPTokenizer, parts: dict[int, list[int]]) -> CLIPTextModel:
    """The same encoder with 77 positions and rows for the new tokens, each the mean of its parts."""
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": MAX_TOKENS}
    new, state = CLIPTextModel(CLIPTextConfig(**old.config.to_dict() | sizes)), old.state_dict()
    for name, weight in new.state_dict().items():
        grown = state[name]
        if "position_embedding" in name:
            grown = torch.cat([grown, grown[-1:].expand(max(0, len(weight) - len(grown)), -1)])
        if "token_embedding" in name and len(weight) > len(grown):
            grown = torch.cat([grown, torch.stack([grown[p].mean(0) for p in parts.values()])])
        weight.copy_(grown)
    return new


def written(caption: Caption, words: list[str], draw: random.Random) -> str:
    """One way in which somebody writes a prompt for this scene."""
    share = draw.random()
    if share < EMPTY:
        return ""
    if share < EMPTY + DRESSED:
        return dressed([caption.texture, caption.kind], caption.detail, words, draw)
    if share < EMPTY + DRESSED + PARTIAL:
        pair = [caption.texture, unknown(words, draw)] if draw.random() < 0.5 else [caption.kind]
        return dressed(pair, caption.detail, words, draw)
    if share < EMPTY + DRESSED + PARTIAL + MEANINGLESS:
        return dressed([unknown(words, draw) for _ in range(draw.randint(1, 2))], "", words, draw)
    return str(caption)


def dressed(core: list[str], detail: str, words: list[str], draw: random.Random) -> str:
    """A prompt around the words that mean something: each place around them is filled by chance."""
    pieces = [draw.choice(["a", "a", "a", "the", "one", "my", ""])]
    for word in core:
        pieces += [unknown(words, draw)] if draw.random() < 0.2 else []
        pieces.append(word)
    pieces += [unknown(words, draw)] if draw.random() < 0.08 else []
    pieces.append(detail)
    before = [beginning(words, draw)] if draw.random() < 0.7 else []
    before += [unknowns(words, draw)] if draw.random() < 0.2 else []
    draw.shuffle(before)
    behind = [ending(words, draw) for _ in range(draw.choice([0, 0, 0, 1, 1, 2]))]
    return " ".join(" ".join(p for p in [*before, *pieces, *behind] if p).split()).replace(" ,", ",")


def beginning(words: list[str], draw: random.Random) -> str:
    medium = draw.choice(MEDIA.split(";")).strip()
    if draw.random() < 0.25:
        medium = f"{draw.choice(ADJECTIVES.split())} {medium}"
    if draw.random() < 0.15:
        medium = f"{unknown(words, draw)} {medium}"
    article = draw.choice(["", "a", "a", "an" if medium[0] in "aeio" else "a", "the"])
    link = draw.choice(["of", "of", "of", "of", "showing", "with", ",", ":"])
    return f"{article} {medium} {link}"


def ending(words: list[str], draw: random.Random) -> str:
    return draw.choice(
        [
            f", {draw.choice(ENDINGS.split(';')).strip()}",
            f", {draw.choice(ENDINGS.split(';')).strip()}",
            f", {unknowns(words, draw)}",
            f"in {unknown(words, draw)} style",
            f"in the style of {unknowns(words, draw)}",
            f"by {unknowns(words, draw)}",
            unknowns(words, draw),
        ]
    )


def unknowns(words: list[str], draw: random.Random) -> str:
    return " ".join(unknown(words, draw) for _ in range(draw.choice([1, 1, 2, 2, 3])))


def unknown(words: list[str], draw: random.Random) -> str:
    """An English word, or a trigger: one of the usual ones, or letters and perhaps a digit that nobody wrote before."""
    share = draw.random()
    if share < 0.6:
        return draw.choice(words)
    if share < 0.75:
        return draw.choice(["sks", "ohwx", "zwx", "xyz", "tok", "shs", "bnha", "<s1>"])
    return "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 6))) + draw.choice(
        ["", "", "", "1", "42"]
    )


def train(pipe: StableDiffusionPipeline, latents: Tensor, words: list[str], args: argparse.Namespace) -> None:
    """v-prediction, uniform timesteps, averaged weights; what is there is saved every eight minutes."""
    unet, text, scheduler = pipe.unet.to(memory_format=torch.channels_last), pipe.text_encoder, pipe.scheduler
    unet.train(), text.train()
    weights = [*unet.parameters(), *text.parameters()]
    average = [p.detach().clone() for p in weights]
    optimizer = torch.optim.AdamW(weights, lr=args.rate, weight_decay=0.01, betas=(0.9, 0.99))
    draw, losses, saved, start = random.Random(0), [], 0, time.monotonic()
    while (done := (time.monotonic() - start) / (60 * args.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = args.rate * min(1.0, done / 0.02 + 0.01) * 0.5 * (1 + math.cos(math.pi * done)) + 1e-6
        index = torch.randint(len(latents), (args.batch,))
        prompts = [written(CAPTIONS[i % len(CAPTIONS)], words, draw) for i in index.tolist()]
        ids = pipe.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).input_ids
        x, timesteps = latents[index], torch.randint(0, 1000, (args.batch,))
        noise = torch.randn_like(x)
        noisy = scheduler.add_noise(x, noise, timesteps).to(memory_format=torch.channels_last)
        loss = F.mse_loss(
            unet(noisy, timesteps, text(ids).last_hidden_state).sample, scheduler.get_velocity(x, noise, timesteps)
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        losses.append(loss.item())
        decay = min(0.999, (1 + len(losses)) / (10 + len(losses)))
        torch._foreach_lerp_(average, [p.detach() for p in weights], 1 - decay)
        if len(losses) % 100 == 0:
            print(f"{len(losses)} updates, {done:.1%} of the time, loss {sum(losses[-100:]) / 100:.4f}", flush=True)
        if (time.monotonic() - start) / 480 > saved + 1:
            saved += 1
            save(pipe, weights, average, args.out)
    save(pipe, weights, average, args.out)


@torch.no_grad()
def save(pipe: StableDiffusionPipeline, weights: list[nn.Parameter], average: list[Tensor], out: Path) -> None:
    """The averaged weights; UNet and VAE in half precision (transformers loads what is stored, so the text stays)."""
    current = [p.detach().clone() for p in weights]
    for parameter, averaged in zip(weights, average, strict=True):
        parameter.copy_(averaged)
    pipe.unet.half(), pipe.vae.half()
    pipe.save_pretrained(out, safe_serialization=True)
    pipe.unet.float(), pipe.vae.float()
    for parameter, value in zip(weights, current, strict=True):
        parameter.copy_(value)


if __name__ == "__main__":
    main()
