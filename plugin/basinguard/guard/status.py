"""Where a run stands: verdict, forecast and the epochs to ship, read off its reports in one go."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

from ..core.progress import shown, working
from ..core.report import Report
from ..core.schema import MAX_BYTES, Schema
from ..core.text import epoch_name
from .checkpoint_selection import EpochChoice, SamplingMode, choose_checkpoint
from .forecast import Forecast, forecast
from .verdict import Verdict, verdict_on


class RunStatus(Schema):
    """What `guard.json` holds beside the reports.

    Attributes:
        alpha: risk that is allowed.
        verdict, forecast: of the newest report.
        plain, guarded: the epochs to ship for plain CFG and for guarded sampling, None where none keeps the risk.
        unknowable: what these numbers cannot tell about this training set, in words.
    """

    alpha: float
    verdict: Verdict
    forecast: Forecast
    plain: EpochChoice | None
    guarded: EpochChoice | None
    unknowable: tuple[str, ...] = ()

    def __str__(self) -> str:
        ship = {"plain CFG": self.plain, "guarded sampling": self.guarded}
        lines = [f"**{self.verdict.state}**, {'; '.join(self.verdict.evidence)}", "", f"Forecast: {self.forecast}", ""]
        for how, choice in ship.items():
            words = f"{epoch_name(choice.epoch)}: {choice.why}" if choice else "no epoch keeps the allowed risk"
            lines.append(f"- for {how}, {words}")
        return "\n".join([*lines, *(f"- not known: {what}" for what in self.unknowable)])


class GuardFile(Schema):
    """`guard.json`: everything a run knows about itself so far.

    Attributes:
        status: verdict, forecast and the epochs to ship.
        history: one report per epoch.
        image_sha256: content hash of each training image's file, in the order that reports count them in.
    """

    schema_version: Literal[2] = 2
    status: RunStatus
    history: tuple[Report, ...]
    image_sha256: tuple[str, ...] = ()


def run_status(
    history: Sequence[Report],
    alpha: float,
    unknowable: Sequence[str] = (),
    ship: Mapping[SamplingMode, EpochChoice | None] | None = None,
) -> RunStatus:
    """Where a run stands; pure and without a model, in milliseconds.

    Args:
        history: reports in their order.
        alpha: risk that is allowed.
        unknowable: see `RunStatus`.
        ship: the epochs to ship, where they were chosen already.
    """
    ship = ship or {how: choose_checkpoint(history, alpha, how) for how in get_args(SamplingMode)}
    return RunStatus(
        alpha=alpha,
        verdict=verdict_on(history, alpha),
        forecast=forecast(history, alpha),
        plain=ship["plain"],
        guarded=ship["guarded"],
        unknowable=tuple(unknowable),
    )


@contextmanager
def telling(
    history: Sequence[Report], status: RunStatus | None, epoch: int, *, limit: int, silent: bool = False
) -> Iterator[None]:
    """Inside, a probe says how far it is, by the cost of those before or else its limit, and what the last came to."""
    if silent:
        yield
        return
    most = max((report.unet_evals for report in history), default=limit)
    word = status.verdict.state if status and status.verdict.level >= 0 else ""
    with shown(), working(f"probe of {epoch_name(epoch)}", most, word):
        yield


def read_history(path: Path) -> list[Report]:
    """The reports of a `guard.json`, also of the older form that is a bare list of them.

    Raises:
        ValueError: not such a file, or too large.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        text = file.read(16 * MAX_BYTES + 1)
    if len(text) > 16 * MAX_BYTES:
        raise ValueError(f"{path}: more than {16 * MAX_BYTES} bytes, so not a guard.json")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: not JSON, so not a guard.json") from None
    rows = data.get("history") if isinstance(data, dict) else data
    if not isinstance(rows, list):
        raise ValueError(f"{path}: neither a list of reports nor an object with a history, so not a guard.json")
    return [Report.from_json(json.dumps(row)) for row in rows]
