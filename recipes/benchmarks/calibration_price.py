"""What a promise of Stable Diffusion 2.1 at 512 px costs: evaluations of its UNet, and hours on three machines.

    OMP_NUM_THREADS=1 python recipes/benchmarks/calibration_price.py --out recipes/results/calibration_price.json

Evaluations are what `basinguard calibrate --dry-run` says of 24 captioned images with its defaults: an upper bound, the
same for every size of model. Seconds of one evaluation are timed here, one thread, on a UNet of random numbers and true
shape (866 M parameters), 512 px, two rows a call. The two GPUs are quoted, not measured: what others report for plain
sampling, whose step is two evaluations.
Needs 5 GB; a minute on an idle core.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from basinguard import calibrate
from basinguard.calibration.terms import CalibrationTerms
from basinguard.pipelines.architecture import sd21_config
from basinguard.pipelines.session_settings import SessionSettings
from basinguard.tinyworld.scenes import all_captions, draw_scene

IMAGES, SIDE, ROWS = 24, 512, 2
QUOTED = {  # steps a second of 512 px in half precision, each two evaluations
    "A100 80 GB, Stable Diffusion 1.5, torch 2.1": (31.19, "github.com/fal-ai/stable-diffusion-benchmarks"),
    "RTX 3090, Stable Diffusion 2 base": (10.9, "huggingface.co/stabilityai/stable-diffusion-2-base/discussions/10"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    evaluations = {design: at_most(design) for design in ("sequential", "fixed")}
    seconds = {"this processor, one thread": timed()} | {name: 0.5 / rate for name, (rate, _) in QUOTED.items()}
    result = {
        "captions": IMAGES,
        "evaluations_at_most": evaluations,
        "seconds_an_evaluation": {name: round(each, 4) for name, each in seconds.items()},
        "hours_at_most": {name: round(evaluations["sequential"] * each / 3600, 2) for name, each in seconds.items()},
        "quoted": {name: source for name, (_, source) in QUOTED.items()},
        "command": "OMP_NUM_THREADS=1 python recipes/benchmarks/calibration_price.py",
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "load_average": os.getloadavg()[0],
    }
    print(json.dumps(result, indent=2))
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=2) + "\n")


def at_most(design: str) -> int:
    """Evaluations of a calibration of a full fine-tune whose base is at hand, as its dry run counts them."""
    with tempfile.TemporaryDirectory() as name:
        for number, caption in enumerate(all_captions()[:IMAGES]):
            draw_scene(caption, seed=number).save(Path(name) / f"{number}.png")
            (Path(name) / f"{number}.txt").write_text(str(caption))
        settings, terms = SessionSettings(base="tinyworld"), CalibrationTerms(design=design)
        return int(calibrate("tinyworld", data=Path(name), settings=settings, terms=terms, dry_run=True).evaluations)


@torch.no_grad()
def timed() -> float:
    """Seconds of one evaluation of the true UNet, of random numbers in float32, after a call to warm up."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(sd21_config("unet/config.json")).eval()
    x = torch.randn(ROWS, 4, SIDE // 8, SIDE // 8)
    states, timesteps = torch.randn(ROWS, 77, unet.config.cross_attention_dim), torch.full((ROWS,), 500)
    for _ in range(2):
        start = time.monotonic()
        unet(x, timesteps, encoder_hidden_states=states)
    return (time.monotonic() - start) / ROWS


if __name__ == "__main__":
    main()
