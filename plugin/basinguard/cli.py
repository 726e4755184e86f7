"""The `basinguard` command line: it finds the verb, parses its options and prints its result.

A verb's help is the signature and docstring of its function in `commands/`. Options that travel together in one object
(`terms=CalibrationTerms(...)`) are flat on the command line (`--alpha 0.1`), explained by that object's docstring.
"""

from __future__ import annotations

import argparse
import gc
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from importlib import import_module
from inspect import getdoc, signature
from itertools import takewhile, zip_longest
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from .commands import VERBS
from .core.extras import MissingExtraError
from .core.option_errors import did_you_mean
from .core.progress import shown
from .core.text import one_line

if TYPE_CHECKING:
    from .core.gate import Gate

MISTAKES = (ValueError, TypeError, OSError, MissingExtraError)  # OSError: missing, existing, read-only, full
TRUTHS = ("true", "false", "yes", "no", "null")  # what may follow a flag as its value
HELP = ("--help", "-h")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one verb; a user's mistake is one line on stderr and exit status 2, Ctrl-C is 130."""
    if arguments is None:  # a process of its own: a seventh of what loading the frameworks takes is the collector's
        gc.set_threshold(10_000)
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _run(words)
    except MISTAKES as error:
        print(f"basinguard: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _run(words: list[str]) -> None:
    if not words or words[0] in HELP:
        print(overview())
    elif words[0] == "--version":
        from . import __version__

        print(f"basinguard {__version__}")
    elif words[0] not in VERBS:
        near = did_you_mean(words[0], (*VERBS, "--help", "--version"))
        raise ValueError(f"no verb {words[0]!r}{near}; basinguard --help lists them all")
    else:
        _run_verb(*words)


def overview() -> str:
    """Every verb in the order of the story, with the first line of its help."""
    lines = [f"  {verb:16}{_first_line(_function(verb))}" for verb in VERBS]
    usage = "usage: basinguard VERB [options]      basinguard VERB --help      basinguard --version"
    return "\n".join([usage, "", "A guard against memorization in fine-tuned diffusion models.", "", *lines])


def _run_verb(verb: str, *words: str) -> None:
    function, module = _function(verb), _module(verb)
    if verb == "fit":  # LightningCLI parses for itself, at the price of loading the frameworks
        with plain_warnings():
            print(getdoc(function)) if set(words) & set(HELP) else function(words)
        return
    arguments = parse(verb, words)
    if "command" in signature(function).parameters:
        arguments["command"] = (verb, *words)
    with shown(), plain_warnings():
        result = function(**arguments)
    show = getattr(module, "show", None)
    show(result, arguments) if show else print(result)
    if arguments.get("gate") and not arguments.get("dry_run"):
        _through(module.gate_of(result, arguments))
    if getattr(result, "ok", True) is False:
        raise SystemExit(1)


def _through(gate: Gate) -> None:
    """Prints a gate's line; a closed one ends the process with a status of its own."""
    print(gate.line)
    if not gate.passed:
        raise SystemExit(gate.status)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Inside, a warning is one line of words, each once; what libraries warn programmers of is not told."""
    lines: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        line = one_line(str(message))
        if issubclass(category, UserWarning) and line not in lines:
            lines.add(line)
            print(f"basinguard: {line}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _module(verb: str) -> ModuleType:
    return import_module(f".commands.{verb.replace('-', '_')}", __package__)


def _function(verb: str) -> Callable[..., Any]:
    return getattr(_module(verb), verb.replace("-", "_"))


def _first_line(function: Callable[..., Any]) -> str:
    return (getdoc(function) or "").partition("\n")[0]


def parse(verb: str, words: Sequence[str]) -> dict[str, Any]:
    """The arguments of a verb's function, its option objects made of their flat options."""
    function = _function(verb)
    objects: dict[str, Any] = {
        name: parameter.default
        for name, parameter in signature(function).parameters.items()
        if is_dataclass(parameter.default)
    }
    parser = _parser(verb, objects)
    several, words = _several(verb, words)
    try:
        values = vars(parser.instantiate(parser.parse_args(list(_spelled(words, parser)))))
    except argparse.ArgumentError as error:
        raise ValueError(f"{verb}: {_in_one_line(str(error), parser)}") from None
    values |= several
    arguments = {name: values[name] for name in signature(function).parameters if name in values}
    for name, default in objects.items():
        arguments[name] = type(default)(**{field.name: values[field.name] for field in fields(default)})
    return arguments


def _parser(verb: str, objects: dict[str, Any]) -> Any:
    from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]

    function, module = _function(verb), _module(verb)
    parser = ArgumentParser(
        prog=f"basinguard {verb}", description=_first_line(function), exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of these options.")
    skipped: set[str | int] = {*objects, "command"}
    parser.add_function_arguments(_without_result(function), as_group=False, as_positional=True, skip=skipped)
    for default in objects.values():
        parser.add_class_arguments(type(default), as_group=False)
        parser.set_defaults({field.name: getattr(default, field.name) for field in fields(default)})
    parser.set_defaults(getattr(module, "TYPED", {}))
    return parser


def _several(verb: str, words: Sequence[str]) -> tuple[dict[str, list[str]], Sequence[str]]:
    """Several values of an argument that takes them, if they were given, and the words without all but the first."""
    name = getattr(_module(verb), "SEVERAL", "")
    values = list(takewhile(lambda word: not word.startswith("-"), words)) if name else []
    return ({name: values}, [values[0], *words[len(values) :]]) if len(values) > 1 else ({}, words)


def _spelled(words: Sequence[str], parser: Any) -> Iterator[str]:
    """Words as the parser spells its options: `--from-run` is `--from_run`, and `--apply` alone means true."""
    actions = {option: action for action in parser._actions for option in action.option_strings}
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        name, equals, value = word.partition("=")
        underscored = f"--{name[2:].replace('-', '_')}"
        if name.startswith("--") and name not in actions and underscored in actions:
            name = underscored
        if getattr(actions.get(name), "_typehint", None) is bool and not equals and following.lower() not in TRUTHS:
            equals, value = "=", "true"
        yield name + equals + value


def _without_result(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as far as its options go.

    jsonargparse would load whatever a module imports for type checkers alone, which here is the type of the result.
    """
    options = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__)
    options.__kwdefaults__, options.__doc__, options.__module__ = function.__kwdefaults__, function.__doc__, __name__
    options.__annotations__ = {name: kind for name, kind in function.__annotations__.items() if name != "return"}
    return options


def _in_one_line(message: str, parser: Any) -> str:
    """jsonargparse's message in the words of the command line, with the nearest option to an unknown one."""
    options = [option for action in parser._actions for option in action.option_strings]
    if unknown := re.match(r"unrecognized arguments: ([^\s=]+)|Option '(\S+)' is not accepted", message):
        word = unknown[1] or f"--{unknown[2]}"  # the second is a key of a --config file
        return f"no option {word!r}{did_you_mean(word, options)}; {parser.prog} --help lists them"
    if missing := re.match(r"the following arguments are required: ([^,]+)", message):
        action = next(action for action in parser._actions if action.dest == missing[1])
        name = f"--{action.dest} DIR" if action.option_strings else action.dest.upper()
        return f"needs {name}: {str(action.help).partition(' (required')[0]}"
    message = re.sub(r'Parser key "(\w+)":', r"--\1:", one_line(message))
    return re.sub(r"<class '([\w.]+)'>|typing\.", r"\1", message)


if __name__ == "__main__":
    main()
