"""What a comparison samples, and what identifies its run, so that points of two runs are never mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.files import write_text
from ..core.metric import Metric
from ..core.schema import Schema
from ..pipelines.session_settings import SessionSettings


@dataclass(frozen=True, kw_only=True)
class ComparisonOptions(SessionSettings):
    """What to compare and how much of it to sample; the rest as in `SessionSettings`.

    Attributes:
        mitigations: names with commas between them, or "all".
        checkpoints: a list of earlier states of the run, most trained first; `ours` chooses among them too.
        captions: how many training captions, spread evenly over the set; None for all.
        per_caption: seeds for each.
        first_look: each mitigation at its default intensity alone.
        costs: also measure time and memory of each mitigation; not at a first look.
    """

    mitigations: str | Sequence[str] = "all"
    checkpoints: Sequence[Path] = ()
    captions: int | None = None
    per_caption: int = 4
    timesteps: int = 50
    first_look: bool = False
    costs: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_caption < 1 or (self.captions is not None and self.captions < 1):
            raise ValueError(f"{self}: expected at least 1 caption and 1 seed each")

    @property
    def names(self) -> list[str]:
        """Of the mitigations asked for."""
        listed = self.mitigations.split(",") if isinstance(self.mitigations, str) else self.mitigations
        return [name.strip() for name in listed]


class ComparisonSettings(Schema):
    """What two points must share to stand in one table."""

    model: str
    base: str | None
    checkpoints: tuple[str, ...] = ()
    data: str
    heldout: str | None
    weights_sha256: str
    dataset_sha256: str
    metric: Metric
    aligned_by: str
    captions: int
    per_caption: int
    first_seed: int
    timesteps: int
    scale: float


def require_same_settings(path: Path, settings: ComparisonSettings) -> None:
    """Writes the identity of a new run; refuses to mix points into a run of another one.

    Raises:
        FileExistsError: the first setting that differs, with both values.
    """
    if not path.is_file():
        write_text(path, settings.to_json())
        return
    there = ComparisonSettings.from_json(path.read_text(encoding="utf-8"))
    differing = [name for name in ComparisonSettings.model_fields if getattr(there, name) != getattr(settings, name)]
    if differing:
        name = differing[0]
        raise FileExistsError(
            f"{path.parent} holds points of a run with {name}={getattr(there, name)!r}, now it is "
            f"{getattr(settings, name)!r}: name another folder with --out, or start as before to go on"
        )
