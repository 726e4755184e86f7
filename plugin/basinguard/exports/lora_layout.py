"""The layers of a LoRA file in whichever layout a trainer wrote, read from its header alone, or why it is refused.

A file is applied entirely or not at all, so every tensor must have a place here.
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
from .lora_names import MAGNITUDES, NamedTensors, is_whole, sort_names

PEFT_CONFIG = "adapter_config.json"  # where peft itself writes rank and alpha, beside the file
OTHER_KINDS = {
    r"oft_|\.boft": "an OFT", r"ia3_l": "an IA3 of peft's",
    r"\.[wb]_norm$": "a LoRA with trained norms", r"\.diff(_b)?$": "a file of whole differences",
    r"^bundle_emb|^emb_params|string_to_param": "a LoRA with bundled embeddings (textual inversion)",
    r"\.[ab][12]\.weight$": "a GLoRA", r"lora_[AB](\.[^.]+)?\.bias$|lora_up\.bias$": "a LoRA with biases",
    r"lora_embedding_": "a LoRA of an embedding", r"vera_lambda": "a VeRA",
    r"\.magnitude$": "a DoRA of ai-toolkit's, which does not say its alpha",
    r"lora_te[3-9]_|^text_encoder_[3-9]\.": "a LoRA of a third text encoder",
}  # fmt: skip
OF_TRANSFORMER = re.compile(  # kohya's names of SD 3, of Flux, and of Lumina and its kin
    r"lora_unet_((joint|double|single)_blocks|(layers|cap_refiner|noise_refiner|context_refiner)_\d)"
)
HALVES_OF = {"hada_": "LoHa", "lokr_": "LoKr", "dora_": "DoRA", "magnitude": "DoRA", "on_input": "IA3", "ia3": "IA3"}
ADAPTER = re.compile("|".join(("lora|lokr_|hada_|dora_scale|on_input$", *OTHER_KINDS)))
PREFIXES = {  # of dotted names; peft's own says nothing of the part
    "base_model.model.": "", "model.diffusion_model.": "unet", "diffusion_model.": "unet", "unet.": "unet",
    "transformer.": "transformer",
    "text_encoder.": "text_encoder", "lora_te.": "text_encoder", "text_encoder_2.": "text_encoder_2",
    "text_encoders.clip_l.transformer.": "text_encoder", "text_encoders.clip_h.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
}  # fmt: skip
FLAT = {"lora_unet_": "unet", "lora_te1_": "text_encoder", "lora_te_": "text_encoder", "lora_te2_": "text_encoder_2",
        "lora_transformer_": "transformer", "lycoris_": "unet"}  # fmt: skip
PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2")
RANKED = {"up": 1, "hada_w1_b": 0, "lokr_w2_b": 0, "lokr_w1_b": 0}  # the axis that is the rank, by factor
LONGEST_PATTERN, MOST_QUANTIFIERS = 200, 3  # of a stranger's regular expressions: more could take for ever


@dataclass(frozen=True)
class StoredLayer:
    """One layer as it lies in a file; it adds alpha / rank times the product of its factors.

    Attributes:
        part: the component of the pipeline, one of `PARTS`.
        flat: its path there, with "_" for ".", and for text encoders without `text_model`; of the UNet as diffusers or
            as the authors' single files name it.
        factors: names of the tensors, by what they are: see `lora_names`.
        rank: of the factors; None where none is of low rank, and alpha then has no meaning.
        inputs: how many numbers go in; None where the factors alone do not tell it.
        alpha: name of the tensor that holds it, the number that the header says, or None: it is the rank.
    """

    part: str
    flat: str
    factors: Mapping[str, str]
    rank: int | None
    inputs: int | None
    alpha: str | float | None

    @property
    def name(self) -> str:
        """Of one of its tensors, for messages."""
        return self.factors.get("down") or min(self.factors.values())


def stored_layers(path: Path, header: Header) -> tuple[StoredLayer, ...]:
    """Every layer of a LoRA file.

    Args:
        path: the file, for messages, and because peft writes alpha beside it.
        header: of the file.

    Raises:
        ValueError: not a LoRA, of a kind or in a layout that is not read, or with a tensor that has no place.
    """
    require_known_kind(path, header)
    tensors = sort_names(header.shapes)
    _require_one_adapter(path, header, tensors)
    config, alphas = _config(path, header), dict(tensors.alphas)
    layers = [
        _stored(path, key, factors, None if "ia3" in factors else alphas.pop(key, None), header, config)
        for key, factors in tensors.factors.items()
    ]
    if alphas:
        raise ValueError(f"LoRA {str(path)!r} has an alpha without a layer, such as {min(alphas)!r}: damaged?")
    return tuple(layers)


def is_adapter(header: Header) -> bool:
    """Whether a file holds a LoRA or one of its relatives."""
    return any(ADAPTER.search(name) for name in header.shapes)


def require_known_kind(path: Path, header: Header) -> None:
    """Refuses other kinds of adapters by their tensors' names.

    Raises:
        ValueError: which kind it is, and what to do.
    """
    subject = f"LoRA {str(path)!r}"
    if name := next(filter(OF_TRANSFORMER.match, sorted(header.shapes)), ""):
        raise ValueError(
            f"{subject} has kohya's names for a transformer (SD 3, Flux and such), such as {one_line(name, 120)!r}; "
            "LoRAs of those are read in diffusers' format ('transformer. ... .lora_A.weight'): convert it to that"
        )
    for pattern, kind in OTHER_KINDS.items():
        if any(re.search(pattern, name) for name in header.shapes):
            raise ValueError(f"{subject} is {kind}, which is not supported; merge it into its base and give that")
    if not is_adapter(header):
        raise ValueError(f"{str(path)!r} is not a LoRA; a whole model is given as the base")


def lora_context_width(layers: Sequence[StoredLayer]) -> int | None:
    """Width of the text states that the base's UNet attends to; None if no layer of the file tells it."""
    to_text, of_text = ("attn2_to_k", "attn2_to_v"), ("self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj")
    widths = [layer.inputs for layer in layers if layer.part == "unet" and layer.flat.endswith(to_text)]
    if not any(layer.part == "text_encoder_2" for layer in layers):
        widths += [layer.inputs for layer in layers if layer.part == "text_encoder" and layer.flat.endswith(of_text)]
    return max(filter(None, widths), default=None)


