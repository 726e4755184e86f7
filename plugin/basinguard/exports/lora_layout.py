"""The layers of a LoRA file in whichever layout a trainer wrote, read from its header alone, or why it is refused.

A file is applied entirely or not at all, so every tensor must have a place here: layouts that are read are those of
kohya's sd-scripts, OneTrainer, ai-toolkit, SimpleTuner, diffusers old and new, and peft.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.safetensors_header import Header
from ..core.text import one_line
from .lora_formats import ADAPTER_METADATA

PEFT_CONFIG = "adapter_config.json"  # where peft itself writes rank and alpha, beside the file
HALVES = {"A": "down", "B": "up", "down": "down", "up": "up"}
ADAPTERS = re.compile(r"(?P<layer>.+)\.lora_(?P<half>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
PLAIN = re.compile(r"(?P<layer>.+)\.(?:lora_|lora\.|lora_linear_layer\.)(?P<half>down|up)\.weight")
PROCESSORS = re.compile(r"(?P<layer>.+)\.processor\.to_(?P<to>q|k|v|out)_lora\.(?P<half>down|up)\.weight")
ALPHA = ".alpha"
OTHER_KINDS = {
    r"hada_w|hada_t": "a LoHa", r"lokr_": "a LoKr", r"dora_scale|lora_magnitude_vector": "a DoRA",
    r"lora_mid": "a LoCon with a Tucker core", r"oft_|\.boft": "an OFT", r"on_input$|ia3_l": "an IA3",
    r"\.[wb]_norm$": "a LoRA with trained norms", r"\.diff(_b)?$": "a file of whole differences",
    r"^bundle_emb|^emb_params|string_to_param": "a LoRA with bundled embeddings (textual inversion)",
    r"\.[ab][12]\.weight$": "a GLoRA", r"lora_[AB](\.[^.]+)?\.bias$|lora_up\.bias$": "a LoRA with biases",
    r"lora_embedding_": "a LoRA of an embedding", r"vera_lambda": "a VeRA", r"^lora_transformer|^transformer\.":
    "a LoRA of a transformer, not of a UNet", r"lora_te[2-9]_|^text_encoder_[2-9]\.": "a LoRA of Stable Diffusion XL",
}  # fmt: skip
ORIGINAL = re.compile(r"(^|[._])(input_blocks|middle_block|output_blocks)[._]|^text_encoders\.")
PREFIXES = {  # of dotted names; peft's own says nothing of the part
    "base_model.model.": "", "model.diffusion_model.": "unet", "diffusion_model.": "unet", "unet.": "unet",
    "text_encoder.": "text_encoder",
}  # fmt: skip
FLAT = {"lora_unet_": "unet", "lora_te1_": "text_encoder", "lora_te_": "text_encoder", "lycoris_": "unet"}


@dataclass(frozen=True)
class StoredLayer:
    """One layer as it lies in a file; it adds alpha / rank * up @ down.

    Attributes:
        part: the component of the pipeline, "unet" or "text_encoder".
        flat: its path there, with "_" for ".", and for the text encoder without `text_model`.
        down, up: names of the tensors.
        rank: rows of `down`.
        shape: columns of `down` and rows of `up`: what goes in and comes out.
        alpha: name of the tensor that holds it, the number that the header says, or None: it is the rank.
    """

    part: str
    flat: str
    down: str
    up: str
    rank: int
    shape: tuple[int, int]
    alpha: str | float | None


def stored_layers(path: Path, header: Header) -> tuple[StoredLayer, ...]:
    """Every layer of a LoRA file.

    Args:
        path: the file, for messages, and because peft writes alpha beside it.
        header: of the file.

    Raises:
        ValueError: not a LoRA, of a kind or in a layout that is not read, or with a tensor that has no place.
    """
    require_plain_lora(path, header)
    halves, alphas, adapters = _sorted(path, header)
    if len(adapters) > 1:
        raise ValueError(
            f"LoRA {str(path)!r} holds {len(adapters)} adapters ({', '.join(sorted(adapters))}); save one alone"
        )
    config = _config(path, header)
    layers = [_stored(path, key, names, alphas.pop(key, None), header, config) for key, names in halves.items()]
    if alphas:
        raise ValueError(f"LoRA {str(path)!r} has an alpha without a layer, such as {min(alphas)!r}: damaged?")
    return tuple(layers)


def is_adapter(header: Header) -> bool:
    """Whether a file holds a LoRA or one of its relatives."""
    return any(re.search("|".join(("lora", *OTHER_KINDS)), name) for name in header.shapes)


def require_plain_lora(path: Path, header: Header) -> None:
    """Refuses other kinds of adapters by their tensors' names.

    Raises:
        ValueError: which kind it is, and what to do.
    """
    subject = f"LoRA {str(path)!r}"
    for pattern, kind in OTHER_KINDS.items():
        if any(re.search(pattern, name) for name in header.shapes):
            raise ValueError(f"{subject} is {kind}, which is not supported; merge it into its base and give that")
    if not is_adapter(header):
        raise ValueError(f"{str(path)!r} is not a LoRA; a whole model is given as the base")


def lora_context_width(layers: Sequence[StoredLayer]) -> int | None:
    """Width of the text states that the base's UNet attends to; None if no layer of the file tells it."""
    to_text, of_text = ("attn2_to_k", "attn2_to_v"), ("self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj")
    widths = [layer.shape[0] for layer in layers if layer.part == "unet" and layer.flat.endswith(to_text)]
    widths += [layer.shape[0] for layer in layers if layer.part == "text_encoder" and layer.flat.endswith(of_text)]
    return max(widths, default=None)


