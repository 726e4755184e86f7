"""`basinguard fit`: LightningCLI over `FineTune` and `ImageFolder`, with the plan checked before weights are loaded.

    basinguard fit --config configs/tinyworld_lora.yaml --data.init_args.directory photos

Everything in a config can be changed on the command line (`--model.init_args.rank 4`,
`--trainer.callbacks+=module.Class`); `--print_config` shows the whole of it, `--ckpt_path` resumes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.cli import LightningCLI, SaveConfigCallback

from .checks import check_plan
from .finetune import FineTune
from .images import ImageFolder

# each is said about something that is meant to be as it is
QUIET = (
    r"Found \d+ module\(s\) in eval mode",  # the frozen parts
    r"The 'train_dataloader' does not have many workers",  # small images are decoded faster than a worker starts
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # between Lightning and torch
    r"(?s).*(JSONARGPARSE_DEPRECATION_WARNINGS|was deprecated in v4\.\d+\.\d+ and will be)",  # by Lightning
    r"LightningCLI's args parameter is intended",  # `basinguard` has its own first word
    r"Found keys that are in the model state dict but not in the checkpoint",  # frozen weights are left out of it
    r"The number of training batches \(\d+\) is smaller than the logging interval",  # small sets are the point
)


class FineTuneCLI(LightningCLI):
    """LightningCLI that refuses a bad plan first."""

    def before_instantiate_classes(self) -> None:
        """Checks the model and the images named in the config."""
        asked = self.config[self.subcommand] if self.subcommand else self.config
        if not (_is(asked.model, FineTune) and _is(asked.data, ImageFolder)):
            return
        images = ImageFolder(**asked.data.init_args.as_dict())
        check_plan(asked.model.init_args.base, images, probe_images=_probe_images(asked.trainer.callbacks))


def fit_cli(args: Sequence[str]) -> FineTuneCLI:
    """Runs one fit as a command line describes it.

    Args:
        args: what follows `basinguard fit`.

    Returns:
        The CLI, with its `trainer`, `model` and `datamodule`.

    Raises:
        ValueError: the plan cannot work; lists every problem.
    """
    quiet_lightning()
    return build_cli(["fit", *args], run=True)


def build_cli(args: Sequence[str], *, run: bool) -> FineTuneCLI:
    """The CLI; with `run=False` it parses and builds everything, but trains nothing (and takes no subcommand)."""
    return FineTuneCLI(
        FineTune,
        ImageFolder,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        save_config_callback=SaveConfigCallback if run else None,
        save_config_kwargs={"overwrite": True},
        args=list(args),
        run=run,
    )


def quiet_lightning() -> None:
    """Silences what Lightning says about every fine-tune of a small set with frozen parts."""
    for message in QUIET:
        warnings.filterwarnings("ignore", message=message)


def _is(part: Any, kind: type) -> bool:
    return part is not None and part.get("class_path", "").split(".")[-1] == kind.__name__


def _probe_images(callbacks: Any) -> int:
    """How many training captions the configured guard probes; 0 without one."""
    listed = callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []
    asked = [c.init_args.get("captions", 0) for c in listed if c.class_path.endswith("MemorizationGuard")]
    return max(asked, default=0)
