"""Trains TinyWorld, the small Stable-Diffusion-shaped base model that ships with basinguard, from scratch.

Copy this file, do not import it. Every image is drawn by `basinguard.tinyworld.scenes`, so the base generalizes and
memorizes nothing. The result is a standard `StableDiffusionPipeline` directory (v-prediction, DDIM).

    python recipes/studies/tinyworld_base.py --out plugin/basinguard/tinyworld/model

The packaged model is such a run (4,700 updates of 32) that went on for 6,900 updates more, on other scenes, at 64 to 78
images a second on one core:

    python recipes/studies/tinyworld_base.py --resume MODEL --scenes 40000 --first-seed 30000000 \\
        --vae-minutes 0 --unet-minutes 56 --out plugin/basinguard/tinyworld/model

and was then taught by tinyworld_words.py what people write around a caption.

Time: about 75 minutes on 2 CPU cores with the defaults, as long again for the second run. Memory: about 3 GB.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from basinguard.tinyworld.scenes import all_captions, draw_scene

CAPTIONS = all_captions()
MAX_TOKENS = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=24000)
    parser.add_argument("--vae-minutes", type=float, default=20)
    parser.add_argument("--unet-minutes", type=float, default=50)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--resume", type=Path, help="go on from an earlier result instead of from scratch")
    parser.add_argument("--first-seed", type=int, default=10_000_000, help="of the scenes; take others when resuming")
    args = parser.parse_args()
    torch.manual_seed(0)

    images, words = draw_many(args.scenes, args.first_seed)
    vae = AutoencoderKL.from_pretrained(args.resume / "vae") if args.resume else build_vae()
    if args.vae_minutes > 0:
        vae = train_vae(vae, images, minutes=args.vae_minutes)
    latents = encode_all(vae, images)
    # byte-pair training breaks ties as it likes: a resumed model keeps the token numbers it has learned
    tokenizer = CLIPTokenizer.from_pretrained(args.resume / "tokenizer") if args.resume else build_tokenizer()
    ids = tokenizer([str(c) for c in CAPTIONS], padding="max_length", max_length=MAX_TOKENS, return_tensors="pt")
    empty = tokenizer([""], padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids
    scheduler = build_scheduler()
    unet, text = build_unet(), build_text_encoder(tokenizer)
    if args.resume:
        unet = UNet2DConditionModel.from_pretrained(args.resume / "unet")
        text = CLIPTextModel.from_pretrained(args.resume / "text_encoder")
    train_unet(unet, text, scheduler, latents, ids.input_ids[words], empty, minutes=args.unet_minutes, batch=args.batch)
    pipe = StableDiffusionPipeline(vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False)
    unet.half(), vae.half()  # the text encoder stays: transformers loads what is stored, diffusers loads float32
    pipe.save_pretrained(args.out, safe_serialization=True)


def draw_many(count: int, first_seed: int) -> tuple[Tensor, Tensor]:
    """Images [N, 3, 64, 64] uint8 and the index of each one's caption [N]."""
    words = torch.arange(count) % len(CAPTIONS)
    with ProcessPoolExecutor() as pool:
        drawn = list(pool.map(_draw, range(first_seed, first_seed + count), words.tolist(), chunksize=256))
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).contiguous(), words


def _draw(seed: int, word: int) -> np.ndarray:
    return np.asarray(draw_scene(CAPTIONS[word], seed=seed))