def _require_one_adapter(path: Path, header: Header, tensors: NamedTensors) -> None:
    others, adapters = tensors.others, tensors.adapters
    if others:
        raise ValueError(
            f"LoRA {str(path)!r}: {len(others)} of {len(header.shapes)} tensors are no part of a LoRA, such as "
            f"{one_line(min(others), 120)!r}, so it could only be applied in part; merge it into its base and give that"
        )
    if len(adapters) > 1:
        raise ValueError(
            f"LoRA {str(path)!r} holds {len(adapters)} adapters ({', '.join(sorted(adapters))}); save one alone"
        )


def _stored(
    path: Path, key: str, factors: Mapping[str, str], alpha: str | None, header: Header, config: Mapping[str, Any]
) -> StoredLayer:
    if not is_whole(factors):
        has = ", ".join(sorted(factors))
        kind = next((kind for start, kind in HALVES_OF.items() if any(each.startswith(start) for each in factors)), "")
        advice = (
            f"of it, as a {kind} is not read; merge it into its base and give that"
            if kind
            else "of it; download it again"
        )
        raise ValueError(f"LoRA {str(path)!r}: of layer {key!r} there is only {has}, a half or less {advice}")
    shapes = {factor: header.shapes[name] for factor, name in factors.items()}
    if any(
        len(shapes[factor]) not in (2, 4) or not all(shapes[factor]) for factor in (*RANKED, "down") if factor in shapes
    ):
        raise ValueError(f"LoRA {str(path)!r}: {key!r} has factors of {len(shapes)} odd shapes; they do not fit")
    if "down" in shapes and "mid" not in shapes and shapes["down"][0] != shapes["up"][1]:
        raise ValueError(
            f"LoRA {str(path)!r}: halves of {key!r} of shapes {shapes['down']} and {shapes['up']} do not fit; damaged?"
        )
    rank = next((shapes[factor][axis] for factor, axis in RANKED.items() if factor in shapes), None)
    inputs = _inputs(shapes)
    part, dotted = _place(key)
    flat = dotted.replace(".", "_").removeprefix("" if part == "unet" else "text_model_")
    number = alpha if alpha else _alpha(path, part, dotted, rank, config, factors)
    return StoredLayer(part, flat, factors, rank, inputs, number)


