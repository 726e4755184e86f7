"""The rule of a record as a function that ComfyUI asks for its guidance at every evaluation; torch alone.

Above the record's noise level the guidance scale is the record's `before`, from there on its `after`, or the cfg of the
sampler where the record leaves that open. It goes by the noise level itself, so it is right for every sampler,
scheduler and number of steps.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HEADER_KEY, SCHEDULER_KEYS = "basinguard.record", ("_basinguard", "basinguard")
RECORD_FILE, SCHEDULER_FILE = "basinguard.json", "scheduler/scheduler_config.json"
LONGEST = 16 * 2**20  # bytes of a header or record
ALWAYS_ON = 999.0  # a transition there: plain CFG
SLACK = 5e-4  # by which two libraries' noise levels of one timestep may differ; of neighbours it is ten times as much


@dataclass(frozen=True)
class Rule:
    """Two guidance scales and the noise level between them.

    Attributes:
        sigma: noise level at the transition.
        before: scale above it.
        after: scale from there on; None for the sampler's cfg.
        measured: the cfg that the record was measured at.
        plain: whether there is nothing to steer.
    """

    sigma: float
    before: float
    after: float | None
    measured: float
    plain: bool

    def scale(self, sigma: Tensor, cfg: float) -> Tensor:
        """The scale at noise levels [B], [B]."""
        after = cfg if self.after is None else self.after
        return torch.where(sigma > self.sigma * (1 + SLACK), self.before, after)

    def __str__(self) -> str:
        after = (
            f"cfg {self.after:g}" if self.after is not None else f"the sampler's cfg (measured at {self.measured:g})"
        )
        if self.plain:
            return f"plain CFG from the first step: {after}"
        return f"scale {self.before:g} above sigma {self.sigma:.4g}, then {after}"


def guide(rule: Rule) -> Callable[[dict[str, Any]], Tensor]:
    """What ComfyUI calls instead of its own guidance: from both denoised predictions to input less the result."""

    def guided(args: dict[str, Any]) -> Tensor:
        x, cond, uncond = args["input"], args["cond_denoised"], args["uncond_denoised"]
        scale = rule.scale(args["sigma"].float(), float(args["cond_scale"])).to(x)
        return x - (uncond + scale.reshape(-1, *[1] * (x.ndim - 1)) * (cond - uncond))

    return guided


def rule_of(record: dict[str, Any]) -> Rule:
    """The rule of a record, entirely or not at all.

    Raises:
        ValueError: not a record, or a rule that is more than two scales.
    """
    try:
        guidance, measured = record["guidance"], float(record["sampler"]["scale"])
        transition, sigma, before = (float(guidance[name]) for name in ("transition", "sigma", "before"))
        after = None if guidance.get("after") is None else float(guidance["after"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a basinguard record ({error!r})") from None
    if guidance.get("anchor") or guidance.get("refine", 1) != 1:
        raise ValueError("this record's rule needs the base model's prediction or a finer grid; the node has neither")
    return Rule(sigma, before, after, measured, transition >= ALWAYS_ON or before == after)


def read_record(path: str | Path) -> dict[str, Any]:
    """The record in a LoRA, single file, exported directory or JSON file.

    Raises:
        FileNotFoundError: no such file, or a directory without a record.
        ValueError: there is no record in it.
    """
    path = Path(path)
    if path.is_dir():
        name = next((name for name in (RECORD_FILE, SCHEDULER_FILE) if (path / name).is_file()), None)
        if name is None:
            raise FileNotFoundError(f"{path}: no {RECORD_FILE} in it, so no export of basinguard")
        return read_record(path / name)
    if path.suffix == ".safetensors":
        return parse(_header(path).get("__metadata__", {}).get(HEADER_KEY), path)
    if path.stat().st_size > LONGEST:
        raise ValueError(f"{path}: too long for a record")
    whole = parse(path.read_text(encoding="utf-8"), path)
    stored = next((whole[key] for key in SCHEDULER_KEYS if key in whole), None)
    return whole if stored is None else parse(stored, path)


def parse(text: Any, source: object = "the text") -> dict[str, Any]:
    """A record's JSON.

    Raises:
        ValueError: it is none.
    """
    try:
        parsed = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise ValueError(f"{source}: no basinguard record in it")
    return parsed


def _header(path: Path) -> dict[str, Any]:
    """Source: https://github.com/huggingface/safetensors#format"""
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else LONGEST + 1
        if length > LONGEST:
            raise ValueError(f"{path}: not a safetensors file")
        return parse(file.read(length), path)
