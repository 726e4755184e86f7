"""A LoRA whose strength depends on the timestep: what ComfyUI draws by the exported workflow, and what we draw.

    OMP_NUM_THREADS=1 PYTHONPATH=plugin COMFY_PYTHON recipes/studies/comfyui_strength.py COMFYUI --out runs/strength

COMFYUI, COMFY_PYTHON and the random models are those of `comfyui_client.py` (`--model xl`: Stable Diffusion XL's); on
one lies a LoRA of random weights on every attention layer of UNet and first text encoder. ComfyUI loads the model's
single file and the kohya file of the LoRA, and runs the workflow of core nodes (Create Hook LoRA, Create Hook Keyframe,
Set Hook Keyframes, Set CLIP Hooks) without its window. We draw with diffusers and `guidance.strength`. Differences are
the largest ones of the final latents; beside them, how far the whole LoRA is away, and ComfyUI from us with it.

Two transitions, 749 and 249, lie on a step of the grid themselves: the strength changes at and below them.

Expected: `results/comfyui_strength.md`. Time: 13 minutes on one busy core, XL 42. Memory: 7 GB, XL 10.
"""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from comfyui_client import (
    BEFORE,
    CFG,
    FILE,
    PROMPT,
    SEED,
    SIDE,
    TRANSITION,
    Client,
    build,
    build_xl,
    distance,
    record_of,
)
from loader_matrix import add_random_lora

from basinguard.core.record import Guidance, Record
from basinguard.core.recorded_weights import RecordedSchedule, RecordedWeights
from basinguard.diffusion.sampling import sample_trajectory
from basinguard.exports.comfyui import WorkflowFiles, comfyui_workflow
from basinguard.exports.lora import export_lora
from basinguard.exports.model_kind import kind_of
from basinguard.exports.sampler_grids import grid
from basinguard.exports.single_file import export_single_file
from basinguard.guidance.core import SwitchAt
from basinguard.guidance.strength import StrengthSchedule, scheduled
from basinguard.pipelines.latent_model import LatentModel

LORA = "levels.safetensors"
TWO = StrengthSchedule((300.0,), (0.6, 1.0))
ON_THE_GRID = StrengthSchedule((749.0, 249.0), (0.0, 0.6, 1.0))
REVERSE = StrengthSchedule((700.0, 300.0), (1.0, 0.3, 0.7))
CASES = (  # strength, whether by a rule, scheduler, steps
    (TWO, False, "simple", 8),
    (ON_THE_GRID, False, "simple", 8),
    (REVERSE, False, "karras", 9),
    (TWO, True, "sgm_uniform", 7),
    (ON_THE_GRID, True, "simple", 8),
    (REVERSE, True, "exponential", 9),
)
XL_CASES = CASES[1], CASES[4]


def add_lora(pipe: Any) -> None:
    """A LoRA that is heard: the UNet's part four times as strong as random weights make it."""
    add_random_lora(pipe)
    for name, weight in pipe.unet.named_parameters():
        if "lora_B" in name:
            weight.data.mul_(4)


def record_with(record: Record, schedule: StrengthSchedule | None, *, ruled: bool) -> Record:
    """A record of a whole LoRA, or of one by timestep, by plain CFG or by the rule of `comfyui_client`."""
    plain = Guidance(transition=999.0, sigma=14.6146, before=CFG, after=CFG)
    levels = schedule and RecordedSchedule(transitions=schedule.transitions, strengths=schedule.strengths)
    product = RecordedWeights(kind="lora", strength_schedule=levels)
    return record.model_copy(update={"product": product, "guidance": record.guidance if ruled else plain})


def drawn(model: LatentModel, case: tuple, *, whole: bool) -> torch.Tensor:
    """What we draw on a case's grid from the same noise."""
    schedule, ruled, scheduler, steps = case
    timesteps = torch.tensor(grid(scheduler, steps)).round()
    noise = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(SEED))
    rule = SwitchAt(TRANSITION, BEFORE, CFG) if ruled else SwitchAt(999.0, CFG, CFG)
    prompt = torch.zeros(1, dtype=torch.long)
    with nullcontext() if whole else scheduled(model.pipe.unet, schedule):
        *_, last = sample_trajectory(model.denoiser([PROMPT]), noise, prompt, model.schedule, timesteps, rule)
    return last.x_next / float(model.schedule.signal(torch.tensor(-1.0)))


def row_of(client: Client, record: Record, files: WorkflowFiles, case: tuple, ours: dict[bool, Any]) -> dict[str, Any]:
    """What ComfyUI draws in one case, by the levels and by the whole LoRA, beside ours."""
    schedule, ruled, scheduler, steps = case
    theirs = {}
    for whole in (False, True):
        own = record_with(record, None if whole else schedule, ruled=ruled)
        flow = comfyui_workflow(own, files=files, scheduler=scheduler, steps=steps, prompt=PROMPT, seed=SEED)
        theirs[whole] = client.latents(flow, "after")
    levels = str(record_with(record, schedule, ruled=ruled).product.strength_schedule)
    row: dict[str, Any] = {"strength": levels, "rule": ruled, "scheduler": scheduler, "steps": steps}
    row |= {"workflow, ours": distance(theirs[False], ours[False])}
    row |= {"whole LoRA, workflow": distance(theirs[True], theirs[False])}
    return row | {"whole LoRA: theirs, ours": distance(theirs[True], ours[True])}


@torch.no_grad()
def main() -> None:
    """Prints and writes one row for each case."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("comfyui", type=Path)
    ask.add_argument("--model", choices=("sd2", "xl"), default="sd2")
    ask.add_argument("--out", type=Path, default=Path("runs/strength"))
    given = ask.parse_args()
    xl = given.model == "xl"
    pipe, cases = (build_xl(), XL_CASES) if xl else (build(), CASES)
    record, models = record_of(pipe).model_copy(update={"weights_sha256": ""}), given.out / "models"
    export_single_file(pipe, record, models / "checkpoints" / FILE, precision="float32", overwrite=True)
    add_lora(pipe)
    export_lora(pipe, record, models / "loras" / LORA, strength=1.0, overwrite=True)
    model, files = LatentModel(pipe, resolution=SIDE), WorkflowFiles(checkpoint=FILE, lora=LORA, kind=kind_of(pipe))
    own = [{whole: drawn(model, case, whole=whole) for whole in (False, True)} for case in cases]
    scale = pipe.vae.config.scaling_factor
    del pipe, model  # two models at once need twice the memory
    client, rows = Client(given.comfyui.resolve(), given.out.resolve(), scale), []
    for case, ours in zip(cases, own, strict=True):
        rows.append(row_of(client, record, files, case, ours))
        print(json.dumps(rows[-1]), flush=True)
    (given.out / "comfyui_strength.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
