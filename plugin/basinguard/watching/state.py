"""A guarded run's state as one safetensors file: its texts in the header, its pictures as tensors; never a pickle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..core.files import whole_file

TEXT = "state"  # the header's entry
PICTURES = "pictures"  # what stands in the text for a tensor: its name


def write_run_state(path: Path, state: Mapping[str, Any]) -> None:
    """Writes texts, numbers and tensors, whole or not at all.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    tensors = dict(_tensors(state))
    text = json.dumps(_without(state))
    with whole_file(path, overwrite=True) as partial:
        save_file(tensors or {"empty": torch.zeros(1)}, partial, metadata={TEXT: text})


def read_run_state(path: Path) -> dict[str, Any] | None:
    """What was written there; None where nothing was.

    Raises:
        ValueError: the file is no such state.
    """
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(TEXT)
        if text is None:
            raise ValueError(f"{path}: not the state of a watch; delete it to begin anew")
        state: dict[str, Any] = _with(json.loads(text), {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return state


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value.contiguous()
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, f"{name}/{key}")


def _without(value: Any, name: str = "") -> Any:
    if isinstance(value, Tensor):
        return {PICTURES: name}
    if isinstance(value, Mapping):
        return {key: _without(inner, f"{name}/{key}") for key, inner in value.items()}
    return value


def _with(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict) and value.keys() == {PICTURES}:
        return tensors[value[PICTURES]]
    if isinstance(value, dict):
        return {key: _with(inner, tensors) for key, inner in value.items()}
    return value
