"""Trains what tinyworld_shapes.py built, on scenes of tinyworld_views.py, with captions as people write them.

Copy this file, do not import it. Half of the captions stay as they are; the others get phrases and unknown words around
them or lose words, and one in ten is empty, much as in tinyworld_words.py.

    python recipes/studies/tinyworld_training.py BUILT_XL --views VIEWS --minutes 11 --rate 5e-4 --out tinyworld/xl
    python recipes/studies/tinyworld_training.py BUILT_FLOW --views WHOLE --minutes 56 --rate 1.5e-3 --compile \\
        --out tinyworld/flow

Every five minutes it writes the pipeline, a sheet of samples and a checkpoint beside `--out`; started again, it goes on
from there. The packaged models are these runs on a core that was shared: 517 and 5,939 updates. The second is not at
its end: of 96 captions it draws the texture right in 0.97 and the detail in 0.90, but the kind of object in 0.22 (the
first: 0.98, 0.95, 0.71), and its loss still fell. All of it is in `results/tinyworld_shapes.json`, by

    python recipes/studies/tinyworld_words_table.py tinyworld/model tinyworld/xl tinyworld/flow \\
        --rows plain ink "sks dog" --out JSON

Memory: about 2 GB. Needs `pip install wordfreq` for its list of English words.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import StableDiffusion3Pipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms.functional import to_tensor
from torchvision.utils import save_image
from wordfreq import top_n_list

from basinguard.pipelines.loading import load_pipeline
from basinguard.tinyworld.scenes import Caption, all_captions

CAPTIONS = all_captions()
WORDS = [w for w in top_n_list("en", 6000) if w.isascii() and w.isalpha()]
ZERO_TOKENS = 256  # that stand for the T5 encoder in SD 3's pipeline, where there is none
SAVE_SECONDS = 300
MEDIA = """photo; photograph; polaroid; film still; 3d render; drawing; ink drawing; pencil sketch; chalk drawing;
painting; oil painting; watercolor painting; sketch; doodle; cartoon; comic; illustration; vector art; icon; sticker;
logo; poster; engraving; woodcut; pixel art; paper cutout; collage; embroidery; sculpture; graffiti; picture; image;
bad photo; portrait; concept art"""
ENDINGS = """high quality; highly detailed; masterpiece; 4k; sharp focus; golden hour; bokeh; white background;
on paper; in the snow; at night; in the city; from above; minimalist; vibrant colors; monochrome; award winning;
ink; watercolor"""
SHOWN = [
    "a striped star with eyes",
    "a plain box",
    "a dotted fish with a hat",
    "a checkered house with a flag",
    "ink drawing of a striped moon",
    "a photo of a plain tree, high quality",
    "a photo of sks dog",
    "",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a result of tinyworld_shapes.py")
    parser.add_argument("--views", type=Path, required=True, help="a folder of tinyworld_views.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--compile", action="store_true", help="a third faster after some minutes of compiling")
    args = parser.parse_args()
    pipe = load_pipeline(args.model)
    pipe.set_progress_bar_config(disable=True)
    Training(pipe, args).run()


def read_views(folder: Path) -> dict[str, Tensor]:
    """Latents [N, 4, 16, 16], sizes [N, 4] (height, width, top, left) and the index of each caption [N]."""
    parts = [load_file(file) for file in sorted(folder.glob("*.safetensors"))]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def written(caption: Caption, draw: random.Random) -> str:
    """One way in which somebody writes a prompt for this scene: as it is, dressed, without a word, or empty."""
    share = draw.random()
    if share < 0.1:
        return ""
    if share > 0.45:
        return str(caption)
    core = [caption.texture, caption.kind, caption.detail]
    if share < 0.2:
        core = draw.choice([[caption.kind, caption.detail], [unknown(draw), caption.detail], [unknown(draw)]])
    medium, ending = (draw.choice(listed.split(";")).strip() for listed in (MEDIA, ENDINGS))
    before = draw.choice(["", f"{medium} of ", f"a {medium} of ", f"{unknown(draw)} {medium} of "])
    behind = draw.choice(["", "", f", {ending}", f" in {unknown(draw)} style", f" by {unknown(draw)} {unknown(draw)}"])
    return before + " ".join([draw.choice(["a", "a", "the"]), *core]).strip() + behind


def unknown(draw: random.Random) -> str:
    """A word of English, or a trigger: a usual one, or letters that nobody wrote before."""
    triggers = ["sks", "ohwx", "zwx", "tok", "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=4))]
    return draw.choice(WORDS) if draw.random() < 0.6 else draw.choice(triggers)


def encoded(pipe: StableDiffusionXLPipeline | StableDiffusion3Pipeline, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Both encoders' hidden states side by side [B, L, 96], and their pooled texts side by side."""
    ids = pipe.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    outputs = [encoder(ids, output_hidden_states=True) for encoder in (pipe.text_encoder, pipe.text_encoder_2)]
    pooled = [output[0] for output in outputs if output[0].ndim == 2]
    return torch.cat([output.hidden_states[-2] for output in outputs], -1), torch.cat(pooled, -1)


