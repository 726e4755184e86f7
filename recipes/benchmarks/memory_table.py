"""What fits in 8 to 80 GB: memory of fine-tuning Stable Diffusion 2.1 or XL, computed from its configuration.

    python recipes/benchmarks/memory_table.py --out recipes/results/memory_table.json
    python recipes/benchmarks/memory_table.py --model sdxl --out recipes/results/memory_table_sdxl.json

Every row is what `basinguard fit --dry-run` computes (`basinguard.training.memory_footprint`): weights, gradients and
moments are counted, activations are followed on weightless tensors with the attention kernels and the mixed
precision of a GPU. Each row has the guard with 4 pairs at a time, bfloat16 probes and the guarded export, which holds
the model twice, but where it says otherwise. Nothing here was measured on a GPU; `fullsize_proof.py` holds the same
computation against a run on a CPU.
Time: about 2 minutes on one idle core, 5 for XL.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path

from basinguard.pipelines.architecture import sd21_config, sdxl_config
from basinguard.training.finetune_options import MemoryOptions, OptimizerOptions
from basinguard.training.memory_footprint import CARDS, USABLE, ProbeLoad, Workload, configs_of, footprint

SIZES = (8, *CARDS)
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
XL = {"method": "lora", "memory": BOTH, "batch_size": 1}
UNPROBED, MEASURED = {"probe": ProbeLoad()}, {"probe": ProbeLoad(rows=1, precision="bfloat16")}
XL_FULL = {"method": "full", "batch_size": 1, "optimizer": EIGHT_BIT}
XL_ROWS = {
    "LoRA, 512 px, batch 1": XL | {"resolution": 512},
    "LoRA, 768 px, batch 1": XL | {"resolution": 768},
    "LoRA, 1024 px, batch 1": XL | {"resolution": 1024},
    "LoRA, 1024 px, batch 4": XL | {"resolution": 1024, "batch_size": 4},
    "LoRA, 1024 px, batch 1, both text encoders": XL | {"resolution": 1024, "train_text_encoder": True},
    "LoRA, 512 px, batch 1, a pair at a time, no export": XL | MEASURED | {"resolution": 512},
    "LoRA, 1024 px, batch 1, a pair at a time, no export": XL | MEASURED | {"resolution": 1024},
    "LoRA, 1024 px, batch 1, no guard": XL | UNPROBED | {"resolution": 1024},
    "LoRA, 1024 px, batch 1, no guard, no checkpointing": XL | UNPROBED | {"resolution": 1024, "memory": HALF},
    "full in bfloat16, 512 px, batch 1, 8-bit AdamW": XL_FULL | {"memory": BOTH, "resolution": 512},
    "full in bfloat16, 1024 px, batch 1, 8-bit AdamW": XL_FULL | {"memory": BOTH, "resolution": 1024},
    "full, 512 px, batch 1, 8-bit AdamW": XL_FULL | {"memory": SAVING, "resolution": 512},
    "full, 1024 px, batch 1, 8-bit AdamW": XL_FULL | {"memory": SAVING, "resolution": 1024},
}
MODELS = {
    "sd21": ("Stable Diffusion 2.1", sd21_config, ROWS),
    "sdxl": ("Stable Diffusion XL 1.0", sdxl_config, XL_ROWS),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", choices=list(MODELS), default="sd21")
    asked = parser.parse_args()
    model, read, plans = MODELS[asked.model]
    configs, rows = configs_of(read), []
    for name, options in plans.items():
        needed = footprint(configs, Workload(**{"precision": "bfloat16", "probe": PROBE, **options}))
        card = next((size for size in SIZES if needed.fits(size)), None)
        parts = {
            part: getattr(needed, part) for part in ("weights", "optimizer", "update", "encode", "probe", "copied")
        }
        rows.append({"plan": name, "peak_gb": round(needed.peak / 1e9, 1), "fits_gb": card,
                     **{f"{part}_gb": round(size / 1e9, 2) for part, size in parts.items()}})  # fmt: skip
        print(f"{name:62} {needed.peak / 1e9:5.1f} GB  fits in {card}", flush=True)
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result = {
        "model": model, "method": "computed, not measured", "cards_gb": SIZES, "usable": USABLE,
        "rows": rows, "command": f"python recipes/benchmarks/memory_table.py --model {asked.model}", "commit": revision,
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
