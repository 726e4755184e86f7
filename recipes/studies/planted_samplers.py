"""What `taught` says of samplers whose worth is plain to see: blurred, noisy, shuffled, collapsed, mixed, or true.

Copy this file, do not import it. Every sampler is made of true images and of the base model's samples, so no model is
trained. Each row is measured twice: with fresh true images as the truth, and with the training images, which is what a
user has.

    python recipes/studies/planted_samplers.py --tasks ink neon subject
    python recipes/studies/planted_samplers.py --tasks ink --samples 24 --seed 1     # smaller and quicker

What still fools it is in the table too: it does not read captions, and a sampler of eight pictures gets 0.6.

Expected: planted_samplers.json and .md under recipes/results, and a picture of every sampler under --pictures. The base
model's other seeds get 0 and other true images 1, each within its interval; no damage gets more than the table of
mixtures would allow. Time: about 8 minutes a task on one core, most of it the network's features. Memory: 2 GB.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as edit
from torchvision.utils import save_image

from basinguard.basin.plain_run import run_plain
from basinguard.basin.trajectories import pairs_of
from basinguard.core.files import file_sha256
from basinguard.guard.measured_model import guided_model
from basinguard.guard.plan import ProbePlan
from basinguard.pipelines.latent_model import LatentModel
from basinguard.pipelines.loading import load_pipeline
from basinguard.similarity.colour_texture import ColourTexture
from basinguard.similarity.efficientnet import EfficientNetLite, installed_weights
from basinguard.similarity.feature_sets import FeatureSet
from basinguard.similarity.taught import Taught, TaughtRuler
from basinguard.tinyworld.tasks import TASKS

WORLD = Path("plugin/basinguard/tinyworld/model")
WEIGHTS = "diffusion_pytorch_model.safetensors"
TRAINED = 24  # images of the training set
OTHER_SEED = 500  # truth and base samples that a ruler is not made with
PATCHES = 4  # a side
PLAN = ProbePlan(scale=3.0, timesteps=16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["ink", "neon"], choices=sorted(TASKS))
    parser.add_argument("--samples", type=int, default=72)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, default=WORLD)
    parser.add_argument("--results", type=Path, default=Path("recipes/results"))
    parser.add_argument("--pictures", type=Path, help="folder for one picture of each task's samplers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = args.results / "planted_samplers.json"
    command = f"--tasks {' '.join(args.tasks)} --samples {args.samples} --seed {args.seed}"
    results = json.loads(path.read_text()) if path.exists() else {"command": command, "tasks": {}}
    for name in args.tasks:
        results["tasks"][name] = study(name, args)
        path.write_text(json.dumps(results, indent=1))
        path.with_suffix(".md").write_text(table(results))
        print(table(results))


class Remembering:
    """A feature set that describes a batch once, since two rulers look at the same samples."""

    def __init__(self, inner: FeatureSet) -> None:
        self.inner, self.name, self.described = inner, inner.name, {}

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """The features, described before or not."""
        key = hash(images.numpy().tobytes())
        if key not in self.described:
            self.described[key] = dict(self.inner(images))
        return self.described[key]


@torch.no_grad()
def study(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Rows of one task: each sampler against fresh truth and against the training images."""
    begin, n, task = time.process_time(), args.samples, TASKS[name]
    model = LatentModel(load_pipeline(str(args.model)))
    through = lambda images: model.decode(model.encode(images))  # noqa: E731
    truth, other = (task.truth(n, seed) for seed in (args.seed, OTHER_SEED + args.seed))
    train = task.train(TRAINED, args.seed)
    base, fresh = (drawn(model, other.captions, 10_000 * k + args.seed) for k in (1, 2))
    sets = [Remembering(f) for f in (ColourTexture(), EfficientNetLite(installed_weights()))]
    prompts = [f"{text} {k}" for k, text in enumerate(other.captions)]
    pictures = {"fresh": through(truth.pixels), "training": through(train.pixels)}
    rulers = {what: TaughtRuler(images, base, prompts, sets) for what, images in pictures.items()}
    samplers = planted(through(other.pixels), base, fresh, other.pixels, pictures["training"])
    rows = {}
    for label, images in samplers.items():
        rows[label] = {what: numbers(ruler.measure(images, prompts)) for what, ruler in rulers.items()}
        print(name, label, *(row["value"] for row in rows[label].values()), flush=True)
    copies = [True] * n
    rows["training images, net of copies"] = {
        what: numbers(ruler.measure(samplers["training images"], prompts, copies)) for what, ruler in rulers.items()
    }
    if args.pictures:
        args.pictures.mkdir(parents=True, exist_ok=True)
        save_image(torch.cat([images[:12] for images in samplers.values()]), args.pictures / f"{name}.png", nrow=12)
    return {
        "base_sha256": file_sha256(args.model / "unet" / WEIGHTS)[:12],
        "samples": n, "training images": TRAINED, "seed": args.seed, "scale": PLAN.scale, "timesteps": PLAN.timesteps,
        "processor_seconds": round(time.process_time() - begin), "rows": rows,
    }  # fmt: skip


