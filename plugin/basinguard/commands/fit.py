"""`basinguard fit`: training with the guard watching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..core.gate import Gate


def fit(arguments: Sequence[str]) -> None:
    """Fine-tunes with the guard watching; calibrates and exports when training ends.

    usage: basinguard fit --config sd21_lora --data.init_args.directory DIR [options]

    LightningCLI over `FineTune` (the model) and `ImageFolder` (the images). Whatever a config says can be changed
    by an option; everything is checked before weights are loaded.

    options:
      --config FILE                     a file, or one that ships: sd21_lora, sd21_full, sd21_768_lora,
                                        sd21_base_lora, sdxl_lora, sdxl_full, sd3_lora, tinyworld_lora,
                                        tinyworld_full; its first lines say what it needs
      --data.init_args.directory DIR    the captioned images
      --model.init_args.NAME VALUE      of the model, such as rank; --model.help FineTune lists them
      --data.init_args.NAME VALUE       of the images, such as batch_size; --data.help ImageFolder lists them
      --trainer.NAME VALUE              of Lightning's Trainer, such as max_epochs
      --trainer.callbacks+=CLASS        one callback more; --trainer.callbacks.help CLASS lists its options
      --embedder NAME                   the guard's copy detector, as in every command; also "auto"
      --threshold VALUE                 from which on it calls an image a copy
      --ckpt_path FILE                  go on from a checkpoint
      --dry-run                         build everything, take no step, and say what would happen
      --canaries N                      plant N marked pictures at each of 1, 4 and 16 times an image's turns, keep as
                                        many out, and say at the end which came back (canaries.json in the log folder)
      --anyway                          start although memory or disk look too small
      --gate                            end with status 3 unless the upper bound of the risk of what was exported is at
                                        most its alpha, after one line of JSON
      --print_config                    the whole configuration
      --help-all                        every option (loads the frameworks, which takes a while)
    """
    _require_start(arguments)
    from ..training.dry_run import dry_run_summary
    from ..training.fit_cli import fit_cli
    from ..training.shipped_configs import located

    words = ["--help" if word == "--help-all" else word for word in located(_spelled(arguments))]
    cli = fit_cli(words)
    if "--dry-run" in arguments:
        print(dry_run_summary(cli))
        return
    if getattr(cli.datamodule, "canaries", ()):
        from ..sessions.canary_run import canary_run

        print(canary_run(cli.trainer, cli.model, cli.datamodule))
    if "--gate" in arguments:
        gate = gate_of(getattr(cli.trainer, "callbacks", ()))
        print(gate.line)
        if not gate.passed:
            raise SystemExit(gate.status)


def _require_start(arguments: Sequence[str]) -> None:
    """Says before the frameworks are loaded, which takes a while, that there is nothing to begin with."""
    beginnings = ("--config", "-c", "--model", "--print_config", "--data.help", "--trainer.help", "--help-all")
    if not any(word.startswith(beginnings) for word in arguments):
        raise ValueError(
            "fit: what is to be trained? For example: basinguard fit --config sd21_lora --data.init_args.directory "
            "photos; basinguard fit --help explains it"
        )


def _spelled(arguments: Sequence[str]) -> list[str]:
    """`--canaries N` by the name that it has in a configuration."""
    return [
        word.replace("--canaries", "--data.init_args.reading.canaries", 1)
        if word.partition("=")[0] == "--canaries"
        else word
        for word in arguments
    ]


def gate_of(callbacks: Sequence[Any]) -> Gate:
    """Whether a build may go on with what a fit exported; without a guard or an export it may not."""
    from ..core.gate import Gate
    from ..training.callback import GuardHooks

    guards = [callback for callback in callbacks if isinstance(callback, GuardHooks)]
    records = [guard.run.record for guard in guards if guard.run is not None and guard.run.record is not None]
    if not records:
        alpha = guards[0].terms.alpha if guards else 0.0
        return Gate("fit", None, alpha, "nothing was exported: the guard needs export_to")
    return Gate("fit", records[0].risk, records[0].alpha, "the export, by its record")
