"""The basin in three shapes of one small world: SD's UNet, SDXL's UNet, and SD 3's transformer with a flow.

Copy this file, do not import it. Each packaged model is fine-tuned on the same 24 captioned scenes until it copies.
Then its samples are switched to plain CFG at every position of a 16-step grid, coming from three kinds of trajectory:

- "no guidance": the fine-tune's unconditional prediction, the paper's zero guidance
- "opposite": guidance scale -1 of the fine-tune
- "base-led": plain CFG of the model before fine-tuning

For each kind and position: the share that returns to its training image (the basin), and whether the picture shows its
caption (TinyWorld's CLIP). The paper's dynamic rule runs beside its exits. One fine-tune a shape: intervals cover
captions and seeds, not trainings.

    OMP_NUM_THREADS=1 python recipes/studies/basin_families.py tinyworld-xl tinyworld-flow --out recipes/results

Writes `basin_families.json`, a model at a time, and `basin_families.png`; `docs/families.md` says what they show. No
more than 2 of 24 samples copy from timestep 374 (XL) and 267 (flow) down without guidance, from 687 and 600 down with
opposite guidance, from 499 and 401 down when the base leads. Time: about 10 minutes a model on one core. Memory: 2 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from basinguard.basin.detectors import detector_error
from basinguard.basin.trajectories import GuidedModel, Pairs, Trunk, pairs_of, run_branch, run_trunk
from basinguard.core import seeds, stats
from basinguard.core.provenance import versions
from basinguard.core.report_parts import Exit
from basinguard.guidance.dynamic import Drop, LocalMinimum, SwitchAfter
from basinguard.pipelines.families.registry import family_of
from basinguard.pipelines.latent_model import LatentModel
from basinguard.pipelines.loading import load_pipeline
from basinguard.plots.style import BLUE, GREEN, GREY, VERMILLION, open_frame
from basinguard.similarity.clip_score import ClipScore
from basinguard.similarity.copy_detector import CopyDetector
from basinguard.similarity.structure import Structure
from basinguard.tinyworld.tasks import TASKS

SCALE, TIMESTEPS, IMAGES, BATCH = 3.0, 16, 24, 16
DETECTORS = {"local minimum": LocalMinimum(), "drop 0.3": Drop(0.3), "drop 0.5": Drop(0.5)}
KINDS = {"no guidance": 0.0, "opposite": -1.0}  # scale before the switch
COLOURS = {"no guidance": BLUE, "opposite": VERMILLION, "base-led": GREEN}


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("models", nargs="+")
    ask.add_argument("--out", type=Path, default=Path("runs/basin_families"))
    ask.add_argument("--updates", type=int, default=400)
    ask.add_argument("--rate", type=float, default=8e-4)
    ask.add_argument("--captions", type=int, default=12)
    ask.add_argument("--seeds", type=int, default=2)
    args = ask.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "basin_families.json"
    for name in args.models:
        result = study(name, args)
        done = json.loads(path.read_text()) if path.exists() else {}
        done = {**done, name: result}
        path.write_text(json.dumps(done, indent=1) + "\n")
        figure(done).savefig(args.out / "basin_families.png")


def study(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Fine-tunes one model and measures it."""
    begin, drawn = time.time(), TASKS["scenes"].train(IMAGES)
    base = load_pipeline(name)
    if isinstance(
        base, StableDiffusion3Pipeline
    ):  # without a T5 encoder its tokens are zeros, and 256 of them are slow
        base.encode_prompt = partial(base.encode_prompt, max_sequence_length=1)
    pipe, captions = deepcopy(base), list(drawn.captions[: args.captions])
    losses = fine_tune(pipe, drawn.pixels, drawn.captions, args.updates, args.rate)
    detector, clip = CopyDetector(drawn.pixels, drawn.captions, Structure()), ClipScore.load()
    with torch.inference_mode():
        tuned, before = (guided(LatentModel(p), captions) for p in (pipe, base))
        pairs = pairs_of(args.captions, range(seeds.PROBE, seeds.PROBE + 8), args.seeds, LatentModel(pipe).latent_shape)
        decode, texts = LatentModel(pipe).decode, [captions[k] for k in pairs.prompt.tolist()]

        def judged(ends: Tensor) -> tuple[Tensor, Tensor]:
            images = decode(ends)
            return detector.is_own_copy(detector.matches(images), texts), clip.score(images, texts)

        trunks = {kind: run_trunk(tuned, pairs, scale) for kind, scale in KINDS.items()}
        trunks["base-led"] = run_trunk(before, pairs, SCALE)
        swept = {kind: sweep(tuned, pairs, trunk, judged) for kind, trunk in trunks.items()}
        exits = exits_of(tuned, pairs, swept["no guidance"]["copies"])
        fired = detectors(tuned, pairs, exits)
        gap = trajectory_gaps(tuned, pairs, trunks["no guidance"])
    print(name, {kind: round(float(s["copies"].float().mean()), 3) for kind, s in swept.items()}, flush=True)
    return {
        "timesteps": tuned.timesteps.tolist(),
        "sigmas": tuned.schedule.sigma(tuned.timesteps).tolist(),
        "kinds": {kind: summary(s, pairs) for kind, s in swept.items()},
        "exit": exit_summary(exits),
        "gap": gap,
        "detectors": fired,
        "loss": [sum(losses[:50]) / 50, sum(losses[-50:]) / 50],
        "plan": {**vars(args), "models": name, "out": None, "scale": SCALE, "images": IMAGES, "batch": BATCH},
        "metric": detector.embedder.metric.model_dump(),
        "versions": versions(),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
        "seconds": round(time.time() - begin),
    }


