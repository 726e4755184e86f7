"""Trains the tiny CLIP that scores TinyWorld images against captions, a standard open_clip model.

Copy this file, do not import it. Every batch holds each caption at most once, so no scene is pushed away from its own
words. Scenes are blurred, recoloured and made noisy while training, because the model will look at generated ones.

    python recipes/studies/tinyworld_clip.py --out plugin/basinguard/tinyworld/clip

Expected: 89 % of fresh scenes with every word right (chance: 1/192); see recipes/results/tinyworld_clip.json.
Time: about 6 minutes on one CPU core. Memory: about 1.5 GB. Files: under 4 MB (float16).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.loss import ClipLoss
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torchvision.transforms.v2 import functional as edit
from transformers import PreTrainedTokenizerFast

from basinguard.core.stats import wilson
from basinguard.tinyworld.scenes import Caption, all_captions, draw_scene

CAPTIONS = all_captions()
GROUPS = ("kind", "texture", "detail")
CONTEXT = 12
TRAIN_SEED, TEST_SEED = 80_000_000, 90_000_000
MEAN, STD = (0.5,) * 3, (0.25,) * 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=Path("recipes/results/tinyworld_clip.json"))
    parser.add_argument("--scenes", type=int, default=192 * 60)
    parser.add_argument("--fresh", type=int, default=192 * 10, help="scenes never trained on, for the result")
    parser.add_argument(
        "--minutes", type=float, default=5, help="processor time, so that a busy machine changes nothing"
    )
    parser.add_argument("--batch", type=int, default=96, help="captions in a batch, all different; at most 192")
    args = parser.parse_args()
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)

    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(args.out)
    (args.out / "open_clip_config.json").write_text(json.dumps(config(len(tokenizer)), indent=2) + "\n")
    words = open_clip.get_tokenizer(f"local-dir:{args.out}")([str(c) for c in CAPTIONS])
    model = open_clip.create_model(f"local-dir:{args.out}", load_weights=False)
    images = draw_many(args.scenes, TRAIN_SEED)
    spent, steps = train(model, images, words, minutes=args.minutes, batch=args.batch)
    weights = {key: value.half() for key, value in model.state_dict().items()}
    save_file(weights, args.out / "open_clip_model.safetensors")

    model.load_state_dict(weights)  # the result is that of the rounded weights, which are what ships
    result = {
        "recipe": "tinyworld_clip",
        "train_scenes": args.scenes,
        "train_steps": steps,
        "processor_minutes": round(spent, 2),
    }
    result |= zero_shot(model.eval(), words, args.fresh)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def config(vocabulary: int) -> dict:
    """open_clip's own model configuration; `hf_tokenizer_name` makes it read the tokenizer beside it."""
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32, "patch_size": None}
    text = {"context_length": CONTEXT, "vocab_size": vocabulary, "width": 64, "heads": 4, "layers": 2}
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash", "size": 64}
    model = {"embed_dim": 128, "vision_cfg": vision, "text_cfg": text | {"hf_tokenizer_name": "beside this file"}}
    return {"model_cfg": model, "preprocess_cfg": preprocess}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word of this world; any other word is `<unk>`. The end token has the largest number."""
    words = sorted({word for caption in CAPTIONS for word in str(caption).split()})
    tokens = ["<pad>", "<unk>", "<start>", *words, "<end>"]
    ids = {token: number for number, token in enumerate(tokens)}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(token, ids[token]) for token in ("<start>", "<end>")]
    core.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<start>", "eos_token": "<end>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=CONTEXT, **names)


def draw_many(count: int, first_seed: int) -> Tensor:
    """Scenes [N, 3, 64, 64] uint8; scene i has caption i modulo 192."""
    drawn = [np.asarray(draw_scene(CAPTIONS[i % len(CAPTIONS)], first_seed + i)) for i in range(count)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).contiguous()


def train(model: torch.nn.Module, images: Tensor, words: Tensor, *, minutes: float, batch: int) -> tuple[float, int]:
    """AdamW with a cosine over the given time; returns processor minutes spent and training steps done."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    loss_of, start, step, share = ClipLoss(), time.process_time(), 0, 0.0
    rounds = len(images) // len(CAPTIONS)
    model.train()
    while share < 1:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * share))
        chosen = torch.randperm(len(CAPTIONS))[:batch]
        scenes = images[chosen + len(CAPTIONS) * torch.randint(rounds, (batch,))]
        image_vectors, read, scale = model(normalise(disturb(scenes.float() / 255)), words[chosen])[:3]
        loss = loss_of(image_vectors, read, scale)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        if step % 50 == 0:
            print(f"train_step {step}: loss {loss.item():.3f}, {time.process_time() - start:.0f} s", flush=True)
        step, share = step + 1, (time.process_time() - start) / (60 * minutes)
    return (time.process_time() - start) / 60, step


def disturb(scenes: Tensor) -> Tensor:
    """What generation does to scenes: a shift, a blur, other contrast and saturation, some noise; one draw a batch."""
    draw = torch.rand(6).tolist()
    dx, dy = (int(v) for v in torch.randint(-3, 4, (2,)))
    scenes = torch.nn.functional.pad(scenes, (3, 3, 3, 3), mode="replicate")[..., 3 + dy : 67 + dy, 3 + dx : 67 + dx]
    if draw[0] < 0.5:
        scenes = edit.gaussian_blur(scenes, [5, 5], [0.4 + 0.8 * draw[1]])
    scenes = edit.adjust_contrast(scenes, 0.8 + 0.5 * draw[2])
    scenes = edit.adjust_saturation(scenes, 0.6 + 1.2 * draw[3])
    return (scenes + 0.08 * draw[4] * torch.randn_like(scenes)).clamp(0, 1)


def normalise(scenes: Tensor) -> Tensor:
    return (scenes - MEAN[0]) / STD[0]


@torch.no_grad()
def zero_shot(model: torch.nn.Module, words: Tensor, count: int) -> dict:
    """Which of the 192 captions fits each fresh scene best, and which of its words are right; Wilson intervals."""
    scenes = normalise(draw_many(count, TEST_SEED).float() / 255)
    read = model.encode_text(words, normalize=True)
    guess = torch.cat([(model.encode_image(s, normalize=True) @ read.T).argmax(1) for s in scenes.split(192)])
    truth = [CAPTIONS[i % len(CAPTIONS)] for i in range(count)]
    guessed = [CAPTIONS[i] for i in guess.tolist()]
    groups = {name: rate(guessed, truth, name) for name in GROUPS}
    whole = wilson(sum(g == t for g, t in zip(guessed, truth, strict=True)), count)
    return {"zero_shot": {name: json.loads(e.to_json()) for name, e in (groups | {"whole caption": whole}).items()}}


def rate(guessed: list[Caption], truth: list[Caption], name: str):
    return wilson(sum(getattr(g, name) == getattr(t, name) for g, t in zip(guessed, truth, strict=True)), len(truth))


if __name__ == "__main__":
    main()
