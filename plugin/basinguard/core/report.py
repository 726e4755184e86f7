"""What one probe of the guard measured: a report made of parts, one for each stage of the probe.

In JSON a report is flat, so that it reads as one list of numbers: `gaps.excess` stands there as `gap_excess`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from .estimate import Estimate
from .report_parts import Basin, CaptionGroup, CriticalScales, Gaps, Heldout, ImageResult, Part, Samples
from .schema import Finite, Schema
from .text import epoch_name

PARTS: dict[str, type[Part]] = {
    "samples": Samples,
    "basin": Basin,
    "gaps": Gaps,
    "critical_scales": CriticalScales,
    "heldout": Heldout,
}
KEYS = {name: [f.alias or key for key, f in part.model_fields.items()] for name, part in PARTS.items()}
JSON_ORDER = (
    *("epoch", "train_step", "risk", "width", "exit", "transition", "gap", "gap_heldout", "similarity_p95"),
    *("similarity_heldout", "risk_uncond", "alignment", "curve", "exits", "unet_evals", "seconds", "problem"),
    *("log_width", "gap_since_base", "gap_excess", "gap_auc", "sigma_c", "sigma_c_uncond", "sigma_c_since_base"),
    *("sigma_c_excess", "caption_gap", "groups", "images", "probed", "precision", "note", "alignment_heldout"),
    *("taught", "taught_rulers", "taught_problem", "risk_alone"),
)


RETIRED = ("fidelity",)  # keys of earlier versions; `taught` says it


class Report(Schema):
    """What the guard saw at one epoch. Epoch -1 is the untouched base model.

    Attributes:
        samples, basin, gaps, critical_scales, heldout: one part for each stage; empty where the stage was left out.
        groups: risk and width by kind of caption.
        images: the training images that were looked at, those whose caption's gap rose most first.
        probed: training captions that were sampled; what `basin.exits` count in.
        unet_evals: rows put through the network.
        precision: what the probe's budget bought.
        note: what the reader should know before acting on the numbers.
        problem: why the report was missed: the probe of that epoch failed, and nothing was measured.
    """

    epoch: int
    train_step: int
    unet_evals: int
    seconds: Finite
    samples: Samples = Samples()
    basin: Basin = Basin()
    gaps: Gaps = Gaps()
    critical_scales: CriticalScales = CriticalScales()
    heldout: Heldout = Heldout()
    groups: tuple[CaptionGroup, ...] = ()
    images: tuple[ImageResult, ...] = ()
    probed: tuple[int, ...] = ()
    precision: str = ""
    note: str = ""
    problem: Annotated[str, Field(max_length=500)] = ""

    def __str__(self) -> str:
        """One line: what a person asks first. Everything is in `to_json()`.

        Example:
            >>> print(Report.missed(3, 120, "out of memory"))
            epoch 4, update 120: missed (out of memory)
        """
        where = f"{epoch_name(self.epoch)}, update {self.train_step}"
        if self.problem:
            return f"{where}: missed ({self.problem})"
        shown = {"risk": self.samples.risk, "taught": self.heldout.taught, "gap excess": self.gaps.excess}
        parts = [f"{name} {value.interval()}" for name, value in shown.items() if value is not None]
        return f"{where}: {', '.join([*parts, f'{self.unet_evals:,} evaluations', f'{self.seconds:.0f} s'])}"

    @property
    def searched(self) -> bool:
        """Whether exits were looked for: only then does a transition of None say that none protects."""
        return self.basin.width is not None

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Every estimate that was measured, by its name in JSON and log tags."""
        values = {key: value for name in PARTS for key, value in _by_key(getattr(self, name)).items()}
        return {key: value for key, value in values.items() if isinstance(value, Estimate)}

    @classmethod
    def missed(cls, epoch: int, train_step: int, problem: str) -> Report:
        """What a failed probe leaves.

        Example:
            >>> Report.missed(3, 120, "out of memory").samples.risk is None
            True
        """
        return cls(epoch=epoch, train_step=train_step, unet_evals=0, seconds=0.0, problem=problem[:500])

    @model_validator(mode="before")
    @classmethod
    def _group(cls, data: Any) -> Any:
        """The flat form's keys, gathered into their parts."""
        if not isinstance(data, dict):
            return data
        parts = {name: {key: data[key] for key in keys if key in data} for name, keys in KEYS.items()}
        grouped = {*RETIRED, *(key for keys in KEYS.values() for key in keys)}
        own = {key: value for key, value in data.items() if key not in grouped}
        return own | {name: values for name, values in parts.items() if values}

    @model_serializer(mode="wrap")
    def _flatten(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data = handler(self)
        flat = {key: value for name in PARTS for key, value in data.pop(name, {}).items()} | data
        return {key: flat[key] for key in JSON_ORDER if key in flat}


def _by_key(part: Part) -> dict[str, Any]:
    return {field.alias or name: getattr(part, name) for name, field in type(part).model_fields.items()}


def measured(history: Sequence[Report]) -> list[Report]:
    """The reports that were not missed, in their order."""
    return [report for report in history if not report.problem]


def last_search(history: Sequence[Report]) -> Report | None:
    """The newest report that looked for exits; its transition stands until another one does."""
    return next((report for report in reversed(history) if report.searched), None)
