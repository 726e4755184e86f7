"""Adapters folded into the weights, so that every loader takes the result."""

from __future__ import annotations

import copy
from typing import Any


def merged(pipe: Any) -> Any:
    """A pipeline like `pipe` with all active LoRA adapters merged into its weights; `pipe` itself is left alone.

    Parts without adapters are shared, not copied.

    Args:
        pipe: a diffusers pipeline whose UNet or text encoder may carry peft adapters.
    """
    parts = {
        name: _folded(part) if getattr(part, "peft_config", None) else part for name, part in pipe.components.items()
    }
    options = {key: value for key, value in pipe.config.items() if key == "requires_safety_checker"}
    return type(pipe)(**parts, **options)


def _folded(module: Any) -> Any:
    """A copy without adapter layers: each is replaced by its base layer after merging."""
    module = copy.deepcopy(module)
    layers = [(name, part) for name, part in module.named_modules() if hasattr(part, "get_base_layer")]
    for name, layer in layers:
        layer.merge()
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, layer.get_base_layer())
    del module.peft_config
    for flag in ("_hf_peft_config_loaded",):
        if hasattr(module, flag):
            setattr(module, flag, False)
    return module