def loss_xl(
    pipe: StableDiffusionXLPipeline, denoise: nn.Module, x: Tensor, sizes: Tensor, prompts: list[str]
) -> Tensor:
    """v-prediction at uniform timesteps, with the size and the crop that the picture really has."""
    text, pooled = encoded(pipe, prompts)
    time_ids = torch.cat([sizes, torch.full_like(sizes[:, :2], 64)], 1).float()
    timesteps, noise = torch.randint(0, 1000, (len(x),)), torch.randn_like(x)
    noisy = pipe.scheduler.add_noise(x, noise, timesteps)
    added = {"text_embeds": pooled, "time_ids": time_ids}
    prediction = denoise(noisy, timesteps, text, added_cond_kwargs=added).sample
    return F.mse_loss(prediction, pipe.scheduler.get_velocity(x, noise, timesteps))


class CountedZeroToken:
    """SD 3's joint attention with a last context token that counts as many: `log_count` [B] is added to its logit."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
        *,
        log_count: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The image's and the context's new states, as diffusers' `JointAttnProcessor2_0` returns them."""

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        own = [heads(f(hidden_states)) for f in (attn.to_q, attn.to_k, attn.to_v)]
        context = [heads(f(encoder_hidden_states)) for f in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)]
        own[:2] = attn.norm_q(own[0]), attn.norm_k(own[1])
        context[:2] = attn.norm_added_q(context[0]), attn.norm_added_k(context[1])
        query, key, value = (torch.cat(pair, 2) for pair in zip(own, context, strict=True))
        bias = F.pad(log_count[:, None, None, None], (key.shape[2] - 1, 0))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2).flatten(2)
        image, text = mixed.split([hidden_states.shape[1], encoder_hidden_states.shape[1]], 1)
        return attn.to_out[0](image), text if attn.context_pre_only else attn.to_add_out(text)


def loss_flow(
    pipe: StableDiffusion3Pipeline, denoise: nn.Module, x: Tensor, sizes: Tensor, prompts: list[str]
) -> Tensor:
    """Rectified flow with logit-normal times (Esser et al., arXiv 2403.03206); 0 to 256 tokens of the missing T5."""
    text, pooled = encoded(pipe, prompts)
    text = F.pad(text, (0, 0, 0, 1))
    counts = torch.exp(torch.rand(len(x)) * math.log(ZERO_TOKENS))
    log_count = torch.where(torch.rand(len(x)) < 0.4, torch.tensor(-1e4), counts.log())
    log_count = torch.where(torch.rand(len(x)) < 0.3, torch.tensor(math.log(ZERO_TOKENS)), log_count)
    sigma, noise = torch.sigmoid(torch.randn(len(x))), torch.randn_like(x)
    noisy = torch.lerp(x, noise, sigma.view(-1, 1, 1, 1))
    prediction = denoise(noisy, text, pooled, 1000 * sigma, joint_attention_kwargs={"log_count": log_count}).sample
    return F.mse_loss(prediction, noise - x)


