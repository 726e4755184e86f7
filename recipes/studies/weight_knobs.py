"""Which change of the weights keeps most at which risk: shares, schedules, parts, filters; and rules beside them.

Copy this file, do not import it. It takes what `basinguard demo` and `shipped_products.py` leave behind: training
images, held-out images, and the change of the weights at the epochs that were kept (a full fine-tune's). Nothing is
trained. Every product is sampled with plain CFG, or by a rule, on training captions for the copies, and on held-out
captions for what was taught; the same captions and noise for all. A study that was stopped goes on.

    python recipes/studies/weight_knobs.py ink=runs/demo emoji=runs/emoji subject=runs/subject brick=runs/brick
    python recipes/studies/weight_knobs.py ink=runs/demo --copies 192 --only "epoch 100, share 1$" --results again

Controls: a share of the whole change at the norm that a filter leaves (every row names its norm), and random output
channels. Truth of the ruler are the training images, which is what a user has. A copy is structure-colour-v1 above the
99th percentile of the held-out images to their nearest training image, and not below its published threshold.

Expected: weight_knobs.json under recipes/results; `weight_knobs_table.py` draws the figure and the table.
Time: 15 minutes a run on one core. Memory: 2 GB.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from basinguard.calibration.rules import plain_cfg, rule
from basinguard.calibration.terms import Setting
from basinguard.calibration.trial import Trial, calibration_pairs
from basinguard.core import seeds as seed_table
from basinguard.core.stats import rate
from basinguard.diffusion.sampling import Denoiser
from basinguard.guard.measured_model import guided_model
from basinguard.guard.plan import ProbePlan
from basinguard.pipelines.latent_model import LatentModel
from basinguard.pipelines.loading import load_pipeline
from basinguard.similarity.copy_detector import CopyDetector
from basinguard.similarity.rulers import feature_sets
from basinguard.similarity.structure import Structure
from basinguard.similarity.taught import TaughtRuler
from basinguard.similarity.thresholds import calibrated
from basinguard.training.data import ImageFolder
from basinguard.training.epoch_archive import EpochArchive

PLAN = ProbePlan(scale=3.0, timesteps=16, chunk=64)
COPY_SAMPLES, HELDOUT_SAMPLES, PROMPTS = 48, 40, 20
SHARES = (0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
RULES = ((0.0, 874.0), (-1.0, 874.0), (-1.0, 811.0), (-1.0, 749.0), (-1.0, 624.0))
Change = dict[str, Tensor]
Filter = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True)
class Knob:
    """A change of the weights below a timestep and another above it, from the whole change of an epoch."""

    name: str
    low: Filter
    high: Filter | None = None  # None: the same at every timestep
    switch: float = 0.0
    scale: float = PLAN.scale
    rule: tuple[float, float] | None = None  # beside the weights: a guidance scale above a timestep


def share(value: float) -> Filter:
    """The same share of everything."""
    return lambda name, w: value * w


def only(inside: Callable[[str], bool]) -> Filter:
    """The whole change of some layers, none of the others."""
    return lambda name, w: w if inside(name) else torch.zeros_like(w)


def spectral(edit: Callable[[Tensor], Tensor], name: str, w: Tensor) -> Tensor:
    """The change with its singular values edited; vectors as they are."""
    if w.dim() < 2:
        return w
    u, s, v = torch.linalg.svd(w.flatten(1), full_matrices=False)
    return ((u * edit(s)) @ v).view_as(w)


def lowest(rank: int, s: Tensor) -> Tensor:
    """Without the largest singular values."""
    return torch.where(torch.arange(len(s)) < rank, 0.0, s)


def highest(rank: int, s: Tensor) -> Tensor:
    """The largest singular values alone."""
    return torch.where(torch.arange(len(s)) < rank, s, 0.0)


def channels(value: float, name: str, w: Tensor) -> Tensor:
    """The whole change of a random share of the output channels."""
    random = torch.Generator().manual_seed(len(name))
    mask = torch.rand(len(w), generator=random) < value
    return w * mask.view(-1, *[1] * (w.dim() - 1))


def knobs(middle: bool) -> Iterator[Knob]:
    """Shares, rules and the best part of the network at every epoch; the rest at the middle one."""
    for value in SHARES:
        yield Knob(f"share {value:g}", share(value))
    yield Knob("scale 1.5", share(1.0), scale=1.5)
    for before, transition in RULES:
        yield Knob(f"rule {before:g} above {transition:g}", share(1.0), rule=(before, transition))
    without_cross = only(lambda name: ".attn2." not in name)
    yield Knob("without cross-attention", without_cross)
    yield Knob("without cross-attention, rule -1 above 874", without_cross, rule=(-1.0, 874.0))
    if not middle:
        return
    for switch in (300.0, 700.0):
        for value in (0.0, 0.3, 0.6):
            yield Knob(f"{value:g} above {switch:g}", share(1.0), share(value), switch)
            yield Knob(f"{value:g} below {switch:g}", share(value), share(1.0), switch)
    for rank in (4, 16):
        yield Knob(f"rank {rank}", partial(spectral, partial(highest, rank)))
        yield Knob(f"without the first {rank}", partial(spectral, partial(lowest, rank)))
    yield Knob("singular values at most their median", partial(spectral, lambda s: s.clamp(max=float(s.median()))))
    yield Knob("random channels 0.6", partial(channels, 0.6))
    for part, inside in PARTS.items():
        yield Knob(f"{part} alone", only(inside))
        if part != "cross-attention":
            yield Knob(f"without {part}", only(lambda name, inside=inside: not inside(name)))


PARTS: Mapping[str, Callable[[str], bool]] = {
    "attention": lambda name: ".attentions." in name,
    "cross-attention": lambda name: ".attn2." in name,
    "residual blocks": lambda name: ".resnets." in name,
    "the way down": lambda name: ".down_blocks." in name or ".conv_in." in name,
    "the middle": lambda name: ".mid_block." in name,
    "the way up": lambda name: ".up_blocks." in name or ".conv_out." in name,
}


PLAIN = Knob("plain CFG", share(1.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--base", default="tinyworld")
    parser.add_argument("--copies", type=int, default=COPY_SAMPLES, help="samples for the risk")
    parser.add_argument("--only", default="", metavar="REGEX", help="of the points, those whose name matches")
    parser.add_argument("--results", type=Path, default=Path("recipes/results"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = args.results / "weight_knobs.json"
    for name, _, folder in (run.partition("=") for run in args.runs):
        study = Study(Path(folder), args.base, args.copies)
        for key, measure in study.points():
            done = json.loads(path.read_text()) if path.exists() else {}
            if key not in done.get(name, {}) and re.search(args.only, key):
                row = measure()
                print(name, key, row["risk"]["value"], row["taught"] and row["taught"]["value"], flush=True)
                done[name] = {**done.get(name, {}), key: row}
                path.write_text(json.dumps(done, indent=1))


class Study:
    """One run: what it was trained on, what its weights became, and the samples of the base model."""

    def __init__(self, run: Path, base: str, copies: int) -> None:
        self.pipe, self.copies = load_pipeline(base), copies
        self.model = LatentModel(self.pipe)
        train, heldout = (folder(run / "data" / name, self.model.resolution) for name in ("train", "heldout"))
        self.captions, self.prompts = train[1], tuple(dict.fromkeys(heldout[1]))[:PROMPTS]
        embedder = calibrated(Structure(), train[0], fresh=heldout[0], false_positives=0.01)
        self.detector = CopyDetector(train[0], self.captions, embedder)
        self.weights = {k: v.clone() for k, v in self.pipe.unet.state_dict().items()}
        self.changes = {e.epoch: e.path for e in EpochArchive(run / "export-epochs", most=100).stored()}
        images, texts = self.sampled(self.model, self.prompts, HELDOUT_SAMPLES, seed_table.TAUGHT_BASE, PLAIN)
        truth = self.model.decode(self.model.encode(train[0]))
        self.ruler = TaughtRuler(truth, images, texts, feature_sets())

    def points(self) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        """Every product by its name."""
        epochs = sorted(self.changes)
        for epoch in epochs:
            for knob in knobs(epoch == epochs[len(epochs) // 2]):
                yield f"epoch {epoch + 1}, {knob.name}", partial(self.measure, [epoch], knob)
        yield f"mean of {len(epochs)} epochs", partial(self.measure, epochs, Knob("", share(1.0)))

    def measure(self, epochs: list[int], knob: Knob) -> dict[str, Any]:
        """Copies on training captions, and what is left on held-out ones."""
        start, whole = time.process_time(), self.mean_change(epochs)
        low = {name: knob.low(name, w) for name, w in whole.items()}
        model = self.changed(low)
        if knob.high is not None:
            model = Switched(model, self.changed({n: knob.high(n, w) for n, w in whole.items()}), knob.switch)
        images, texts = self.sampled(model, self.captions, self.copies, seed_table.CALIBRATION, knob)
        risk = rate(self.detector.is_copy(images).numpy(), [self.captions.index(t) for t in texts])
        images, texts = self.sampled(model, self.prompts, HELDOUT_SAMPLES, seed_table.TAUGHT_HELDOUT, knob)
        taught = self.ruler.measure(images, texts, self.detector.is_copy(images))
        norm = norm_of(low) / norm_of(whole)
        return {
            "risk": risk.model_dump(), "taught": taught.value.model_dump() if taught.value else None,
            "norm": round(norm, 3), "seconds": round(time.process_time() - start, 1),
        }  # fmt: skip

    def mean_change(self, epochs: list[int]) -> Change:
        """The change of the weights, the mean of some epochs."""
        changes = [load_file(self.changes[epoch]) for epoch in epochs]
        return {name: sum(c[name].float() for c in changes) / len(changes) for name in changes[0]}

    def changed(self, change: Change) -> LatentModel:
        """The base model with a change of its weights."""
        pipe = copy.copy(self.pipe)
        pipe.unet = copy.deepcopy(self.pipe.unet)
        weights = {name: w + change[f"unet.{name}"] for name, w in self.weights.items()}
        pipe.unet.load_state_dict(weights)
        return LatentModel(pipe)

    def sampled(
        self, model: Any, prompts: tuple[str, ...], count: int, first_seed: int, knob: Knob
    ) -> tuple[Tensor, list[str]]:
        """Pictures [n, 3, H, W], and the prompt of each; every prompt equally often."""
        pairs = calibration_pairs(len(prompts), count, self.model.latent_shape, first_seed)
        noise, scale = self.model.schedule, knob.scale
        ruled = knob.rule and rule(Setting(knob.rule[0]), knob.rule[1], noise, scale)
        guidance = ruled or plain_cfg(scale, noise)
        latents, _ = Trial(guided_model(model, prompts, PLAN), pairs).sample(guidance)
        return self.model.decode(latents), [prompts[k] for k in pairs.prompt.tolist()]


class Switched:
    """One model above a timestep, another below it (`diffusion.model.Model`)."""

    def __init__(self, low: LatentModel, high: LatentModel, switch: float) -> None:
        self.low, self.high, self.switch = low, high, switch
        self.schedule, self.latent_shape = low.schedule, low.latent_shape

    def denoiser(self, prompts: tuple[str, ...]) -> Denoiser:
        """Of either, by the timestep, which all rows share."""
        low, high = self.low.denoiser(prompts), self.high.denoiser(prompts)
        return lambda x, timestep, prompt: (high if float(timestep[0]) > self.switch else low)(x, timestep, prompt)


def folder(path: Path, resolution: int) -> tuple[Tensor, tuple[str, ...]]:
    """Images [N, 3, H, W] and captions."""
    images = ImageFolder(str(path), resolution=resolution)
    images.setup("open")
    return images.all_pixels(), tuple(caption for _, caption in images.items)


def norm_of(change: Change) -> float:
    """Of all numbers together."""
    return float(sum(w.square().sum() for w in change.values()) ** 0.5)


if __name__ == "__main__":
    with torch.no_grad():
        main()
