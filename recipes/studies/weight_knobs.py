"""Which change of the weights keeps most at which risk: shares, schedules, parts, filters; and rules beside them.

Copy this file, do not import it. It takes what `basinguard demo` and `shipped_products.py` leave behind: training
images, held-out images, and the change of the weights at the epochs that were kept (a full fine-tune's). Nothing is
trained. Every product is sampled with plain CFG, or by a rule, on training captions for the copies, and on held-out
captions for what was taught; the same captions and noise for all. Of the last epoch parts are left out in turn, to see
which hold the copies. The knobs are those of `weight_knobs_edits.py`. A study that was stopped goes on.

    python recipes/studies/weight_knobs.py ink=runs/demo emoji=runs/emoji subject=runs/subject brick=runs/brick
    python recipes/studies/weight_knobs.py emoji=runs/emoji subject=runs/subject --only "left out" --copies 96

Controls: a share of the whole change at the norm that a filter leaves (every row names its norm), and random output
channels. Truth of the ruler are the training images, which is what a user has. A copy is structure-colour-v1 above the
99th percentile of the held-out images to their nearest training image, and not below its published threshold.

Expected: weight_knobs.json under recipes/results; `weight_knobs_table.py` draws the figures and the table, and
`safe_limits.py` measures the best rows again on fresh noise. Time: 40 minutes a run on one core. Memory: 2 GB.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from weight_knobs_edits import SCALE, Edit, Knob, left_out, products, share

from basinguard.calibration.rules import plain_cfg, rule
from basinguard.calibration.terms import Setting
from basinguard.calibration.trial import Trial, calibration_pairs
from basinguard.core import seeds as seed_table
from basinguard.core.estimate import Estimate
from basinguard.core.stats import rate
from basinguard.diffusion.sampling import Denoiser
from basinguard.guard.measured_model import guided_model
from basinguard.guard.plan import ProbePlan
from basinguard.pipelines.latent_model import LatentModel
from basinguard.pipelines.loading import load_pipeline
from basinguard.similarity.copy_detector import CopyDetector
from basinguard.similarity.rulers import feature_sets
from basinguard.similarity.structure import Structure
from basinguard.similarity.taught import Taught, TaughtRuler
from basinguard.similarity.thresholds import calibrated
from basinguard.training.data import ImageFolder
from basinguard.training.epoch_archive import EpochArchive

PLAN = ProbePlan(scale=SCALE, timesteps=16, chunk=64)
COPY_SAMPLES, HELDOUT_SAMPLES, PROMPTS = 48, 40, 20
PLAIN = Knob("plain CFG", share(1.0))
Change = dict[str, Tensor]


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
        for key, epochs, knob in study.points():
            done = json.loads(path.read_text()) if path.exists() else {}
            if key not in done.get(name, {}) and re.search(args.only, key):
                row = study.row(epochs, knob)
                print(name, key, row["risk"]["value"], row["taught"] and row["taught"]["value"], flush=True)
                done[name] = {**done.get(name, {}), key: row}
                path.write_text(json.dumps(done, indent=1))


class Study:
    """One run: what it was trained on, what its weights became, and the samples of the base model.

    Args:
        run: its folder.
        base: the model that it began with.
        copies, heldout: samples for the risk, and for what was taught.
        prompts: held-out captions.
        seeds: added to every seed: another number gives fresh noise.
    """

    def __init__(
        self, run: Path, base: str, copies: int, heldout: int = HELDOUT_SAMPLES, prompts: int = PROMPTS, seeds: int = 0
    ) -> None:
        self.pipe, self.copies, self.heldout, self.seeds = load_pipeline(base), copies, heldout, seeds
        self.model = LatentModel(self.pipe)
        train, fresh = (opened(run / "data" / name, self.model.resolution) for name in ("train", "heldout"))
        self.captions, self.prompts = train[1], tuple(dict.fromkeys(fresh[1]))[:prompts]
        embedder = calibrated(Structure(), train[0], fresh=fresh[0], false_positives=0.01)
        self.detector = CopyDetector(train[0], self.captions, embedder)
        self.weights = {f"unet.{k}": v.clone() for k, v in self.pipe.unet.state_dict().items()}
        self.changes = {e.epoch: e.path for e in EpochArchive(run / "export-epochs", most=100).stored()}
        images, texts = self.sampled(self.model, self.prompts, heldout, seed_table.TAUGHT_BASE, PLAIN)
        truth = self.model.decode(self.model.encode(train[0]))
        self.ruler = TaughtRuler(truth, images, texts, feature_sets())

    def points(self) -> Iterator[tuple[str, list[int], Knob]]:
        """Every product: its name, the epochs whose mean it is, and what is done to their change."""
        epochs = sorted(self.changes)
        for epoch in epochs:
            for knob in products(middle=epoch == epochs[len(epochs) // 2]):
                yield f"epoch {epoch + 1}, {knob.name}", [epoch], knob
        yield f"mean of {len(epochs)} epochs", epochs, PLAIN
        for knob in left_out():
            yield f"epoch {epochs[-1] + 1}, {knob.name}", epochs[-1:], knob

    def row(self, epochs: Sequence[int], knob: Knob) -> dict[str, Any]:
        """What is written of a product."""
        start, change = time.process_time(), self.mean_change(epochs)
        risk, taught = self.measure(change, knob)
        norm = norm_of(self.edited(change, knob.edit)) / norm_of(change)
        return {
            "risk": risk.model_dump(), "taught": taught.value.model_dump() if taught.value else None,
            "norm": round(norm, 3), "seconds": round(time.process_time() - start, 1),
        }  # fmt: skip

    def measure(self, change: Change, knob: Knob) -> tuple[Estimate, Taught]:
        """Copies on training captions, and what is left on held-out ones."""
        model = self.changed(self.edited(change, knob.edit))
        if knob.within is not None:
            model = Banded(model, self.changed(self.edited(change, knob.within)), knob.band)
        images, texts = self.sampled(model, self.captions, self.copies, seed_table.CALIBRATION, knob)
        risk = rate(self.detector.is_copy(images).numpy(), [self.captions.index(t) for t in texts])
        images, texts = self.sampled(model, self.prompts, self.heldout, seed_table.TAUGHT_HELDOUT, knob)
        return risk, self.ruler.measure(images, texts, self.detector.is_copy(images))

    def mean_change(self, epochs: Sequence[int]) -> Change:
        """The change of the weights, the mean of some epochs."""
        changes = [load_file(self.changes[epoch]) for epoch in epochs]
        return {name: sum(c[name].float() for c in changes) / len(changes) for name in changes[0]}

    def edited(self, change: Change, edit: Edit) -> Change:
        """What an edit leaves of it."""
        return {name: edit(name, w, self.weights[name]) for name, w in change.items()}

    def changed(self, change: Change) -> Any:
        """The base model with a change of its weights."""
        pipe = copy.copy(self.pipe)
        pipe.unet = copy.deepcopy(self.pipe.unet)
        pipe.unet.load_state_dict({n.removeprefix("unet."): w + change[n] for n, w in self.weights.items()})
        return LatentModel(pipe)

    def sampled(
        self, model: Any, prompts: tuple[str, ...], count: int, first_seed: int, knob: Knob
    ) -> tuple[Tensor, list[str]]:
        """Pictures [n, 3, H, W], and the prompt of each; every prompt equally often."""
        pairs = calibration_pairs(len(prompts), count, self.model.latent_shape, first_seed + self.seeds)
        noise, scale = self.model.schedule, knob.scale
        ruled = knob.rule and rule(Setting(knob.rule[0]), knob.rule[1], noise, scale)
        guidance = ruled or plain_cfg(scale, noise)
        latents, _ = Trial(guided_model(model, prompts, PLAN), pairs).sample(guidance)
        return self.model.decode(latents), [prompts[k] for k in pairs.prompt.tolist()]


class Banded:
    """One model within a band of timesteps, another outside of it (`diffusion.model.Model`)."""

    def __init__(self, outside: LatentModel, within: LatentModel, band: tuple[float, float]) -> None:
        self.outside, self.within, self.band = outside, within, band
        self.schedule, self.latent_shape = outside.schedule, outside.latent_shape

    def denoiser(self, prompts: tuple[str, ...]) -> Denoiser:
        """Of either, by the timestep, which all rows share."""
        (low, high), outside, within = self.band, self.outside.denoiser(prompts), self.within.denoiser(prompts)
        return lambda x, timestep, prompt: (within if low < float(timestep[0]) <= high else outside)(
            x, timestep, prompt
        )


def opened(path: Path, resolution: int) -> tuple[Tensor, tuple[str, ...]]:
    """Images [N, 3, H, W] and captions."""
    images = ImageFolder(str(path), resolution=resolution)
    images.setup("open")
    return images.all_pixels(), tuple(caption for _, caption in images.items)


def norm_of(change: Mapping[str, Tensor]) -> float:
    """Of all numbers together."""
    return float(sum(w.square().sum() for w in change.values()) ** 0.5)


if __name__ == "__main__":
    with torch.no_grad():
        main()
