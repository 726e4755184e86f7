"""When to stop and which epoch to ship: twelve fine-tunes of TinyWorld, watched from the base model to copying.

Copy this file, do not import it.

    python recipes/studies/acting_study.py train all --out runs/acting     one JSON a run; skips those that are there
    python recipes/studies/acting_study.py ship all --out runs/acting      fresh seeds on every epoch worth shipping
    python recipes/studies/acting_study.py act all --out runs/acting    the options of `Interventions`, at equal updates
    python recipes/studies/acting_table.py --runs runs/acting --out recipes/results

TinyWorld learns a style that it does not draw, dusk, from 8, 32 or 128 captioned scenes, as a LoRA or in full, at two
learning rates, in batches of 4 without any protection: 160, 120 (LoRA: 60) and 8 passes over the images. It is measured
before training and after two to five epochs: the guard's report, and the loss on held-out scenes with fixed noise (what
"lowest validation loss" goes by). Fidelity is the share of the way from the base model's samples to dusk scenes, in
style: kernel distance of mean and spread of the colours of 4 x 4 thumbnails. Every run is one JSON under `--out`; what
is there already is not run again.

Expected: `results/acting_study.md`. Time: about 45 minutes on one idle core. Memory: 1.5 GB.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from basinguard.basin.critical_scale import critical_scale
from basinguard.basin.heldout_contrast import contrast_with_heldout
from basinguard.basin.trajectories import Pairs, run_branch, run_trunk
from basinguard.core import stats
from basinguard.core.estimate import Estimate
from basinguard.core.images import to_tensor
from basinguard.core.report import CriticalScales, Report
from basinguard.diffusion.sampling import draw_noise
from basinguard.guard.checkpoint_selection import choose_checkpoint
from basinguard.guard.guard import Guard
from basinguard.guard.plan import ProbePlan
from basinguard.guard.training_set import TrainingSet
from basinguard.pipelines.alignment import clip_for
from basinguard.pipelines.latent_model import LatentModel
from basinguard.similarity.kernel_distance import KernelDistance
from basinguard.similarity.structure import Structure
from basinguard.tinyworld.scenes import all_captions, draw_scene
from basinguard.training.breach_responder import AppliedInterventions
from basinguard.training.data import ImageFolder
from basinguard.training.finetune import FineTune
from basinguard.training.finetune_options import LoraOptions, MemoryOptions, OptimizerOptions, ReadingOptions
from basinguard.training.fit_cli import quiet_lightning
from basinguard.training.guard_options import BreachResponse, ControlGroup, Interventions
from basinguard.training.isolation import holding, trained_weights, untouched
from basinguard.training.lightning import MemorizationGuard
from basinguard.training.loss_filters import LargeGap

SCALE, TIMESTEPS, BATCH = 3.0, 10, 4
PLAN = {"seeds": 2, "timesteps": TIMESTEPS, "scale": SCALE, "alpha": 0.1}
PROBED = {  # passes over the images; fewer looks at LoRA, which memorizes later and costs as much to look at
    "full": {8: (20, 40, 80, 120, 160), 16: (20, 40, 60, 80, 100), 32: (15, 30, 60, 90, 120), 128: (4, 8)},
    "lora": {8: (20, 40, 80, 120, 160), 32: (15, 30, 60), 128: (4, 8)},
}
RATES = {"full": (8e-4, 1.6e-3), "lora": (2e-3, 5e-3)}
CONTROLS, FRESH, FRESH_SEED = 16, 64, 7_000_000
HELD_AGAINST = 4  # training images, and control images, whose critical scale is measured
COARSE = 64  # timesteps by which a critical scale is left open
VALIDATION = (50, 200, 350, 500, 650, 800)  # timesteps of the validation loss


@dataclass(frozen=True)
class Run:
    """One fine-tune."""

    size: int
    method: str
    rate: float

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.size}-{self.method}-{self.rate:g}"

    @property
    def settings(self) -> dict[str, Any]:
        """What `FineTune` is given."""
        return {
            "method": self.method,
            "optimizer": OptimizerOptions(learning_rate=self.rate),
            "memory": MemoryOptions(cache=True),
        }


MORE = [Run(16, "full", rate) for rate in RATES["full"]]  # for the forecast alone; nothing of them is shipped
RUNS = {r.name: r for r in [*(Run(n, m, rate) for n in (8, 32, 128) for m in RATES for rate in RATES[m]), *MORE]}


def dusk(scene: Image.Image) -> Image.Image:
    """A scene in less and warmer light."""
    pixels = np.asarray(scene, np.float32)
    grey = pixels.mean(-1, keepdims=True)
    warm = (0.6 * pixels + 0.4 * grey) * np.array([0.95, 0.75, 0.6], np.float32)
    return Image.fromarray(warm.clip(0, 255).round().astype(np.uint8))


def folders(data: Path, size: int) -> tuple[Path, Path]:
    """Training scenes, the first of one fixed order, and control images that no run trains on."""
    order = random.Random(0).sample(all_captions(), 128 + CONTROLS)
    parts = {f"train-{size}": range(size), "control": range(128, 128 + CONTROLS)}
    for name, numbers in parts.items():
        if (data / name / "metadata.jsonl").exists():
            continue
        (data / name).mkdir(parents=True, exist_ok=True)
        for n in numbers:
            dusk(draw_scene(order[n], seed=n)).save(data / name / f"{n:03d}.png")
        lines = [json.dumps({"file_name": f"{n:03d}.png", "text": str(order[n])}) for n in numbers]
        (data / name / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return data / f"train-{size}", data / "control"


def tones(images: torch.Tensor) -> torch.Tensor:
    """Mean and spread of each colour over a 4 x 4 thumbnail, as unit vectors [B, 6]."""
    small = F.interpolate(images, (4, 4), mode="area").flatten(2)
    return F.normalize(torch.cat([small.mean(2) - 0.5, small.std(2)], 1), dim=1)


def style() -> KernelDistance:
    """The distance to fresh dusk scenes; 0 for dusk scenes."""
    chosen = random.Random(2).choices(all_captions(), k=FRESH)
    scenes = torch.stack([to_tensor(dusk(draw_scene(c, FRESH_SEED + n))) for n, c in enumerate(chosen)])
    return KernelDistance.to_images(tones, scenes, name="tones of 4 x 4 thumbnails", what="fresh dusk scenes")


def guard_for(data: ImageFolder, controls: ImageFolder) -> Guard:
    """The guard of a run: 24 samples (16 of the smallest set), control images as the control group."""
    training = TrainingSet(
        data.all_pixels(), tuple(text for _, text in data.items),
        tuple(text for _, text in controls.items), controls.all_pixels(),
    )  # fmt: skip
    distance, clip = style(), clip_for("tinyworld")
    plan = ProbePlan(min(12, len(data.items)), **PLAN)
    return Guard(training, Structure(), plan, clip.score, score_fidelity=lambda images: -distance(images))


def evenly(count: int, most: int) -> list[int]:
    return np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()


@torch.no_grad()
def critical_scales(guard: Guard, model: LatentModel) -> tuple[list[float], list[float], int]:
    """log sigma_c of a few training and control images; `ProbePlan.critical_scales` takes every timestep and more."""
    training = guard.training
    assert training.heldout_images is not None
    own, held = (evenly(n, HELD_AGAINST) for n in (len(training.captions), len(training.heldout)))
    texts = [training.captions[i] for i in own] + [training.heldout[i] for i in held]
    images = torch.cat([training.images[own], training.heldout_images[held]])
    rows = torch.arange(len(texts))
    guided = guard.guided_model(model, texts)
    logs = critical_scale(guided, model.encode(images), rows, resolution=COARSE).with_caption.log().tolist()
    return logs[: len(own)], logs[len(own) :], guided.count.total


class Study(pl.Callback):
    """Measures the base model and then after the probed epochs; keeps the weights of each."""

    def __init__(self, guard: Guard, controls: ImageFolder, probed: tuple[int, ...], out: Path, base: Path) -> None:
        self.guard, self.controls, self.probed, self.out, self.base = guard, controls, probed, out, base
        self.scales: list[tuple[list[float], list[float]]] = []
        self.losses: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: FineTune) -> None:
        """The base model, once for each training set."""
        if self.base.exists():
            state = json.loads(self.base.read_text())
            self.guard.load_state_dict(state["guard"])
            self.scales, self.losses = [tuple(state["scales"])], [state["loss"]]
            return
        self.look(pl_module, -1, 0)
        state = {"guard": self.guard.state_dict(), "scales": self.scales[0], "loss": self.losses[0]}
        self.base.write_text(json.dumps(state))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: FineTune) -> None:
        """The model as this epoch left it."""
        epoch = trainer.current_epoch + 1
        if epoch in self.probed:
            self.look(pl_module, epoch - 1, trainer.global_step)
            weights = {name: value.contiguous() for name, value in trained_weights(pl_module).items()}
            save_file(weights, self.out / f"epoch-{epoch - 1}.safetensors")

    def look(self, pl_module: FineTune, epoch: int, train_step: int) -> None:
        """Report, critical scales and validation loss; nothing of the training changes."""
        with untouched(pl_module):
            model = LatentModel(pl_module.pipe)
            report = self.guard.measure(model, epoch=epoch, train_step=train_step)
            assert report is not None
            own, held, evals = critical_scales(self.guard, model)
            self.scales.append((own, held))
            self.losses.append(validation_loss(pl_module, self.controls))
        if epoch >= 0:
            arrays = (own, self.scales[0][0], held, self.scales[0][1])
            alarm = contrast_with_heldout(*(torch.tensor(values) for values in arrays))
            critical = CriticalScales(excess=alarm.excess, since_base=alarm.since_base)
            report = report.model_copy(update={"critical_scales": critical, "unet_evals": report.unet_evals + evals})
            self.guard.history[-1] = report
        print(line(report), f"validation {self.losses[-1]:.4f}", flush=True)


@torch.no_grad()
def validation_loss(pl_module: FineTune, controls: ImageFolder) -> float:
    """Denoising loss on the control images, the same noise at six timesteps each time."""
    pixels = controls.all_pixels() * 2 - 1
    latents = pl_module.pipe.vae.encode(pixels).latent_dist.mean * pl_module.pipe.vae.config.scaling_factor
    embeddings = pl_module.encode_captions([text for _, text in controls.items])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    times = (torch.full((len(latents),), t) for t in VALIDATION)
    return float(np.mean([float(pl_module.denoising_loss(latents, embeddings, noise, t)) for t in times]))


def line(report: Report) -> str:
    names = ("risk", "width", "gap_excess", "sigma_c_excess", "risk_uncond", "alignment_heldout", "fidelity")
    values = "  ".join(f"{name} {report.estimates.get(name)}" for name in names)
    cost = f"{report.unet_evals} evals  {report.seconds:.0f} s"
    return f"epoch {report.epoch:4d}  {values}  t {report.basin.transition}  {cost}"


def images_of(folder: Path) -> ImageFolder:
    data = ImageFolder(str(folder), resolution=64, batch_size=BATCH, reading=ReadingOptions(keep_in_memory=True))
    data.setup("fit")
    return data


def train(run: Run, out: Path) -> None:
    """One run, unless its JSON is there."""
    target = out / f"{run.name}.json"
    if target.exists():
        return
    started = time.process_time()
    own, held = folders(out / "data", run.size)
    data, controls = images_of(own), images_of(held)
    (out / run.name).mkdir(parents=True, exist_ok=True)
    study = Study(
        guard_for(data, controls), controls, PROBED[run.method][run.size], out / run.name, out / f"base-{run.size}.json"
    )
    fitted(run, data, study)
    target.write_text(
        json.dumps(
            {
                "run": vars(run) | {"name": run.name},
                "history": [json.loads(report.to_json()) for report in study.guard.history],
                "validation": study.losses,
                "scales": study.scales,
                "metric": study.guard.embedder.metric.model_dump(),
                "cpu_seconds": round(time.process_time() - started),
            },
            indent=1,
        )
    )


def fitted(run: Run, data: ImageFolder, *callbacks: pl.Callback) -> FineTune:
    """The fine-tune, with whatever watches it."""
    module = FineTune("tinyworld", **run.settings)
    pl.Trainer(
        max_epochs=PROBED[run.method][run.size][-1], accelerator="cpu", logger=False, callbacks=list(callbacks),
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
    ).fit(module, datamodule=data)  # fmt: skip
    return module


SHIP_SEED = 3_000_000  # of what is shipped; no probe uses these seeds
PASSES = 30  # "fixed updates per image": the last probed epoch that has shown every image at most so often
HABITS = ("fixed", "validation", "last")


def epochs_of(outcome: dict[str, Any]) -> dict[str, int | None]:
    """The epoch that each habit, and the guard, ships of one run; None where the guard ships none."""
    history = [Report.model_validate(row) for row in outcome["history"]]
    allowed, later = PLAN["alpha"], history[1:]
    losses = dict(zip((r.epoch for r in history), outcome["validation"], strict=True))
    ours = {how: choose_checkpoint(history, allowed, how) for how in ("plain", "guarded")}
    return {
        "fixed": max(r.epoch for r in later if r.epoch + 1 <= PASSES),
        "validation": min((r.epoch for r in later), key=lambda epoch: losses[epoch]),
        "last": later[-1].epoch,
        **{how: choice.epoch if choice else None for how, choice in ours.items()},
    }


@torch.no_grad()
def samples(guard: Guard, model: LatentModel, prompts: list[str], total: int, transition: float = 999.0) -> Any:
    """Images [total, 3, H, W] of prompts going round, each with a seed of its own, and whose each is."""
    prompt = torch.arange(total) % len(prompts)
    pairs = Pairs(prompt, SHIP_SEED + torch.arange(total), noise_of(total, model))
    probe = guard.guided_model(model, prompts)
    index = torch.zeros_like(prompt) + int((probe.timesteps > transition).sum())
    states = probe.path.begin(pairs.noise)
    if int(index[0]):
        states = run_trunk(probe, pairs, before=0.0).pair_states[index, torch.arange(total)]
    return model.decode(run_branch(probe, states, prompt, index)), prompt


def noise_of(total: int, model: LatentModel) -> torch.Tensor:
    return draw_noise(range(SHIP_SEED, SHIP_SEED + total), model.latent_shape)


def shipped(
    guard: Guard,
    model: LatentModel,
    distance: KernelDistance,
    transition: float = 999.0,
    pairs: int = 32,
    each: int = 1,
) -> dict[str, Any]:
    """What people get who sample this model so: risk of its captions, alignment and style of held-out ones."""
    captions, prompts = list(guard.training.captions), list(guard.training.heldout)
    own, which = samples(guard, model, captions, pairs, transition)
    held, whose = samples(guard, model, prompts, each * len(prompts), transition)
    assert guard.score_alignment is not None
    scores = guard.score_alignment(held, [prompts[k] for k in whose.tolist()])
    return {
        "risk": stats.rate(guard.is_copy(own), which).model_dump(),
        "alignment": stats.cluster_bootstrap(scores, whose).model_dump(),
        "distance": stats.cluster_bootstrap(distance(held), whose).model_dump(),
    }


def ship(run: Run, out: Path) -> None:
    """Fresh seeds on every epoch that somebody would ship."""
    target, source = out / f"ship-{run.name}.json", out / f"{run.name}.json"
    if target.exists() or not source.exists() or run in MORE:
        return
    outcome = json.loads(source.read_text())
    epochs = epochs_of(outcome)
    transitions = {row["epoch"]: row["transition"] for row in outcome["history"]}
    own, held = folders(out / "data", run.size)
    guard, distance = guard_for(images_of(own), images_of(held)), style()
    module = FineTune("tinyworld", **run.settings).eval()
    summary: dict[str, Any] = {"epochs": epochs, "plain": {}, "guarded": {}}
    for epoch in sorted({e for how, e in epochs.items() if e is not None and how != "guarded"}):
        with holding(module, load_file(out / run.name / f"epoch-{epoch}.safetensors")):
            summary["plain"][epoch] = shipped(guard, LatentModel(module.pipe), distance)
    epoch = epochs["guarded"]
    if epoch is not None and transitions[epoch] >= 999 and epoch in summary["plain"]:
        summary["guarded"][epoch] = summary["plain"][epoch]  # guidance may be on from the start: the same samples
    elif epoch is not None:
        with holding(module, load_file(out / run.name / f"epoch-{epoch}.safetensors")):
            summary["guarded"][epoch] = shipped(guard, LatentModel(module.pipe), distance, transitions[epoch])
    base = out / "ship-base.json"
    if not base.exists():
        untrained = FineTune("tinyworld", **run.settings).eval()
        base.write_text(json.dumps(shipped(guard, LatentModel(untrained.pipe), distance), indent=1))
    target.write_text(json.dumps(summary, indent=1))
    print(run.name, json.dumps(epochs), flush=True)


ACTED, ADAPTER, EPOCHS = Run(8, "full", 1.6e-3), Run(8, "lora", 5e-3), 120  # long enough to memorize without acting
VARIANTS: dict[str, tuple[Run, dict[str, Any], Interventions | None]] = {
    "full, nothing": (ACTED, {}, None),
    "rest found images": (ACTED, {}, Interventions(rest=0.0)),
    "draw among captions": (ACTED, {}, Interventions(vary_captions=True)),
    "half the learning rate": (ACTED, {}, Interventions(learning_rate=0.5)),
    "skip low losses": (ACTED, {}, Interventions(low_loss=2.0)),
    "skip large gaps": (ACTED, {}, Interventions(large_gap=1.0)),  # its threshold is measured, see `usual_gap`
    "lora rank 16, nothing": (ADAPTER, {}, None),
    "lora rank 4": (ADAPTER, {"lora": LoraOptions(rank=4)}, None),
    "lora dropout 0.1": (ADAPTER, {"lora": LoraOptions(dropout=0.1)}, None),
}


def several_captions(data: Path, size: int) -> Path:
    """The training scenes with four captions each: its own, without the detail, without the texture, without both."""
    source, target = folders(data, size)[0], data / f"train-{size}-captions"
    if not (target / "metadata.jsonl").exists():
        target.mkdir(parents=True, exist_ok=True)
        rows = [json.loads(line) for line in (source / "metadata.jsonl").read_text().splitlines()]
        for row in rows:
            (target / row["file_name"]).write_bytes((source / row["file_name"]).read_bytes())
            _, texture, kind, *detail = row["text"].split()
            texts = [row["text"], f"a {texture} {kind}", " ".join(["a", kind, *detail]), f"a {kind}"]
            row["text"] = list(dict.fromkeys(texts))
        (target / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return target


@torch.no_grad()
def usual_gap(data: ImageFolder) -> float:
    """The gap of the base model on the training images that 95 % of (image, timestep) pairs do not exceed."""
    module, recorded = FineTune("tinyworld", **ACTED.settings), []
    module.train()

    class Note(LargeGap):
        """Lets everything pass and writes the gaps down."""

        def __call__(self, errors: torch.Tensor, timesteps: torch.Tensor, gaps: Any) -> torch.Tensor:
            """All rows count."""
            recorded.append(gaps())
            return torch.ones(len(errors))

    module.filter = Note()
    latents = module.pipe.vae.encode(data.all_pixels() * 2 - 1).latent_dist.mean * module.pipe.vae.config.scaling_factor
    embeddings, dice = module.encode_captions([text for _, text in data.items]), torch.Generator().manual_seed(0)
    for _ in range(8):
        noise = torch.randn(latents.shape, generator=dice)
        module.denoising_loss(latents, embeddings, noise, torch.randint(0, 1000, (len(latents),), generator=dice))
    return float(torch.cat(recorded).quantile(0.95))


def act(name: str, out: Path) -> None:
    """One variant of the same fine-tune, at equal updates; its last epoch, on fresh seeds and all captions."""
    target = out / f"act-{name.replace(' ', '-').replace(',', '')}.json"
    if target.exists():
        return
    started = time.process_time()
    run, changes, acting = VARIANTS[name]
    own, held = folders(out / "data", run.size)
    folder = several_captions(out / "data", run.size) if acting and acting.vary_captions else own
    data, controls = images_of(folder), images_of(held)
    if acting and acting.large_gap:
        acting = Interventions(large_gap=usual_gap(data))
    watched = acting is not None and acting.filter is None
    weights = out / run.name / f"epoch-{EPOCHS - 1}.safetensors"
    module = FineTune("tinyworld", **{**run.settings, **changes})
    history: list[Report] = []
    did = ""
    if acting is None and not changes and weights.exists():
        for key, value in load_file(weights).items():
            module.trained()[key].data.copy_(value)
    else:
        callbacks: list[pl.Callback] = []
        if watched:
            control = ControlGroup([text for _, text in controls.items][:8])
            plan, respond = ProbePlan(run.size, **PLAN), BreachResponse("act", interventions=acting)
            guard = MemorizationGuard(plan, control, respond=respond, every_n_epochs=20, alignment="none")
            callbacks.append(guard)
        elif acting is not None:
            AppliedInterventions(acting, module, data)
        pl.Trainer(
            max_epochs=EPOCHS, accelerator="cpu", logger=False, callbacks=callbacks,
            enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False, default_root_dir=out,
        ).fit(module, datamodule=data)  # fmt: skip
        if watched:
            history, did = guard.history, str(guard.responder.applied)
    estimates = shipped(guard_for(images_of(own), controls), LatentModel(module.eval().pipe), style(), pairs=48, each=2)
    summary = {"name": name, "acting": vars(acting) if acting else None, "changes": changes, "did": did, **estimates}
    summary |= {"history": [json.loads(report.to_json()) for report in history]}
    target.write_text(json.dumps({**summary, "cpu_seconds": round(time.process_time() - started)}, indent=1))
    print(name, did, {k: str(Estimate(**v)) for k, v in estimates.items()}, flush=True)


def chosen(names: list[str], table: dict[str, Any]) -> Iterator[Any]:
    for name in table if names == ["all"] else names:
        if name not in table:
            raise SystemExit(f"{name!r} given; runs are {', '.join(table)} or all")
        yield table[name]


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("what", choices=["train", "ship", "act"])
    ask.add_argument("names", nargs="*", default=["all"])
    ask.add_argument("--out", type=Path, default=Path("runs/acting"))
    args = ask.parse_args()
    quiet_lightning()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.what == "act":
        for name in chosen(args.names, {name: name for name in VARIANTS}):
            act(name, args.out)
    for run in chosen(args.names, RUNS) if args.what in ("train", "ship") else ():
        {"train": train, "ship": ship}[args.what](run, args.out)


if __name__ == "__main__":
    main()
