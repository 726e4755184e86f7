"""Adapters folded into the weights, so that every loader takes the result."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

M = TypeVar("M")
OPTIONS = ("requires_safety_checker", "force_zeros_for_empty_prompt", "is_distilled")  # of a class, beside its parts


def merged(pipe: DiffusionPipeline) -> Any:
    """A pipeline like `pipe` with all active LoRA adapters merged into its weights; `pipe` itself is left alone.

    Parts without adapters are shared, not copied.

    Args:
        pipe: a diffusers pipeline whose UNet or text encoders may carry peft adapters.
    """
    return _remade(pipe, merge=True)


def without_adapters(pipe: DiffusionPipeline) -> Any:
    """A pipeline like `pipe` with all adapters left out: the base model; `pipe` itself is left alone."""
    return _remade(pipe, merge=False)


def _remade(pipe: DiffusionPipeline, *, merge: bool) -> Any:
    parts = {
        name: folded(part, merge=merge) if getattr(part, "peft_config", None) else part
        for name, part in pipe.components.items()
    }
    options = {key: value for key, value in pipe.config.items() if key in OPTIONS}
    if hasattr(pipe, "watermark"):  # XL's
        options["add_watermarker"] = pipe.watermark is not None
    whole = type(pipe)(**parts, **options)
    if name := pipe.config.get("_name_or_path"):  # says of some models what they are
        whole.register_to_config(_name_or_path=name)
    return whole


def folded(module: M, *, merge: bool = True) -> M:
    """A copy of a module without adapter layers: each is replaced by its base layer, after merging unless told not to.

    Raises:
        ValueError: an adapter's weights are not finite; peft says which.
    """
    plain: Any = copy.deepcopy(module)
    layers = [(name, part) for name, part in plain.named_modules() if hasattr(part, "get_base_layer")]
    for name, layer in layers:
        if merge:
            layer.merge(safe_merge=True)
        parent, _, last = name.rpartition(".")
        setattr(plain.get_submodule(parent), last, layer.get_base_layer())
    if hasattr(plain, "peft_config"):
        del plain.peft_config
        plain._hf_peft_config_loaded = False  # what diffusers' own unload_lora resets
        _forget_adapter_names(plain)
    return plain  # type: ignore[no-any-return]


def _forget_adapter_names(module: Any) -> None:
    """Early transformers 5 saves a model under names turned as those of the adapter file were that it last read."""
    conversions = getattr(module, "_weight_conversions", None)
    if conversions:
        module._weight_conversions = [
            c for c in conversions if "base_model.model" not in str(getattr(c, "source_patterns", ""))
        ]
