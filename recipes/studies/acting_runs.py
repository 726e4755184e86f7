"""The runs of `acting_study.py`: twelve fine-tunes on dusk scenes, and the guard and the style that measure them."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from basinguard.core.images import to_tensor
from basinguard.guard.guard import Guard
from basinguard.guard.plan import ProbePlan
from basinguard.guard.training_set import TrainingSet
from basinguard.pipelines.alignment import clip_for
from basinguard.similarity.kernel_distance import KernelDistance
from basinguard.similarity.structure import Structure
from basinguard.tinyworld.scenes import all_captions, draw_scene
from basinguard.training.data import ImageFolder
from basinguard.training.finetune_options import MemoryOptions, OptimizerOptions, ReadingOptions

SCALE, TIMESTEPS, BATCH = 3.0, 10, 4
PLAN = {"seeds": 2, "timesteps": TIMESTEPS, "scale": SCALE, "alpha": 0.1}
PROBED = {  # passes over the images; fewer looks at LoRA, which memorizes later and costs as much to look at
    "full": {8: (20, 40, 80, 120, 160), 16: (20, 40, 60, 80, 100), 32: (15, 30, 60, 90, 120), 128: (4, 8)},
    "lora": {8: (20, 40, 80, 120, 160), 32: (15, 30, 60), 128: (4, 8)},
}
RATES = {"full": (8e-4, 1.6e-3), "lora": (2e-3, 5e-3)}
CONTROLS, FRESH, FRESH_SEED = 16, 64, 7_000_000


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
    clip = clip_for("tinyworld")
    plan = ProbePlan(min(12, len(data.items)), **PLAN)
    return Guard(training, Structure(), plan, clip.score)


def images_of(folder: Path) -> ImageFolder:
    data = ImageFolder(str(folder), resolution=64, batch_size=BATCH, reading=ReadingOptions(keep_in_memory=True))
    data.setup("fit")
    return data