def drawn(model: LatentModel, captions: Sequence[str], seed: int) -> Tensor:
    """Plain CFG of the base model, one sample a caption, [n, 3, H, W]."""
    pairs = pairs_of(len(captions), range(seed, seed + len(captions)), 1, model.latent_shape)
    return model.decode(run_plain(guided_model(model, captions, PLAN), pairs).ends)


def planted(true: Tensor, base: Tensor, fresh: Tensor, files: Tensor, train: Tensor) -> dict[str, Tensor]:
    """Samplers, by what they do: [n, 3, H, W] each."""
    n, generator = len(true), torch.Generator().manual_seed(0)
    order = torch.randperm(n, generator=generator)

    def mixed(share: float) -> Tensor:
        chosen = torch.zeros(n, dtype=torch.bool)
        chosen[order[: round(share * n)]] = True
        return torch.where(chosen[:, None, None, None], true, base)

    def blurred(sigma: float) -> Tensor:
        return edit.gaussian_blur(true, [6 * round(sigma) + 1] * 2, [sigma, sigma])

    noise = torch.randn(true.shape, generator=generator)
    edits: dict[str, Callable[[], Tensor]] = {
        "base model, the same seeds": lambda: base,
        "base model, other seeds": lambda: fresh,
        "other true images": lambda: true,
        "true, not through the VAE": lambda: files,
        "training images": lambda: train[torch.arange(n) % len(train)],
        "1/4 true, 3/4 base": lambda: mixed(0.25),
        "1/2 true, 1/2 base": lambda: mixed(0.5),
        "3/4 true, 1/4 base": lambda: mixed(0.75),
        "pixel average of base and true": lambda: (true + base) / 2,
        "blur sigma 1": lambda: blurred(1),
        "blur sigma 2": lambda: blurred(2),
        "blur sigma 5": lambda: blurred(5),
        "noise sd 40": lambda: (true + noise * 40 / 255).clamp(0, 1),
        "mean image": lambda: true.mean(0, keepdim=True).expand_as(true).contiguous(),
        "blank": lambda: torch.ones_like(true),
        "pure noise": lambda: torch.rand(true.shape, generator=generator),
        "16 patches shuffled": lambda: shuffled(true, generator),
        "one picture always": lambda: true[:1].repeat(n, 1, 1, 1),
        "four pictures": lambda: true[torch.arange(n) % 4],
        "dark x 0.3": lambda: true * 0.3,
        "saturation x 1.8": lambda: edit.adjust_saturation(true, 1.8),
        "grey": lambda: edit.rgb_to_grayscale(true, 3),
        "mirrored": lambda: true.flip(-1),
        "upside down": lambda: true.flip(-2),
        "wrong captions": lambda: true.roll(n // 2, 0),
        "eight pictures": lambda: true[torch.arange(n) % 8],
        "hue 40 degrees": lambda: edit.adjust_hue(true, 40 / 360),
        "one object pasted into every image": lambda: pasted(true),
    }
    return {label: make() for label, make in edits.items()}


def shuffled(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image's 16 patches in an order of its own."""
    side = images.shape[-1] // PATCHES
    patches = F.unfold(images, side, stride=side)
    orders = torch.rand(len(images), 1, PATCHES**2, generator=generator).argsort(-1)
    return F.fold(patches.gather(2, orders.expand_as(patches)), images.shape[2:], side, stride=side)


def pasted(images: Tensor) -> Tensor:
    """The middle quarter of the first image in the middle of all."""
    side, out = images.shape[-1], images.clone()
    middle = slice(side // 4, 3 * side // 4)
    out[:, :, middle, middle] = images[0, :, middle, middle]
    return out


def numbers(result: Taught) -> dict[str, Any]:
    """A result as JSON."""
    return {
        "value": result.value.model_dump() if result.value else None,
        "rulers": {name: estimate.model_dump() for name, estimate in result.rulers.items()},
        "groups": {name: {g: e.value for g, e in groups.items()} for name, groups in result.groups.items()},
        "copies": result.copies, "reason": result.reason,
    }  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """Markdown: for each task a row a sampler, against fresh truth, with the training images' value beside it."""
    lines = [
        "# `taught` of planted samplers",
        "",
        f"`python recipes/studies/planted_samplers.py {results['command']}`",
    ]
    for name, task in results["tasks"].items():
        about = f"{task['samples']} samples, {task['training images']} training images, seed {task['seed']}"
        lines += ["", f"## {name}: {about}, guidance {task['scale']:g}, {task['timesteps']} timesteps", ""]
        lines += [f"Base model: UNet weights sha256 {task['base_sha256']}.", ""]
        lines += ["| sampler | smaller of the two [95 %] | colour and texture | network | truth = training images |"]
        lines += ["|---|---|---|---|---|"]
        for label, row in task["rows"].items():
            first = [estimate["value"] for estimate in row["fresh"]["rulers"].values()]
            lines.append(
                f"| {label} | {shown(row['fresh'])} | {first[0]:.2f} | {first[1]:.2f} | {shown(row['training'])} |"
            )
    return "\n".join(lines) + "\n"


def shown(row: dict[str, Any]) -> str:
    value = row["value"]
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]" if value else "cannot be resolved"


if __name__ == "__main__":
    main()