def _inputs(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """How many numbers go into a layer, by the shapes of its factors; for convolutions more than that."""
    for factor in ("down", "hada_w1_b"):
        if factor in shapes:
            return shapes[factor][1]
    last = [shapes[factor][-1] for factor in ("lokr_w1", "lokr_w1_b", "lokr_w2", "lokr_w2_b") if factor in shapes]
    return math.prod(last) if last else None


def _place(key: str) -> tuple[str, str]:
    """Which part of a pipeline a layer belongs to, and its path there."""
    for prefix, part in FLAT.items():
        if key.startswith(prefix):
            return part, key.removeprefix(prefix)
    part, rest = "", key
    while prefix := next((prefix for prefix in PREFIXES if rest.startswith(prefix)), ""):
        part, rest = part or PREFIXES[prefix], rest.removeprefix(prefix)
    return part or ("text_encoder" if rest.startswith(("text_model.", "encoder.layers.")) else "unet"), rest


def _config(path: Path, header: Header) -> dict[str, Any]:
    """What peft's configuration was, from the header or from the file that peft writes beside it."""
    beside = path.with_name(PEFT_CONFIG)
    text = header.metadata.get(ADAPTER_METADATA)
    of_peft = any(".lora_A" in name or name.startswith("base_model.model.") for name in header.shapes)
    if text is None and beside.is_file() and of_peft:
        text = beside.read_text(encoding="utf-8", errors="replace")
    try:
        config = json.loads(text or "{}")
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise ValueError(f"LoRA {str(path)!r}: what it says of rank and alpha is not a JSON object; save it again")
    return config


def _alpha(
    path: Path, part: str, dotted: str, rank: int | None, config: Mapping[str, Any], factors: Mapping[str, str]
) -> float | None:
    """The alpha that the configuration gives one layer."""
    own = {key.removeprefix(f"{part}."): value for key, value in config.items() if key.startswith(f"{part}.")}
    of_parts = tuple(f"{name}." for name in PARTS)
    own = own or {key: value for key, value in config.items() if not key.startswith(of_parts)}
    subject = f"LoRA {str(path)!r}"
    if own.get("lora_bias") or (own.get("use_dora") and not factors.keys() & MAGNITUDES):
        raise ValueError(f"{subject} has biases, or is a DoRA without magnitudes; merge it into its base and give that")
    if rank is None and own.get("alpha") != own.get("r"):
        raise ValueError(f"{subject} is a LoKr of peft's without low rank and with an alpha; merge it into its base")
    alpha = _patterned(path, own.get("alpha_pattern") or {}, dotted)
    alpha = own.get("lora_alpha", own.get("alpha")) if alpha is None else alpha
    if alpha is None or rank is None:
        return None
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ValueError(f"{subject}: alpha {one_line(repr(alpha), 40)} of {dotted!r}; expected a number")
    return float(alpha) * (math.sqrt(rank) if own.get("use_rslora") else 1.0)


def _patterned(path: Path, patterns: Any, dotted: str) -> Any:
    """What the first pattern gives that a layer's path ends with, as peft reads them; None where none does.

    Raises:
        ValueError: no regular expression, or one that could take for ever.
    """
    if not isinstance(patterns, dict) or not all(map(_is_simple, patterns)):
        raise ValueError(
            f"LoRA {str(path)!r}: its alphas are given by patterns that are not read; merge it into its base"
        )
    for pattern, alpha in patterns.items():
        below = pattern.replace("text_model.", "")
        if re.fullmatch(rf"(?:.*\.)?(?:{below})", dotted.removeprefix("text_model.")):
            return alpha
    return None


def _is_simple(pattern: str) -> bool:
    """Whether a stranger's regular expression can be matched without a thought for how long that takes."""
    quantified = len(re.findall(r"[*+?{]", pattern)) <= MOST_QUANTIFIERS and not re.search(r"\)[*+?{]|\\\d", pattern)
    try:
        return bool(quantified and len(pattern) <= LONGEST_PATTERN and re.compile(pattern))
    except (re.error, RecursionError, OverflowError):
        return False


def layer_rows(layers: Sequence[StoredLayer]) -> Iterator[tuple[str, str]]:
    """Rows for a terminal: how many layers of each part, ranks, and where alpha is said."""
    usual = ("unet", "text_encoder") if all(layer.part != "transformer" for layer in layers) else ("transformer",)
    for part in PARTS:
        own = [layer for layer in layers if layer.part == part]
        ranks = sorted({layer.rank for layer in own if layer.rank})
        rank = f", rank {', '.join(map(str, ranks[:6]))}" if ranks else ""
        if own or part in usual:
            yield part, f"{len(own)} layers{rank}" if own else "no layer"
    silent = sum(layer.alpha is None and layer.rank is not None for layer in layers)
    yield "alpha", "in the file" if not silent else f"not said for {silent} layers: taken as the rank, as trainers do"
