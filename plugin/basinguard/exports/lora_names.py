"""What the tensors of an adapter file are called: of which layer each is, and which of its factors.

Layouts that are read are those of kohya's sd-scripts, LyCORIS, OneTrainer, ai-toolkit, SimpleTuner, diffusers old and
new, and peft.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product

HALVES = {"A": "down", "B": "up", "down": "down", "up": "up"}
NAMES = tuple(
    re.compile(rf"(?P<layer>.+)\.{ending}")
    for ending in (
        r"lora_(?P<half>[AB])(?:\.(?P<adapter>[^.]+))?\.weight",
        r"(?:lora_|lora\.|lora_linear_layer\.)(?P<half>down|up)\.weight",
        r"processor\.to_(?P<to>q|k|v|out)_lora\.(?P<half>down|up)\.weight",
        r"lora_(?P<factor>mid)\.weight",
        r"lora_(?P<factor>magnitude)_vector(?:\.(?P<adapter>(?!weight$)[^.]+))?(?:\.weight)?",
        r"(?P<factor>dora_scale|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2|on_input|alpha)",
    )
)
INPUT_SCALE = ".weight"  # of an IA3, told by the `on_input` beside it
MAGNITUDES = {"dora_scale", "magnitude"}  # of a DoRA: kohya's and peft's
HADAMARD = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
KRONECKER = [
    first | second
    for first, second in product(
        [{"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"}],
        [{"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"}, {"lokr_w2_a", "lokr_w2_b", "lokr_t2"}],
    )
]
WHOLE = [{"down", "up"}, {"down", "up", "mid"}, HADAMARD, HADAMARD | {"hada_t1", "hada_t2"}, *KRONECKER]


@dataclass(frozen=True)
class NamedTensors:
    """Names of a file's tensors, sorted.

    Attributes:
        factors: by layer as the file calls it: the name of each factor.
        alphas: by layer: the name of its alpha.
        adapters: names of the adapters, where the tensors' names hold them.
        others: that are no part of an adapter.
    """

    factors: dict[str, dict[str, str]] = field(default_factory=dict)
    alphas: dict[str, str] = field(default_factory=dict)
    adapters: set[str] = field(default_factory=set)
    others: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Of every factor of every layer."""
        return [name for factors in self.factors.values() for name in factors.values()]


def sort_names(names: Iterable[str]) -> NamedTensors:
    """Sorts the names of a file's tensors by layer and factor."""
    tensors, names = NamedTensors(), set(names)
    for name in sorted(names):
        match = next((match for pattern in NAMES if (match := pattern.fullmatch(name))), None)
        if match is None:
            layer = name.removesuffix(INPUT_SCALE)
            if f"{layer}.on_input" in names:
                tensors.factors.setdefault(layer, {})["ia3"] = name
            else:
                tensors.others.append(name)
            continue
        parts = match.groupdict()
        layer, factor = parts["layer"], parts.get("factor") or HALVES[parts["half"]]
        if to := parts.get("to"):
            layer = f"{layer}.to_{to}{'.0' if to == 'out' else ''}"
        if factor == "alpha":
            tensors.alphas[layer] = name
        else:
            tensors.factors.setdefault(layer, {})[factor] = name
        if parts.get("adapter"):
            tensors.adapters.add(parts["adapter"])
    return tensors


def is_whole(factors: Mapping[str, str]) -> bool:
    """Whether these are all factors of one layer, of a LoRA, LoCon, LoHa, LoKr, IA3 or DoRA of these."""
    return factors.keys() == {"ia3", "on_input"} or any(
        factors.keys() - MAGNITUDES == whole and len(factors.keys() & MAGNITUDES) < 2 for whole in WHOLE
    )