def _sorted(path: Path, header: Header) -> tuple[dict[str, dict[str, str]], dict[str, str], set[str]]:
    """Names of the halves by layer, names of the alphas by layer, and the adapters' names."""
    halves: dict[str, dict[str, str]] = {}
    alphas, adapters, others = {}, set(), []
    for name in header.shapes:
        if match := PROCESSORS.fullmatch(name):
            layer = f"{match['layer']}.to_{match['to']}{'.0' if match['to'] == 'out' else ''}"
        elif match := ADAPTERS.fullmatch(name) or PLAIN.fullmatch(name):
            layer = match["layer"]
            adapters |= {match["adapter"]} if match.groupdict().get("adapter") else set()
        elif name.endswith(ALPHA):
            alphas[name.removesuffix(ALPHA)] = name
            continue
        else:
            others.append(name)
            continue
        halves.setdefault(layer, {})[HALVES[match["half"]]] = name
    if others:
        raise ValueError(
            f"LoRA {str(path)!r}: {len(others)} of {len(header.shapes)} tensors are no part of a LoRA, such as "
            f"{one_line(min(others), 120)!r}, so it could only be applied in part; merge it into its base and give that"
        )
    return halves, alphas, adapters


def _stored(
    path: Path, key: str, names: Mapping[str, str], alpha: str | None, header: Header, config: Mapping[str, Any]
) -> StoredLayer:
    if len(names) < 2:
        raise ValueError(f"LoRA {str(path)!r}: layer {key!r} has only its {min(names)} half; download it again")
    part, dotted = _place(path, key)
    down, up = (header.shapes[names[half]] for half in ("down", "up"))
    if len(down) not in (2, 4) or len(up) not in (2, 4) or down[0] != up[1] or not down[0]:
        raise ValueError(f"LoRA {str(path)!r}: halves of {key!r} of shapes {down} and {up} do not fit; damaged?")
    flat = dotted.replace(".", "_").removeprefix("text_model_" if part == "text_encoder" else "")
    number = alpha if alpha else _alpha(path, part, dotted, down[0], config)
    return StoredLayer(part, flat, names["down"], names["up"], down[0], (down[1], up[0]), number)


def _place(path: Path, key: str) -> tuple[str, str]:
    """Which part of a pipeline a layer belongs to, and its path there.

    Raises:
        ValueError: it is named as in the original single file.
    """
    if ORIGINAL.search(key):
        raise ValueError(
            f"LoRA {str(path)!r} names layers as the original single file does (OneTrainer's ORIGINAL and COMFY), such "
            f"as {one_line(key, 120)!r}; save it as kohya or diffusers, or merge it into its base"
        )
    for prefix, part in FLAT.items():
        if key.startswith(prefix):
            return part, key.removeprefix(prefix)
    part, rest = "", key
    while prefix := next((prefix for prefix in PREFIXES if rest.startswith(prefix)), ""):
        part, rest = part or PREFIXES[prefix], rest.removeprefix(prefix)
    return part or ("text_encoder" if rest.startswith(("text_model.", "encoder.layers.")) else "unet"), rest


def _config(path: Path, header: Header) -> dict[str, Any]:
    """What peft's `LoraConfig` was, from the header or from the file that peft writes beside it."""
    beside = path.with_name(PEFT_CONFIG)
    text = header.metadata.get(ADAPTER_METADATA)
    if text is None and beside.is_file() and any(".lora_A" in name for name in header.shapes):
        text = beside.read_text(encoding="utf-8", errors="replace")
    try:
        config = json.loads(text or "{}")
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise ValueError(f"LoRA {str(path)!r}: what it says of rank and alpha is not a JSON object; save it again")
    return config


def _alpha(path: Path, part: str, dotted: str, rank: int, config: Mapping[str, Any]) -> float | None:
    """The alpha that the configuration gives one layer."""
    own = {key.removeprefix(f"{part}."): value for key, value in config.items() if key.startswith(f"{part}.")}
    own = own or {key: value for key, value in config.items() if not key.startswith(("unet.", "text_encoder."))}
    if own.get("use_dora") or own.get("lora_bias"):
        raise ValueError(f"LoRA {str(path)!r} is a DoRA or has biases, which is not supported; merge it into its base")
    patterns = own.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or any(re.search(r"[^\w.]", pattern) for pattern in patterns):
        raise ValueError(f"LoRA {str(path)!r}: its alphas are given by patterns, not by layers; merge it into its base")
    path_of = f".{dotted.removeprefix('text_model.')}"
    ends = (own for name, own in patterns.items() if path_of.endswith(f".{name.removeprefix('text_model.')}"))
    alpha = next(ends, own.get("lora_alpha"))
    if alpha is None:
        return None
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ValueError(f"LoRA {str(path)!r}: alpha {one_line(repr(alpha), 40)} of {dotted!r}; expected a number")
    return float(alpha) * (math.sqrt(rank) if own.get("use_rslora") else 1.0)


def layer_rows(layers: Sequence[StoredLayer]) -> Iterator[tuple[str, str]]:
    """Rows for a terminal: how many layers of each part, ranks, and where alpha is said."""
    for part in ("unet", "text_encoder"):
        own = [layer for layer in layers if layer.part == part]
        ranks = sorted({layer.rank for layer in own})
        yield part, f"{len(own)} layers, rank {', '.join(map(str, ranks[:6]))}" if own else "no layer"
    silent = sum(layer.alpha is None for layer in layers)
    yield "alpha", "in the file" if not silent else f"not said for {silent} layers: taken as the rank, as trainers do"
