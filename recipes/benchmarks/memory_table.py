"""What fits in 8, 12, 16, 24 and 80 GB: memory of fine-tuning Stable Diffusion 2.1, computed from its configuration.

    python recipes/benchmarks/memory_table.py --out recipes/results/memory_table.json

Every row is what `basinguard fit --dry-run` computes (`basinguard.training.memory_footprint`): weights, gradients and
moments are counted, activations are followed on weightless tensors with the attention kernels and the mixed
precision of a GPU. Each row has the guard with 4 pairs at a time, bfloat16 probes and the guarded export. Nothing here
was measured on a GPU; `fullsize_proof.py` holds the same computation against a run on a CPU.
Time: about 2 minutes on one idle core.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path

from basinguard.pipelines.architecture import sd21_config
from basinguard.training.finetune_options import MemoryOptions, OptimizerOptions
from basinguard.training.memory_footprint import ProbeLoad, Workload, footprint

CARDS = (8, 12, 16, 24, 80)  # GB, taken as 1e9 bytes; 5 % are left to the driver and to fragmentation
USABLE = 0.95
HALF = MemoryOptions(weights="bfloat16")
SAVING = MemoryOptions(gradient_checkpointing=True)
BOTH = MemoryOptions(weights="bfloat16", gradient_checkpointing=True)
EIGHT_BIT = OptimizerOptions(name="adamw8bit")
LORA = {"method": "lora", "memory": HALF}
FULL = {"method": "full", "memory": SAVING}
PROBE = ProbeLoad(rows=4, precision="bfloat16", export=True)
ROWS = {
    "LoRA, 512 px, batch 1": LORA | {"batch_size": 1},
    "LoRA, 512 px, batch 1, checkpointing": LORA | {"batch_size": 1, "memory": BOTH},
    "LoRA, 512 px, batch 4": LORA,
    "LoRA, 512 px, batch 4, checkpointing": LORA | {"memory": BOTH},
    "LoRA, 768 px, batch 4, checkpointing": LORA | {"resolution": 768, "memory": BOTH},
    "LoRA on float32 weights, 512 px, batch 4": LORA | {"memory": MemoryOptions()},
    "full, 256 px, batch 16, checkpointing": FULL | {"resolution": 256, "batch_size": 16},
    "full, 512 px, batch 4, checkpointing": FULL,
    "full, 512 px, batch 4, checkpointing, 8-bit AdamW": FULL | {"optimizer": EIGHT_BIT},
    "full in bfloat16, 512 px, batch 4, checkpointing, 8-bit AdamW": FULL | {"memory": BOTH, "optimizer": EIGHT_BIT},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    configs = {name: sd21_config(f"{name}/config.json") for name in ("unet", "vae", "text_encoder")}
    rows = []
    for name, options in ROWS.items():
        needed = footprint(configs, Workload(**options, precision="bfloat16", probe=PROBE))
        card = next((size for size in CARDS if needed.peak <= size * 1e9 * USABLE), None)
        parts = {
            part: getattr(needed, part) for part in ("weights", "optimizer", "update", "encode", "probe", "copied")
        }
        rows.append({"plan": name, "peak_gb": round(needed.peak / 1e9, 1), "fits_gb": card,
                     **{f"{part}_gb": round(size / 1e9, 2) for part, size in parts.items()}})  # fmt: skip
        print(f"{name:62} {needed.peak / 1e9:5.1f} GB  fits in {card}", flush=True)
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result = {
        "model": "Stable Diffusion 2.1", "method": "computed, not measured", "cards_gb": CARDS, "usable": USABLE,
        "rows": rows, "command": "python recipes/benchmarks/memory_table.py", "commit": revision,
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
