"""When to stop and which epoch to ship: twelve fine-tunes of TinyWorld, watched from the base model to copying.

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

The runs are in `acting_runs.py` beside it, their training in `acting_training.py`, fresh seeds in `acting_shipped.py`,
the interventions in `acting_variants.py`.

Expected: `results/acting_study.md`. Time: about 45 minutes on one idle core. Memory: 1.5 GB.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from acting_runs import RUNS
from acting_shipped import ship
from acting_training import train
from acting_variants import VARIANTS, act

from basinguard.training.fit_cli import quiet_lightning


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
