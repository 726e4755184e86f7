"""Everything at full size without the weights: a Stable Diffusion 2.1 of random numbers is trained, guarded, shipped.

    python recipes/studies/fullsize_proof.py --out runs/fullsize
    python recipes/studies/fullsize_proof.py --size small --out runs/fullsize_small

UNet (866 M parameters), text encoder (340 M) and VAE (84 M) are built from the true configurations
(`plugin/basinguard/pipelines/assets/sd21`) in bfloat16. Then, at 256 px on a CPU, each group of stages in a process of
its own: two LoRA updates, a guard probe, calibration on two captions and export; one update of full fine-tuning; the
export loaded in a fresh process and sampled for five steps under its own rule. Time and peak resident memory of each
stage go to `fullsize_proof.json`, beside what `--dry-run` would have told. Random weights copy nothing: what is proven
is that it runs, fits and can be reloaded, not that it protects.

Time: 15 to 40 minutes on one core. Memory: about 10 GB, disk 8 GB. `--size small`: half a minute, 1 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from lightning.pytorch import Trainer
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

import basinguard
from basinguard.calibration.terms import CalibrationTerms
from basinguard.guard.guard import Guard
from basinguard.guard.plan import ProbePlan
from basinguard.guard.training_set import TrainingSet
from basinguard.pipelines.architecture import sd21_config, sd21_tokenizer
from basinguard.pipelines.latent_model import LatentModel
from basinguard.pipelines.protect import last_trace
from basinguard.similarity.structure import Structure
from basinguard.tinyworld.scenes import all_captions, draw_scene
from basinguard.training.data import ImageFolder
from basinguard.training.epoch_series import EpochSeries
from basinguard.training.finetune import FineTune
from basinguard.training.finetune_options import LoraOptions, MemoryOptions
from basinguard.training.fit_cli import quiet_lightning
from basinguard.training.guarded_export import export_calibrated
from basinguard.training.memory_footprint import RUNTIME, ProbeLoad, Workload, footprint_of

PX, TIMESTEPS, SCALE = 256, 5, 7.5
SAVING = MemoryOptions(weights="bfloat16", gradient_checkpointing=True)
SMALL = {
    "unet": {"block_out_channels": [32, 32, 64, 64], "attention_head_dim": [1, 1, 2, 2], "cross_attention_dim": 64},
    "text_encoder": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "vae": {"block_out_channels": [32, 32, 32, 32]},
}
STAGES = ("build", "lora", "full", "reload")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/fullsize"))
    parser.add_argument("--size", choices=("sd21", "small"), default="sd21")
    parser.add_argument("--stage", choices=STAGES, help="run one group of stages in this process (used by the recipe)")
    asked = parser.parse_args()
    if asked.stage:
        print(json.dumps({"build": build, "lora": lora, "full": full, "reload": reload}[asked.stage](asked)))
        return
    asked.out.mkdir(parents=True, exist_ok=True)
    stages = {}
    for group in STAGES:
        command = [sys.executable, __file__, "--out", str(asked.out), "--size", asked.size, "--stage", group]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        stages |= json.loads(done.stdout.splitlines()[-1])
        print(
            *(f"{name}: {value}" for name, value in json.loads(done.stdout.splitlines()[-1]).items()),
            sep="\n",
            flush=True,
        )
        save(asked, stages)


def save(asked: argparse.Namespace, stages: dict) -> None:
    result = {"size": asked.size, "resolution": PX, "stages": stages, **surroundings(asked)}
    (asked.out / "fullsize_proof.json").write_text(json.dumps(result, indent=2) + "\n")


def surroundings(asked: argparse.Namespace) -> dict:
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "command": f"python recipes/studies/fullsize_proof.py --size {asked.size}",
        "commit": revision,
        "date": time.strftime("%Y-%m-%d"),
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }


@contextmanager
def measured(stages: dict, name: str) -> Iterator[dict]:
    """Seconds and peak resident memory of what runs inside; the kernel's high-water mark is reset before."""
    Path("/proc/self/clear_refs").write_text("5")
    start, note = time.monotonic(), {}
    yield note
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    peak = int(status["VmHWM"].split()[0]) * 1024 / 1e9
    stages[name] = {"seconds": round(time.monotonic() - start, 1), "peak_gb": round(peak, 2), **note}


def config(name: str, size: str) -> dict:
    return sd21_config(f"{name}/config.json") | (SMALL[name] if size == "small" else {})


