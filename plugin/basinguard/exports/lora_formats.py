"""A LoRA's tensors under the names of two formats: kohya's and diffusers', in memory or as they lie in a file.

Kohya's format is what A1111, Forge, ComfyUI, InvokeAI and SD.Next read; diffusers reads both. Strength is the trap: a
layer adds alpha / rank * up @ down, and diffusers' own conversion to kohya's format writes alpha = rank. Here every
layer carries the alpha it acts with.

For Stable Diffusion XL kohya's names are others: the UNet's layers are called as in the authors' single files, and the
text encoders are `lora_te1` and `lora_te2`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from .fingerprints import state_dict_sha256
from .original_layout import name_in
from .stored_tensors import StoredTensor

T = TypeVar("T")  # a torch tensor, or a `StoredTensor`
Layer = tuple[T, T, float]  # down [r, in], up [out, r], alpha
Layers = dict[str, Layer[T]]  # by "unet.path.to.layer"
KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
XL_KOHYA = {**KOHYA, "text_encoder": "lora_te1"}
HALVES = (".lora_down.weight", ".lora_up.weight", ".lora_A.weight", ".lora_B.weight")
BELOW = "text_model."
ADAPTER_METADATA = "lora_adapter_metadata"  # where diffusers looks for rank and alpha


def lora_sha256(layers: Layers[Any]) -> str:
    """Fingerprint of a LoRA, the same in memory and in a file; of XL only in memory and in diffusers' format."""
    named = kohya_tensors(layers)
    return state_dict_sha256({k: StoredTensor.of_number(v) if isinstance(v, float) else v for k, v in named.items()})


def kohya_tensors(layers: Layers[T], name_of: Callable[[str], str] | None = None) -> dict[str, T | float]:
    """Kohya's names: `lora_unet_..._to_q.lora_down.weight`, `.lora_up.weight`, and the number `.alpha`.

    Args:
        layers: of a LoRA.
        name_of: kohya's name of a layer; by default the one for Stable Diffusion 1 and 2. See `xl_names`.
    """
    named: dict[str, T | float] = {}
    for name, (down, up, alpha) in layers.items():
        key = (name_of or _kohya_name)(name)
        named |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": alpha}
    return named


def xl_names(unet: Any) -> Callable[[str], str]:
    """Kohya's names for Stable Diffusion XL, by our names of the layers of a pipeline with this UNet.

    Example: `unet.down_blocks.1.attentions.0.proj_in` -> `lora_unet_input_blocks_4_1_proj_in`.

    Source: kohya-ss/sd-scripts, `networks/lora.py` and `library/sdxl_original_unet.py`.
    """

    def name_of(layer: str) -> str:
        part, _, path = layer.partition(".")
        if part == "unet":
            path = name_in(unet, f"{path}.weight").removesuffix(".weight")
        else:
            path = BELOW + path.removeprefix(BELOW)
        return f"{XL_KOHYA[part]}_{path}".replace(".", "_")

    return name_of


def diffusers_tensors(layers: Layers[T]) -> dict[str, T]:
    """Diffusers' (peft's) names; rank and alpha travel in the header, see `adapter_metadata`.

    The text encoders' are below `text_model`, as in the hub's files: older transformers have its layers there, and
    newer diffusers take that away where transformers have not.
    """
    halves = ((_hub_name(name), down, up) for name, (down, up, _) in layers.items())
    return {f"{name}.lora_{half}.weight": t for name, *both in halves for half, t in zip("AB", both, strict=True)}


def layers_in(tensors: Mapping[str, T], header: Mapping[str, str]) -> Layers[T]:
    """The layers of a file in either format, under diffusers' names if it has them, else under kohya's.

    Raises:
        ValueError: tensors that are not a LoRA, or a header that does not say their alpha.
    """
    names = sorted({name.removesuffix(end) for name in tensors for end in HALVES if name.endswith(end)})
    try:
        metadata = json.loads(header.get(ADAPTER_METADATA, "{}"))
        return {name: _layer_in(name, tensors, metadata) for name in names}
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"not a LoRA that basinguard wrote: {repr(error)[:200]}") from None


def adapter_metadata(layers: Layers[Any]) -> dict[str, Any]:
    """What peft's `LoraConfig` needs to restore rank and alpha, with diffusers' prefix for each part.

    Layers are named without `text_model`: peft compares ends of paths, so they fit transformers old and new.
    """
    return {
        f"{part}.{key}": value
        for part in KOHYA
        if (own := of_part(layers, part))
        for key, value in _peft_config({_path(name): layer for name, layer in own.items()}).items()
    }


def is_second_generation(layers: Layers[Any]) -> bool:
    """Whether the text that the UNet attends to is 1024 wide, as in Stable Diffusion 2."""
    widths = {down.shape[1] for name, (down, _, _) in layers.items() if name.endswith(("attn2.to_k", "attn2.to_v"))}
    return widths == {1024}


def of_part(layers: Layers[T], part: str) -> Layers[T]:
    """The layers of the UNet or of one text encoder."""
    return {name: layer for name, layer in layers.items() if name.startswith(f"{part}.")}


def commonest(layers: Iterable[Layer[Any]]) -> tuple[int, float]:
    """The commonest rank and the commonest alpha."""
    pairs = [(down.shape[0], alpha) for down, _, alpha in layers]
    rank, alpha = (Counter(column).most_common(1)[0][0] for column in zip(*pairs, strict=True))
    return int(rank), float(alpha)


def _kohya_name(name: str) -> str:
    """`unet.down_blocks.0.to_q` -> `lora_unet_down_blocks_0_to_q`; CLIP's layers are below `text_model` there."""
    if name.startswith(tuple(KOHYA.values())):
        return name
    return f"{KOHYA[name.partition('.')[0]]}_{_hub_name(name).partition('.')[2]}".replace(".", "_")


def _hub_name(name: str) -> str:
    part, _, _ = name.partition(".")
    return name if part == "unet" else f"{part}.{BELOW}{_path(name)}"


def _path(name: str) -> str:
    """A layer's path in its part, without `text_model`, which depends on the version of transformers."""
    return name.partition(".")[2].removeprefix(BELOW)


def _layer_in(name: str, tensors: Mapping[str, T], metadata: Mapping[str, Any]) -> Layer[T]:
    if f"{name}.lora_down.weight" in tensors:
        alpha: Any = tensors[f"{name}.alpha"]
        return tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"], float(alpha)
    part = name.partition(".")[0]
    alphas = {path.removeprefix(BELOW): own for path, own in metadata[f"{part}.alpha_pattern"].items()}
    alpha = alphas.get(_path(name), metadata[f"{part}.lora_alpha"])
    return tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"], float(alpha)


def _peft_config(layers: Layers[Any]) -> dict[str, Any]:
    rank, alpha = commonest(layers.values())
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(layers),
        "rank_pattern": {name: down.shape[0] for name, (down, _, _) in layers.items() if down.shape[0] != rank},
        "alpha_pattern": {name: own for name, (_, _, own) in layers.items() if own != alpha},
    }