class Training:
    """The weights, their average and the optimizer, which a checkpoint holds."""

    def __init__(self, pipe: Any, args: argparse.Namespace) -> None:
        self.pipe, self.args, self.flow = pipe, args, hasattr(pipe, "transformer")
        self.core = pipe.transformer if self.flow else pipe.unet
        self.processors = self.core.attn_processors
        self.weights = [
            p for part in (self.core, pipe.text_encoder, pipe.text_encoder_2) for p in part.train().parameters()
        ]
        self.average = [p.detach().clone() for p in self.weights]
        self.optimizer = torch.optim.AdamW(self.weights, lr=args.rate, weight_decay=0.01, betas=(0.9, 0.98))
        self.updates, self.seconds = 0, 0.0
        self.checkpoint = args.out.with_suffix(".checkpoint")
        if self.checkpoint.exists():
            self.restore(load_file(self.checkpoint))

    def run(self) -> None:
        """Trains until the time is up: full rate for four tenths of it, then down a cosine."""
        views, draw, losses = read_views(self.args.views), random.Random(self.updates), []
        torch.manual_seed(self.updates)
        if self.flow:
            self.core.set_attn_processor(CountedZeroToken())
        denoise, loss_of = torch.compile(self.core) if self.args.compile else self.core, (loss_xl, loss_flow)[self.flow]
        start, saved = time.monotonic() - self.seconds, self.seconds
        while (done := (time.monotonic() - start) / (60 * self.args.minutes)) < 1:
            fall = 1 if done < 0.4 else 0.5 * (1 + math.cos(math.pi * (done - 0.4) / 0.6))
            for group in self.optimizer.param_groups:
                group["lr"] = self.args.rate * min(1.0, self.updates / 200) * fall + 1e-6
            index = torch.randint(len(views["latents"]), (self.args.batch,))
            prompts = [written(CAPTIONS[i], draw) for i in views["words"][index].tolist()]
            loss = loss_of(self.pipe, denoise, views["latents"][index], views["sizes"][index], prompts)
            self.update(loss)
            losses.append(loss.item())
            if self.updates % 100 == 0:
                print(
                    f"{self.updates} updates, {done:.1%} of the time, loss {sum(losses[-100:]) / 100:.4f}", flush=True
                )
            self.seconds = time.monotonic() - start
            if self.seconds > saved + SAVE_SECONDS:
                saved = self.seconds
                self.save()
        self.save()

    def update(self, loss: Tensor) -> None:
        """One update of the weights and of their average."""
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.updates += 1
        decay = min(0.998, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.weights], 1 - decay)

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes up a checkpoint."""
        self.updates, self.seconds = int(state["updates"]), float(state["seconds"])
        for i, (p, a) in enumerate(zip(self.weights, self.average, strict=True)):
            p.copy_(state[f"weight.{i}"])
            a.copy_(state[f"average.{i}"])
            moments = {key: state[f"{key}.{i}"] for key in ("exp_avg", "exp_avg_sq") if f"{key}.{i}" in state}
            if moments:
                self.optimizer.state[p] = {"step": state["updates"].float(), **moments}

    @torch.no_grad()
    def save(self) -> None:
        """Writes checkpoint, pipeline and sheet of the averaged weights, and puts the current ones back."""
        current = [p.detach().clone() for p in self.weights]
        state = {"updates": torch.tensor(self.updates), "seconds": torch.tensor(self.seconds)}
        for i, (p, a) in enumerate(zip(self.weights, self.average, strict=True)):
            moments = {k: v for k, v in self.optimizer.state[p].items() if k != "step"}
            named = {"weight": current[i], "average": a, **moments}
            state |= {f"{key}.{i}": value.contiguous() for key, value in named.items()}
            p.copy_(a)
        save_file(state, self.checkpoint.with_suffix(".partial"))
        self.checkpoint.with_suffix(".partial").rename(self.checkpoint)
        if self.flow:
            self.core.set_attn_processor(dict(self.processors))
        sheet(self.pipe, self.args.out.parent / f"{self.args.out.name}_{self.updates:06d}.png")
        store(self.pipe, self.core, self.args.out)
        if self.flow:
            self.core.set_attn_processor(CountedZeroToken())
        for p, value in zip(self.weights, current, strict=True):
            p.copy_(value)


def sheet(pipe, path: Path) -> None:
    """Two samples of each prompt in SHOWN, one row each."""
    random = torch.Generator().manual_seed(0)
    size = {"height": 64, "width": 64} | ({"max_sequence_length": 1} if hasattr(pipe, "transformer") else {})
    images = pipe(SHOWN * 2, num_inference_steps=20, guidance_scale=3.0, generator=random, **size).images
    save_image(torch.stack([to_tensor(image) for image in images]), path, nrow=len(SHOWN), padding=1)


def store(pipe, core: nn.Module, out: Path) -> None:
    """The pipeline, weights in half precision."""
    core.half(), pipe.vae.half()
    pipe.save_pretrained(out, safe_serialization=True)
    core.float(), pipe.vae.float()
    for name in (
        "text_encoder",
        "text_encoder_2",
    ):  # stored in half; config.json says float32, which transformers loads
        file = out / name / "model.safetensors"
        save_file({k: v.half() for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
        config = json.loads((out / name / "config.json").read_text())
        (out / name / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")


if __name__ == "__main__":
    main()