def fine_tune(pipe: Any, images: Tensor, captions: tuple[str, ...], updates: int, rate: float) -> list[float]:
    """Every weight of the denoiser, by the loss that its family is trained with; text encoders stay."""
    torch.manual_seed(0)
    family, model = family_of(pipe), LatentModel(pipe)
    denoiser, schedule = family.denoiser(pipe).train(), model.schedule
    with torch.no_grad():
        clean = model.encode(images)
        texts = family.condition(pipe, captions, model.resolution, torch.float32)
    optimizer, losses = torch.optim.AdamW(denoiser.parameters(), lr=rate), []
    for update in range(updates):
        rows = torch.randperm(len(clean))[:BATCH]
        x, noise = clean[rows], torch.randn_like(clean[rows])
        flow = family.prediction_type(pipe) == "flow_prediction"
        timestep = 1000 * torch.sigmoid(torch.randn(len(x))) if flow else torch.randint(0, 1000, (len(x),))
        a, s = (f(timestep).float().view(-1, 1, 1, 1) for f in (schedule.signal, schedule.noise))
        target = noise - x if flow else a * noise - s * x
        loss = F.mse_loss(family.forward(pipe, a * x + s * noise, timestep, texts.arguments(rows)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if update % 100 == 99:
            print(f"{update + 1} updates, loss {sum(losses[-50:]) / 50:.4f}", flush=True)
    denoiser.eval()
    return losses


def guided(model: LatentModel, captions: list[str]) -> GuidedModel:
    schedule = model.schedule
    return GuidedModel(model.denoiser(captions), schedule, schedule.grid(TIMESTEPS), SCALE, 32)


def sweep(model: GuidedModel, pairs: Pairs, trunk: Trunk, judged: Any) -> dict[str, Tensor]:
    """Copies and CLIP scores [T + 1, N] of samples switched to plain CFG at each position; last: never switched."""
    rows, outcomes = torch.arange(len(pairs)), []
    for position in range(len(model.timesteps) + 1):
        index = torch.full_like(rows, position)
        outcomes.append(judged(run_branch(model, trunk.at(rows, index), pairs.prompt, index)))
    copies, scores = zip(*outcomes, strict=True)
    return {"copies": torch.stack(copies), "clip": torch.stack(scores)}


def summary(swept: dict[str, Tensor], pairs: Pairs) -> dict[str, Any]:
    clusters = pairs.prompt.tolist()
    return {
        "copies": [stats.rate(row.tolist(), clusters).model_dump() for row in swept["copies"]],
        "clip": [stats.cluster_bootstrap(row, clusters).model_dump() for row in swept["clip"]],
    }


def exits_of(model: GuidedModel, pairs: Pairs, copies: Tensor) -> list[Exit]:
    """The last position of each pair whose switch still copies, and whether earlier ones all do."""
    exits, grid = [], model.timesteps
    for row in range(len(pairs)):
        hits, never = copies[:-1, row].nonzero().flatten().tolist(), bool(copies[-1, row])
        pair = {"caption": int(pairs.prompt[row]), "seed": int(pairs.seed[row])}
        if not hits:
            exits.append(Exit(**pair, timestep=None, sigma=None, lower=None))
            continue
        last, monotone = hits[-1], hits == list(range(hits[-1] + 1))
        lower = None if never else float(grid[last + 1]) if last + 1 < len(grid) else 0.0
        swept = {} if monotone else {"monotone": False, "reproduces": tuple(float(grid[i]) for i in hits)}
        sigma = float(model.schedule.sigma(float(grid[last])))
        exits.append(Exit(**pair, timestep=float(grid[last]), sigma=sigma, lower=lower, **swept))
    return exits


def exit_summary(exits: list[Exit]) -> dict[str, Any]:
    inside = [e for e in exits if e.timestep is not None]
    if not inside:
        return {"pairs": len(exits), "memorized": 0}
    clusters = [e.caption for e in inside]
    return {
        "pairs": len(exits),
        "memorized": len(inside),
        "median timestep": stats.cluster_bootstrap([e.timestep for e in inside], clusters, stats.median).model_dump(),
        "median sigma": stats.cluster_bootstrap([e.sigma for e in inside], clusters, stats.median).model_dump(),
        "not ordered": sum(not e.monotone for e in inside),
        "never left": sum(e.lower is None for e in inside),
        "each": [e.timestep for e in exits],
    }


def detectors(model: GuidedModel, pairs: Pairs, exits: list[Exit]) -> dict[str, Any]:
    """The dynamic rules against the exits."""
    if not any(e.timestep is not None for e in exits):
        return {}
    errors = {
        name: detector_error(model, pairs, exits, SwitchAfter(detector, before=0.0, after=SCALE))
        for name, detector in DETECTORS.items()
    }
    return {
        name: {
            "early": error.early.model_dump(),
            "never": error.never.model_dump(),
            "distance": error.distance.model_dump() if error.distance else None,
        }
        for name, error in errors.items()
    }


def trajectory_gaps(model: GuidedModel, pairs: Pairs, trunk: Trunk) -> list[list[float]]:
    """The gap along each unguided trajectory, [T, N]."""
    rows = []
    for position, timestep in enumerate(model.timesteps):
        x = model.path.latents(trunk.pair_states[position])
        times = timestep.expand(len(pairs))
        both = [model.evaluate(x, times, prompt) for prompt in (pairs.prompt, torch.full_like(pairs.prompt, -1))]
        rows.append((both[0] - both[1]).flatten(1).square().mean(1).sqrt().tolist())
    return rows


def figure(done: dict[str, Any]) -> Any:
    """A column for each model: return and caption by where guidance comes on, and the gap along the way."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(4.2 * len(done), 8), dpi=120, layout="constrained")
    panels = drawn.subplots(3, len(done), squeeze=False)
    for column, (name, result) in enumerate(done.items()):
        grid = [*result["timesteps"], 0]
        for kind, rows in result["kinds"].items():
            for panel, what in zip(panels[:2, column], ("copies", "clip"), strict=True):
                value, low, high = ([e[key] for e in rows[what]] for key in ("value", "low", "high"))
                panel.plot(grid, value, color=COLOURS[kind], label=kind, marker=".")
                panel.fill_between(grid, low, high, color=COLOURS[kind], alpha=0.12, linewidth=0)
        gaps = torch.tensor(result["gap"]).T
        panels[2, column].plot(result["timesteps"], gaps.T, color=GREY, alpha=0.3, linewidth=0.7)
        panels[2, column].plot(result["timesteps"], gaps.median(0).values, color=BLUE, label="median")
        panels[0, column].set(title=name, ylim=(-0.02, 1.02))
        panels[2, column].set(xlabel="timestep (1000 = noise)")
        for panel in panels[:, column]:
            open_frame(panel)
            panel.invert_xaxis()
    labels = ("share that returns to its image", "CLIP score of the caption", "gap, no guidance")
    for panel, label in zip(panels[:, 0], labels, strict=True):
        panel.set_ylabel(label)
        panel.legend(frameon=False, fontsize=8)
    return drawn


if __name__ == "__main__":
    main()
