"""The node: model in, model out that follows the rule of a record, whatever sampler it goes into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .rule import guide, parse, read_record, rule_of

PASTED = "pasted below"
KINDS = ("loras", "checkpoints", "diffusers")


class BasinguardRule:
    """Steers guidance by the record that a LoRA, a checkpoint, a directory or a JSON text carries."""

    CATEGORY = "sampling"
    DESCRIPTION = (
        "Follows a basinguard record: its own scale above the noise level of its transition, CFG from there on."
    )
    FUNCTION = "steer"
    RETURN_TYPES = ("MODEL", "STRING")
    RETURN_NAMES = ("model", "rule")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Files that may carry a record, by kind and name."""
        return {
            "required": {"model": ("MODEL",), "source": ([*_files(), PASTED],)},
            "optional": {"record": ("STRING", {"multiline": True, "default": ""})},
        }

    @classmethod
    def IS_CHANGED(cls, source: str, record: str = "", **_: Any) -> Any:
        """Reads a file again when it was replaced."""
        return record if source == PASTED else _path(source).stat().st_mtime_ns

    def steer(self, model: Any, source: str, record: str = "") -> tuple[Any, str]:
        """The model with the rule on it, and the rule in words.

        Raises:
            ValueError: no record there, a rule that cannot be followed entirely, a model that is not sampled by Stable
                Diffusion's noise levels, or guidance that another node has changed already.
        """
        rule = rule_of(parse(record) if source == PASTED else read_record(_path(source)))
        if rule.plain:
            return model, str(rule)
        levels = getattr(model.get_model_object("model_sampling"), "sigmas", None)
        if levels is None or not float(levels.min()) <= rule.sigma <= float(levels.max()) or float(levels.max()) <= 1:
            raise ValueError(f"the rule switches at noise level {rule.sigma:.4g}, which this model does not have")
        if "sampler_cfg_function" in model.model_options:
            raise ValueError("another node has changed the guidance of this model; take that node out")
        steered = model.clone()
        steered.set_model_sampler_cfg_function(guide(rule), disable_cfg1_optimization=True)
        return steered, str(rule)


def _files() -> list[str]:
    """`kind/name` of every file that may carry a record."""
    import folder_paths  # ComfyUI's own

    names = [f"{kind}/{name}" for kind in KINDS[:2] for name in folder_paths.get_filename_list(kind)]
    folders = [Path(folder) for folder in folder_paths.get_folder_paths("diffusers")]
    exports = [p.parent.name for folder in folders if folder.is_dir() for p in folder.glob("*/basinguard.json")]
    return [*(name for name in names if name.endswith(".safetensors")), *(f"diffusers/{name}" for name in exports)]


def _path(source: str) -> Path:
    import folder_paths

    kind, _, name = source.partition("/")
    if kind not in KINDS:
        raise ValueError(f"{source!r}: expected one of the listed files, or {PASTED!r}")
    if kind != "diffusers":
        return Path(folder_paths.get_full_path_or_raise(kind, name))
    folders = [Path(folder) / name for folder in folder_paths.get_folder_paths(kind)]
    return next((folder for folder in folders if folder.is_dir()), folders[0])