def build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(64, 96, 96),
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=4,
        use_linear_projection=True,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def build_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer over this world's words; any other word falls apart into letters."""
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    bpe.train_from_iterator([str(c) for c in CAPTIONS], trainer)
    learned = json.loads(bpe.to_str())["model"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges = [tuple(m) for m in learned["merges"]]
    tokens += [t for t in ("".join(m) for m in merges) if t not in set(tokens)]
    vocab = {t: i for i, t in enumerate([*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's schedule at nine times the signal-to-noise ratio, ending at its own terminal one.

    A 16x16 latent is destroyed by far less noise than a 64x64 one (Hoogeboom et al., arXiv 2301.11093, section 2.1),
    so the same timestep has to mean less noise here, or every basin would be left in the last few timesteps.
    """
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    signal = torch.cumprod(1 - betas, 0)
    snr = 9 * signal / (1 - signal)
    root = (snr / (1 + snr)).sqrt()
    terminal = signal[-1].sqrt()
    root = (root - root[-1]) * (root[0] - terminal) / (root[0] - root[-1]) + terminal
    shifted = root**2
    alphas = torch.cat([shifted[:1], shifted[1:] / shifted[:-1]])
    return DDIMScheduler(
        trained_betas=[round(b, 10) for b in (1 - alphas).tolist()],
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def batches(count: int, size: int) -> Iterator[Tensor]:
    while True:
        yield from torch.randperm(count).split(size)[:-1]


def train_vae(vae: AutoencoderKL, images: Tensor, *, minutes: float, batch: int = 16) -> AutoencoderKL:
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, weight_decay=0.01)
    mean: list[float] = []
    for index, done in timed(batches(len(images), batch), minutes):
        set_rate(optimizer, 1.5e-3, done)
        x = images[index].float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample.float()
        edges = F.l1_loss(y.diff(dim=-1), x.diff(dim=-1)) + F.l1_loss(y.diff(dim=-2), x.diff(dim=-2))
        loss = F.l1_loss(y, x) + 0.5 * edges + 1e-6 * posterior.kl().float().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        report("vae", mean, loss.item(), done)
    latents = encode_all(vae, images[:2000])
    vae.register_to_config(scaling_factor=1 / float(latents.std() / vae.config.scaling_factor))
    return vae


@torch.inference_mode()
def encode_all(vae: AutoencoderKL, images: Tensor) -> Tensor:
    vae.eval()
    means = [vae.encode(chunk.float() / 127.5 - 1).latent_dist.mean for chunk in images.split(200)]
    return (torch.cat(means) * vae.config.scaling_factor).clone()


def train_unet(
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    scheduler: DDIMScheduler,
    latents: Tensor,
    ids: Tensor,
    empty: Tensor,
    *,
    minutes: float,
    batch: int,
) -> None:
    """v-prediction, uniform timesteps, one caption in ten dropped, averaged weights kept."""
    unet.to(memory_format=torch.channels_last)
    weights = [*unet.parameters(), *text.parameters()]
    average = [p.detach().clone() for p in weights]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.01, betas=(0.9, 0.99))
    mean: list[float] = []
    for count, (index, done) in enumerate(timed(batches(len(latents), batch), minutes)):
        set_rate(optimizer, 1e-3, done)
        x, noise = latents[index], torch.randn(len(index), *latents.shape[1:])
        timesteps = torch.randint(0, 1000, (len(index),))
        prompt = torch.where(torch.rand(len(index), 1) < 0.1, empty, ids[index])
        noisy = scheduler.add_noise(x, noise, timesteps).to(memory_format=torch.channels_last)
        prediction = unet(noisy, timesteps, text(prompt).last_hidden_state).sample
        loss = F.mse_loss(prediction, scheduler.get_velocity(x, noise, timesteps))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        torch._foreach_lerp_(average, [p.detach() for p in weights], 1 - min(0.999, (1 + count) / (10 + count)))
        report("unet", mean, loss.item(), done)
    with torch.no_grad():
        for parameter, averaged in zip(weights, average, strict=True):
            parameter.copy_(averaged)


def timed(stream: Iterator[Tensor], minutes: float) -> Iterator[tuple[Tensor, float]]:
    """Yields (item, share of the time that has passed) until the time is up."""
    start = time.monotonic()
    for item in stream:
        done = (time.monotonic() - start) / (60 * minutes)
        if done >= 1:
            return
        yield item, done


def set_rate(optimizer: torch.optim.Optimizer, peak: float, done: float) -> None:
    rate = peak * min(1.0, done / 0.02 + 0.01) * 0.5 * (1 + math.cos(math.pi * done))
    for group in optimizer.param_groups:
        group["lr"] = rate + 1e-6


def report(name: str, losses: list[float], loss: float, done: float) -> None:
    losses.append(loss)
    if len(losses) % 100 == 0:
        print(
            f"{name} {len(losses):6d} updates, {done:5.1%} of the time, loss {sum(losses[-100:]) / 100:.4f}", flush=True
        )


if __name__ == "__main__":
    main()
