"""Scans a folder on two ranks; Lightning starts this file once for each."""

import sys
from pathlib import Path

from lightning.pytorch import Trainer

from basinguard.training.distributed_scan import scan_on_ranks

if __name__ == "__main__":
    devices = int(sys.argv[3])
    trainer = Trainer(
        accelerator="cpu", strategy="ddp" if devices > 1 else "auto", devices=devices, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    scan_on_ranks(Path(sys.argv[1]), Path(sys.argv[2]), trainer)
