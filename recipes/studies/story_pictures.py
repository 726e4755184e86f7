"""The pictures of README and manual, from a run of `basinguard demo` and its published numbers.

    python recipes/studies/story_pictures.py runs/demo                     # about a minute on one core
    python recipes/studies/story_pictures.py runs/demo --last runs/last    # also saves the last epoch as a model

Writes to docs/pictures: `story.png` (training images, the last epoch under plain CFG, what ships; then prompts that
were not trained on), `risk_and_taught.png`, `basin.png`, and a drawing of A1111's fields; `comfyui.png` there is
ComfyUI's own window and not made here. Nothing is chosen: the captions are the first ones of the folders, the seeds
count on from 0. Frames mark copies by the run's own detector.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import basinguard
from basinguard.core.images import load_rgb, to_tensor
from basinguard.core.record import Guidance, Record, read_record
from basinguard.core.report import Report
from basinguard.diffusion.toy import stable_diffusion_schedule
from basinguard.exports.a1111 import a1111_prompt
from basinguard.guard.status import run_status
from basinguard.pipelines.loading import load_pipeline
from basinguard.plots.basin import curve_figure
from basinguard.plots.contact_sheet import contact_sheet
from basinguard.plots.run import learning_figure
from basinguard.plots.style import BLACK, BLUE
from basinguard.similarity.copy_detector import CopyDetector
from basinguard.similarity.copy_detector_settings import CopyDetectorSettings
from basinguard.similarity.detector_loading import load_detector
from basinguard.training.epoch_archive import EpochArchive

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "pictures"
ROWS, SCALE, TIMESTEPS = 5, 3.0, 16
RULE, STEPS = 590.0, 20  # in the drawing of A1111's fields


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--last", type=Path, help="folder to save the last epoch to, as a model")
    args = parser.parse_args()
    PICTURES.mkdir(parents=True, exist_ok=True)
    numbers = json.loads((ROOT / "recipes" / "results" / "demo.json").read_text("utf-8"))
    draw_curves([Report.from_json(json.dumps(row)) for row in numbers["history"]])
    draw_story(args.run, numbers["metric"]["threshold"], args.last)
    draw_a1111(read_record(args.run / "record.json"))


def draw_a1111(record: Record) -> None:
    """What a rule looks like in A1111, in the words that the exports write for an example of one."""
    rule = Guidance(transition=RULE, sigma=noise_level(RULE), before=0.0, after=7.5)
    typed = a1111_prompt(record.model_copy(update={"guidance": rule}), "a red circle", steps=STEPS)
    fields = [
        f"Prompt\n{typed}",
        "Negative prompt\n(empty)",
        "Schedule type\nSimple",
        f"Steps\n{STEPS}",
        "CFG scale\n7.5",
    ]
    draw_boxes(fields, f"scale 0 above timestep {RULE:g}, then 7.5: the prompt comes late").savefig(
        PICTURES / "a1111.png", dpi=130
    )


def noise_level(timestep: float) -> float:
    """Of Stable Diffusion's own schedule."""
    return float(stable_diffusion_schedule().sigma(timestep))


def draw_boxes(texts: Sequence[str], title: str) -> Figure:
    figure = Figure(figsize=(9, 1.9), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, len(texts)), ylim=(0, 1))
    axes.set_axis_off()
    axes.set_title(title, loc="left", fontsize=10)
    for k, text in enumerate(texts):
        axes.text(k + 0.5, 0.5, text, ha="center", va="center", fontsize=8.5, color=BLACK,
                  bbox={"boxstyle": "round,pad=0.6", "facecolor": "white", "edgecolor": BLUE})  # fmt: skip
    return figure


def draw_curves(history: Sequence[Report]) -> None:
    learning_figure(history, run_status(history, alpha=0.1)).savefig(PICTURES / "risk_and_taught.png", dpi=130)
    curve_figure(history).savefig(PICTURES / "basin.png", dpi=130)


def draw_story(run: Path, threshold: float, save_to: Path | None) -> None:
    rows = [json.loads(line) for line in (run / "data" / "train" / "metadata.jsonl").read_text("utf-8").splitlines()]
    held = [json.loads(line) for line in (run / "data" / "heldout" / "metadata.jsonl").read_text("utf-8").splitlines()]
    images = torch.stack([to_tensor(load_rgb(run / "data" / "train" / row["file_name"])) for row in rows])
    captions, prompts = [row["text"] for row in rows], [row["text"] for row in held[:ROWS]]
    detector = CopyDetector(images, captions, load_detector(CopyDetectorSettings(threshold=threshold)))
    base, last, ships = load_pipeline("tinyworld"), last_epoch(run), basinguard.load(str(run / "export"))
    if save_to is not None:
        last.save_pretrained(save_to)
    trained = sheet(detector, {"plain CFG, last epoch": last, "what ships": ships}, captions[:ROWS], images[:ROWS])
    others = sheet(detector, {"base model": base, "plain CFG, last epoch": last, "what ships": ships}, prompts)
    beside([trained, others]).save(PICTURES / "story.png", optimize=True)


def last_epoch(run: Path) -> Any:
    """The newest epoch that the run kept."""
    pipe = load_pipeline("tinyworld")
    archive = EpochArchive(run / "export-epochs", most=100)
    before = {name: weight.detach().clone() for name, weight in pipe.unet.named_parameters()}
    stored = archive.weights(archive.stored()[-1].epoch, {f"unet.{name}": weight for name, weight in before.items()})
    pipe.unet.load_state_dict({name.removeprefix("unet."): weight for name, weight in stored.items()}, strict=False)
    return pipe


def sheet(detector: CopyDetector, pipes: dict[str, Any], captions: Sequence[str], truth: Tensor | None = None) -> Any:
    columns = {title: drawn(pipe, captions) for title, pipe in pipes.items()}
    marks = {title: detector.is_copy(samples).tolist() for title, samples in columns.items()}
    first = {} if truth is None else {"training image": truth}
    return contact_sheet(first | columns, captions, marks)


def drawn(pipe: Any, captions: Sequence[str]) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    samples = [
        pipe(caption, guidance_scale=SCALE, num_inference_steps=TIMESTEPS, output_type="pt",
             generator=torch.Generator().manual_seed(seed)).images[0]
        for seed, caption in enumerate(captions)
    ]  # fmt: skip
    return torch.stack(samples)


def beside(sheets: Sequence[Image.Image], space: int = 36) -> Image.Image:
    whole = Image.new("RGB", (sum(s.width for s in sheets) + space * (len(sheets) - 1), sheets[0].height), "white")
    left = 0
    for each in sheets:
        whole.paste(each, (left, 0))
        left += each.width + space
    return whole


if __name__ == "__main__":
    main()
