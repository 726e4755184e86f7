"""What our loader makes of the files that trainers' own code writes, beside what the trainers' own layers make of them.

    python recipes/studies/trainer_files.py --clients sd-scripts=DIR OneTrainer=DIR SimpleTuner=DIR \\
        ai-toolkit=DIR diffusers=DIR LyCORIS=.

DIR is a trainer's source; nothing of it is here, nor of lycoris-lora, which LyCORIS and SimpleTuner need installed. On
TinyWorld with random adapters: what is compared is reading, not training.
Expect: `recipes/results/trainer_files.json` and `.md`, one row a file, in some five minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from basinguard.core.safetensors_header import read_header
from basinguard.exports.merge import merged
from basinguard.pipelines.loading import load_pipeline
from basinguard.watching.checkpoint_pipeline import opened
from basinguard.watching.checkpoints import describe

sys.path.insert(0, str(Path(__file__).parent))
from adapter_answers import answers
from trainer_clients import CLIENTS

RESULTS = Path(__file__).parents[1] / "results"


HEAD = """# Files of trainers' own saving code, read here

Written by `recipes/studies/trainer_files.py`: each trainer's own layers on TinyWorld, with random factors, saved by its
own code and read by our one loader; diffusers' scripts are run to their end, and read again by its own loader. Weights:
the largest difference between a layer's answers to unit inputs under the trainer's layers and under ours; in brackets
how far the adapter itself moves a weight. Output: the same for one prediction of the UNet. Layers changed counts those
that are moved by more than 1e-4. Layers without such answers (convolutions with a stride) are in the output alone.
A row with a sentence is a file that could not be written, or that is refused: OneTrainer's ORIGINAL and COMFY formats
know UNets of the true shape alone, and its trainer could not write them here.

| trainer | version | layout | file | step, epoch | tensors | layers changed | weights | output |
|---|---|---|---|---|---|---|---|---|"""


def rows_of(client: str, source: Path, out: Path) -> list[dict[str, Any]]:
    """Every file of a trainer, written in a process of its own and read here."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("trainer_clients.py")), client, str(source), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = [row_of(folder) for folder in sorted(out.glob("*"))]
    if done.returncode:
        rows.append({"layout": "further ones", "problem": (done.stderr.strip().splitlines() or ["?"])[-1][:300]})
    return [{"trainer": client, "version": version_of(client, source), **row} for row in rows]


def version_of(client: str, source: Path) -> str:
    if client == "LyCORIS":
        return version("lycoris-lora")
    commit = source / "COMMIT"
    return commit.read_text().strip()[:12] if commit.is_file() else "unknown"


def row_of(folder: Path) -> dict[str, Any]:
    row: dict[str, Any] = json.loads((folder / "row.json").read_text())
    if "file" not in row:
        return row
    path = folder / row["file"]
    checkpoint = describe(path)
    files = [path] if path.is_file() else path.rglob("*.safetensors")
    row |= {"tensors": sum(len(read_header(file).shapes) for file in files), "read as": checkpoint and checkpoint.kind}
    row |= {"train_step": checkpoint and checkpoint.train_step, "epoch": checkpoint and checkpoint.epoch}
    try:
        ours = answers(merged(opened(checkpoint, "tinyworld")))
    except (ValueError, OSError, RuntimeError) as error:
        return row | {"problem": str(error).replace(str(folder), "")[:300]}
    return row | differences(ours, load_file(folder / "reference.safetensors"))


def differences(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> dict[str, float]:
    """Largest differences of weights and of the UNet's output, and how far the adapter moves both from the base."""
    base = answers(load_pipeline("tinyworld"))
    names = ours.keys() & theirs.keys() - {"output"}
    gap = max(float((ours[name] - theirs[name]).abs().max()) for name in names)
    moved = max(float((base[name] - theirs[name]).abs().max()) for name in names)
    changed = sum(not torch.allclose(base[name], theirs[name], atol=1e-4) for name in names)
    return {
        "layers changed": changed, "weights": gap, "weights, adapter": moved,
        "output": float((ours["output"] - theirs["output"]).abs().max()),
        "output, adapter": float((base["output"] - theirs["output"]).abs().max()),
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    lines = [HEAD]
    for row in rows:
        head = f"| {row['trainer']} | {row['version']} | {row['layout']} "
        if "weights" not in row:
            lines.append(f"{head}| {row.get('file', '')} | | {row.get('tensors', '')} | | {row['problem']} | |")
            continue
        place = f"{row['train_step']}, {row['epoch']}"
        numbers = [f"{row[what]:.0e} ({row[f'{what}, adapter']:.2g})" for what in ("weights", "output")]
        lines.append(
            f"{head}| {row['file']} | {place} | {row['tensors']} | {row['layers changed']} | {' | '.join(numbers)} |"
        )
    empty = {f"{row['trainer']}: {row['empty']}" for row in rows if row.get("empty")}
    return "\n".join(
        [*lines, "", "Packages that saving does not need, replaced by empty ones: " + "; ".join(sorted(empty)), ""]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", nargs="+", required=True, metavar="NAME=DIR", help=f"of {', '.join(CLIENTS)}")
    parser.add_argument("--keep", type=Path, help="a folder for the files; a temporary one by default")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for client, _, source in (text.partition("=") for text in args.clients):
            rows += rows_of(client, Path(source), (args.keep or Path(temporary)) / client)
    (RESULTS / "trainer_files.json").write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "trainer_files.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
