"""`basinguard fit`: LightningCLI over `FineTune` and `ImageFolder`, checked before weights are loaded.

    basinguard fit --config configs/tinyworld_lora.yaml --data.init_args.directory photos

Everything in a config can be changed on the command line (`--model.init_args.lora.rank 4`,
`--trainer.callbacks+=module.Class`); `--print_config` shows the whole of it, `--ckpt_path` resumes. `--dry-run` builds
everything, trains nothing and says what would happen; `--anyway` starts although memory or disk look too small.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, get_args

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_warn

from ..core.option_errors import build_error, option_error, options_of
from ..similarity.copy_detector_settings import CopyDetectorSettings, Null
from .checkpoints import changed_options
from .data import ImageFolder
from .finetune import FineTune
from .finetune_options import LossOptions
from .lightning import MemorizationGuard
from .preflight import check_fit
from .resources import guard_of, resources_of

FLAGS = ("--dry-run", "--anyway", "--gate")
# each is said about something that is meant to be as it is
QUIET = (
    r"Found \d+ module\(s\) in eval mode",  # the frozen parts
    r"The 'train_dataloader' does not have many workers",  # small images are decoded faster than a worker starts
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # between Lightning and torch
    r"(?s).*(JSONARGPARSE_DEPRECATION_WARNINGS|was deprecated in v4\.\d+\.\d+ and will be)",  # by Lightning
    r"LightningCLI's args parameter is intended",  # `basinguard` has its own first word
    r"Found keys that are in the model state dict but not in the checkpoint",  # frozen weights are left out of it
    r"The dirpath has changed from",  # a run that is taken up writes to a folder of its own
    r"The number of training batches \(\d+\) is smaller than the logging interval",  # small sets are the point
)


class FitParser(LightningArgumentParser):
    """A parser that says what is wrong in one line; half an option's name is wrong too, never the option."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Names an unknown option and the nearest right one; exit status 2, or an ArgumentError where one is wanted."""
        line = option_error(message, self._options())
        if not self.exit_on_error:
            super().error(line, ex)
        self.exit(2, f"basinguard fit: {line}\n")
        raise AssertionError("exits")

    def _options(self) -> Iterator[str]:
        """Every option of the trainer, the model, the images and the guard, as a config writes them; then our own."""
        yield from (flag.removeprefix("--") for flag in FLAGS)
        verbs = [action.choices for action in self._actions if isinstance(action.choices, dict)]
        for parser in (self, *(parser for choices in verbs for parser in choices.values())):
            yield from (action.dest for action in parser._actions)
        for kind, place in ((FineTune, "model"), (ImageFolder, "data"), (MemorizationGuard, "trainer.callbacks")):
            yield from options_of(kind, f"{place}.init_args")


