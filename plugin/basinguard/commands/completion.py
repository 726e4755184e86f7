"""`basinguard completion SHELL`: a script that completes verbs, options and files in a shell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from inspect import Parameter, signature
from typing import Literal

from . import VERBS

# Words that begin with a dash complete to the verb's options, the first word to a verb, all others to files.
BASH = """_basinguard() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{verbs} --help --version"
    else
        case "${{COMP_WORDS[1]}}" in
{cases}
        esac
    fi
    if [ "$COMP_CWORD" -eq 1 ] || [ "${{current#-}}" != "$current" ]; then
        COMPREPLY=($(compgen -W "$words" -- "$current"))
    fi
}}
complete -o default -F _basinguard basinguard"""
ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"
FIT = (
    *("--config", "--dry-run", "--anyway", "--gate", "--canaries", "--ckpt_path", "--embedder", "--threshold"),
    *("--print_config", "--help-all", "--data.init_args.directory", "--trainer.callbacks+"),
)


def completion(shell: Literal["bash", "zsh", "fish"]) -> str:
    """Prints a script that completes verbs, options and files: `source <(basinguard completion bash)`.

    Args:
        shell: "bash" and "zsh" source it, in `~/.bashrc` or `~/.zshrc`; "fish" is piped into `source`.
    """
    options = {verb: ["--help", *options_of_verb(verb)] for verb in VERBS}
    if shell == "fish":
        return "\n".join(_fish(options))
    cases = "\n".join(f'            {verb}) words="{" ".join(options[verb])}" ;;' for verb in VERBS)
    return (ZSH if shell == "zsh" else "") + BASH.format(verbs=" ".join(VERBS), cases=cases)


def options_of_verb(verb: str) -> Iterator[str]:
    """The options of a verb as they are typed, those of its option objects flat; positional words are none."""
    if verb == "fit":
        yield from FIT
        return
    function = getattr(import_module(f".{verb.replace('-', '_')}", __package__), verb.replace("-", "_"))
    for name, parameter in signature(function).parameters.items():
        if is_dataclass(parameter.default):
            yield from (f"--{field.name}" for field in fields(parameter.default))
        elif name != "command" and (
            parameter.default is not Parameter.empty or parameter.kind is Parameter.KEYWORD_ONLY
        ):
            yield f"--{name}"


def _fish(options: dict[str, list[str]]) -> Iterator[str]:
    yield f"complete -c basinguard -n __fish_use_subcommand -f -a '{' '.join(options)}'"
    for verb, names in options.items():
        for name in names:
            yield f"complete -c basinguard -n '__fish_seen_subcommand_from {verb}' -l {name.removeprefix('--')}"