def build(asked: argparse.Namespace) -> dict:
    """A pipeline of random numbers, saved in bfloat16."""
    stages: dict = {}
    with measured(stages, "build and save") as note:
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_config(config("unet", asked.size)).to(torch.bfloat16)
        vae = AutoencoderKL.from_config(config("vae", asked.size)).to(torch.bfloat16)
        text = config("text_encoder", asked.size) | {"architectures": None}
        encoder = CLIPTextModel(CLIPTextConfig(**text)).to(torch.bfloat16)
        note["parameters"] = [sum(p.numel() for p in part.parameters()) for part in (unet, encoder, vae)]
        pipe = StableDiffusionPipeline(
            unet=unet, vae=vae, text_encoder=encoder, tokenizer=sd21_tokenizer(), safety_checker=None,
            scheduler=DDIMScheduler.from_config(sd21_config("scheduler/scheduler_config.json")), feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
        pipe.save_pretrained(asked.out / "base")
    write_images(asked.out / "images")
    return stages


def write_images(folder: Path) -> None:
    """Two captioned pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, caption in enumerate(all_captions()[:2]):
        draw_scene(caption, seed=number).resize((PX, PX), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": str(caption)})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def fitted(
    asked: argparse.Namespace, updates: int, *, base: str = "base", **options: object
) -> tuple[FineTune, ImageFolder]:
    """Trains as `basinguard fit` does, for a few updates of one image."""
    model = FineTune(str(asked.out / base), memory=SAVING, **options)
    images = ImageFolder(str(asked.out / "images"), resolution=PX, batch_size=1)
    trainer = Trainer(
        accelerator="cpu", max_steps=updates, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, images)
    loss = float(trainer.callback_metrics["train/loss"])
    if not 0 < loss < 100:
        raise RuntimeError(f"the loss is {loss}")
    return model, images


def computed_gb(asked: argparse.Namespace, **options: object) -> dict[str, float]:
    """What `--dry-run` would have said of an update, a probe and the export, in GB."""
    workload = Workload(
        memory=SAVING, precision="bfloat16", resolution=PX, batch_size=1, gpu=False,
        probe=ProbeLoad(rows=2, export=True), **options,
    )  # fmt: skip
    needed = footprint_of(asked.out / "base", workload)
    held = RUNTIME + needed.weights + needed.optimizer
    parts = {"update": max(needed.update, needed.encode), "probe": needed.probe, "export": needed.probe + needed.copied}
    return {name: round((held + part) / 1e9, 2) for name, part in parts.items()}


def lora(asked: argparse.Namespace) -> dict:
    """Two LoRA updates, a minimal probe, a calibration on two captions, and the export."""
    stages: dict = {}
    estimate = computed_gb(asked)
    with measured(stages, "two LoRA updates") as note:
        module, images = fitted(asked, updates=2, lora=LoraOptions(rank=16))
        changed = max(float(p.detach().abs().max()) for n, p in module.trained().items() if "lora_B" in n)
        note |= {"estimate_gb": estimate["update"], "trained": sum(p.numel() for p in module.trained().values())}
        note["largest_change"] = changed
    training = TrainingSet(images.all_pixels(), tuple(caption for _, caption in images.items))
    guard = Guard(training, Structure(), ProbePlan(captions=2, seeds=1, timesteps=TIMESTEPS, scale=SCALE, chunk=2))
    module.eval()
    with measured(stages, "guard probe") as note:
        report = guard.measure(LatentModel(module.pipe), epoch=0, train_step=2)
        note |= {"estimate_gb": estimate["probe"], "unet_evals": report.unet_evals, "risk": report.samples.risk.value}
    with measured(stages, "calibrate on two captions and export") as note:
        terms = CalibrationTerms(
            alpha=0.5, delta=0.5, pairs=2, before=(0.0,), transitions=(500,), strengths=(1.0,), search_pairs=2
        )
        with EpochSeries(module, {0: lambda: None}) as series:
            certificate = export_calibrated(guard, series, terms, asked.out / "export")
        product = str(certificate.shipped.product)
        note |= {"estimate_gb": estimate["export"], "candidates": len(certificate.tried), "product": product}
    return stages


def full(asked: argparse.Namespace) -> dict:
    """One update of every weight of the UNet, in bfloat16."""
    stages: dict = {}
    estimate = computed_gb(asked, method="full")
    with measured(stages, "one full fine-tuning update") as note:
        module, _ = fitted(asked, updates=1, method="full")
        note |= {"estimate_gb": estimate["update"], "trained": sum(p.numel() for p in module.trained().values())}
    return stages


def reload(asked: argparse.Namespace) -> dict:
    """The export in a process that shares nothing but files, sampled as a user would."""
    stages: dict = {}
    with measured(stages, "reload"):
        pipe = basinguard.load(asked.out / "export", dtype=torch.bfloat16, local_files_only=True)
    with measured(stages, "guarded sampling, 5 steps") as note:
        words = "a photograph of an astronaut riding a horse"
        made = pipe(
            words, num_inference_steps=TIMESTEPS, guidance_scale=SCALE, generator=torch.Generator().manual_seed(0)
        )
        note["scales"] = [float(entry.scale[0]) for entry in last_trace(pipe)]
        note["unet_evals"] = sum(entry.unet_evals for entry in last_trace(pipe))
        note["image"] = list(made.images[0].size)
        made.images[0].save(asked.out / "sample.png")
    return stages


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)
    quiet_lightning()
    main()