class FineTuneCLI(LightningCLI):
    """LightningCLI that refuses first what cannot work."""

    anyway = False  # start although memory or disk look too small

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """`fit` alone: every other would have a parser of its own made at each start, and none can be asked for."""
        return {"fit": LightningCLI.subcommands()["fit"]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The guard's copy detector by the words of every other command."""
        parser.add_argument("--embedder", type=str, default="", help="the guard's copy detector, as in every command")
        parser.add_argument("--threshold", type=str, default="", help="from which on it calls an image a copy")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Remembers what was asked of the model, which Lightning overrides by the settings in a checkpoint."""
        super().parse_arguments(parser, args)
        self._asked = _model_options(self.config.get("fit") or self.config)

    def before_instantiate_classes(self) -> None:
        """Checks the model and the images named in the config."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        _say_what_a_checkpoint_overrides(self._asked, _model_options(config))
        guard = guard_of(config.trainer.callbacks)
        _name_detector(guard, config.embedder, config.threshold)
        if not (_is(config.model, FineTune) and _is(config.data, ImageFolder)):
            return
        model, images = config.model.init_args, ImageFolder(**config.data.init_args.as_dict())
        check_fit(
            model.base,
            images,
            probe_images=guard.plan.captions if guard else 0,
            architecture=model.architecture,
            prediction_type=model.prediction_type,
            loss=LossOptions(**model.loss.as_dict()),
            exported=bool(guard and guard.export_to),
        )
        short = [] if self.anyway else list(resources_of(config).problems())
        if short:
            raise ValueError("nothing was trained; this machine is too small for it:\n- " + "\n- ".join(short))

    def instantiate_classes(self) -> None:
        """Builds model, images and guard; what one of them refuses is said as it says it."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise ValueError(build_error(str(error))) from error


def fit_cli(args: Sequence[str]) -> FineTuneCLI:
    """Runs one fit as a command line describes it.

    Args:
        args: what follows `basinguard fit`.

    Returns:
        The CLI, with its `trainer`, `model` and `datamodule`.

    Raises:
        ValueError: it cannot work; lists every problem.
    """
    quiet_lightning()
    options = [word for word in args if word not in FLAGS]
    if "--dry-run" in args:
        return build_cli(options, run=False, anyway=True)
    return build_cli(["fit", *options], run=True, anyway="--anyway" in args)


def build_cli(args: Sequence[str], *, run: bool, anyway: bool = False) -> FineTuneCLI:
    """The CLI; with `run=False` it parses and builds everything, but trains nothing (and takes no subcommand)."""
    kind = type("FineTuneCLI", (FineTuneCLI,), {"anyway": True}) if anyway else FineTuneCLI
    return kind(
        FineTune,
        ImageFolder,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        save_config_callback=SaveConfigCallback if run else None,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={"enable_model_summary": sys.stderr.isatty()},  # a table of modules tells a log nothing
        args=list(args),
        parser_class=FitParser,
        run=run,
    )


def quiet_lightning() -> None:
    """Silences what Lightning says about every fine-tune of a small set with frozen parts, and what it advertises."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in QUIET:
        warnings.filterwarnings("ignore", message=message)


def _model_options(config: Any) -> dict[str, Any]:
    model = config.get("model")
    options = None if model is None else model.get("init_args")
    return {} if options is None else options.as_dict()


def _say_what_a_checkpoint_overrides(asked: dict[str, Any], taken: dict[str, Any]) -> None:
    if lines := [f"{name} is {new}, not {old}" for name, old, new in changed_options(asked, taken)]:
        rank_zero_warn(
            f"--ckpt_path goes on with the settings of its own training: {'; '.join(lines)}. To change them, start a "
            "run of its own"
        )


def _name_detector(guard: Any, embedder: str, threshold: str) -> None:
    """Gives a configured guard the copy detector of the command line.

    Raises:
        ValueError: there is no guard to give it to, or no such kind of threshold.
    """
    words = {"embedder": embedder, "threshold": threshold}
    asked: dict[str, Any] = {name: word for name, word in words.items() if word}
    if not asked:
        return
    if guard is None:
        given = ", ".join(f"--{name} {word}" for name, word in asked.items())
        raise ValueError(f"{given}: no guard to give it to; add --trainer.callbacks+=basinguard.MemorizationGuard")
    if threshold and threshold not in get_args(Null):
        asked["threshold"] = _as_number(threshold)
    CopyDetectorSettings(**guard.detector.as_dict() | asked)
    for name, value in asked.items():
        guard.detector[name] = value


def _as_number(threshold: str) -> float:
    """A threshold that is no word.

    Raises:
        ValueError: nor a number.
    """
    try:
        return float(threshold)
    except ValueError:
        kinds = ", ".join(get_args(Null))
        raise ValueError(f"--threshold {threshold}: expected one of {kinds}, or a number in (0, 1]") from None


def _is(part: Any, kind: type) -> bool:
    return part is not None and part.get("class_path", "").split(".")[-1] == kind.__name__
