"""`basinguard fit`: training with the guard watching."""

from __future__ import annotations

from collections.abc import Sequence


def fit(arguments: Sequence[str]) -> None:
    """Fine-tunes with the guard watching; calibrates and exports when training ends.

    usage: basinguard fit --config sd21_lora --data.init_args.directory DIR [options]

    LightningCLI over `FineTune` (the model) and `ImageFolder` (the images). Whatever a config says can be changed
    by an option; everything is checked before weights are loaded.

    options:
      --config FILE                     a file, or one that ships: sd21_lora, sd21_full, sd21_768_lora,
                                        sd21_base_lora, tinyworld_lora, tinyworld_full; its first lines say
                                        what it needs
      --data.init_args.directory DIR    the captioned images
      --model.init_args.NAME VALUE      of the model, such as rank; --model.help FineTune lists them
      --data.init_args.NAME VALUE       of the images, such as batch_size; --data.help ImageFolder lists them
      --trainer.NAME VALUE              of Lightning's Trainer, such as max_epochs
      --trainer.callbacks+=CLASS        one callback more; --trainer.callbacks.help CLASS lists its options
      --embedder NAME                   the guard's copy detector, as in every command; also "auto"
      --threshold VALUE                 from which on it calls an image a copy
      --ckpt_path FILE                  go on from a checkpoint
      --dry-run                         build everything, take no step, and say what would happen
      --anyway                          start although memory or disk look too small
      --print_config                    the whole configuration
      --help-all                        every option (loads the frameworks, which takes a while)
    """
    from ..training.dry_run import dry_run_summary
    from ..training.fit_cli import fit_cli
    from ..training.shipped_configs import located

    words = ["--help" if word == "--help-all" else word for word in located(arguments)]
    cli = fit_cli(words)
    if "--dry-run" in arguments:
        print(dry_run_summary(cli))
