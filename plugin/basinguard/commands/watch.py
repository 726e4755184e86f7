"""`basinguard watch OUTPUT_DIR --data DIR --base MODEL`: a guard beside any trainer, from outside."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..guard.plan import ProbePlan
from ..similarity.copy_detector_settings import CopyDetectorSettings
from ..watching.watcher import Watcher, WatchPace, WatchReaction

if TYPE_CHECKING:
    from ..watching.watcher import Event


@dataclass(frozen=True)
class WatchResult:
    """What a watch wrote down.

    Attributes:
        events: one for each checkpoint.
        ok: False where a checkpoint breached the allowed risk and the watch was to end then.
        page: where to look.
    """

    events: list[Event]
    ok: bool
    page: Path

    def __str__(self) -> str:
        measured = sum(event["event"] == "measured" for event in self.events)
        return f"{measured} models measured, {len(self.events) - measured} not; curves and verdict: {self.page}"


def watch(
    output: Path,
    *,
    data: Path,
    base: str,
    caption: str = "",
    heldout: Path | None = None,
    prompts: Path | None = None,
    plan: ProbePlan = ProbePlan(),
    detector: CopyDetectorSettings = CopyDetectorSettings(),
    pace: WatchPace = WatchPace(),
    reaction: WatchReaction = WatchReaction(),
) -> WatchResult:
    """Probes every checkpoint that any trainer writes to a folder; starts before, during or after training.

    Args:
        output: the trainer's output folder; what is written goes to its folder `basinguard`.
        data: folder of captioned training images, or the trainer's own file that names them (sd-scripts' TOML,
            OneTrainer's concepts, SimpleTuner's backends, ai-toolkit's YAML).
        base: the model that is fine-tuned: a directory, a single file or a hub id.
        caption: of images that have none of their own, such as a DreamBooth's instance prompt.
        heldout: folder of captioned images that are not trained on.
        prompts: text file of prompts that are not trained on, one a line.
        plan: how much is measured of each checkpoint.
        detector: what decides that a sample is a copy.
        pace: when it looks, and when it ends.
        reaction: what is told, and done where a checkpoint breaches the allowed risk.

    Raises:
        FileNotFoundError: no such data, base or prompts.
        ValueError: somebody watches this folder already, or a number out of range.
    """
    from ..watching.request import WatchRequest
    from ..watching.watcher import page_of

    if heldout is not None and prompts is not None:
        raise ValueError(f"heldout={heldout} and prompts={prompts}: the folder's captions are the prompts; give one")
    request = WatchRequest(output, data, base, caption, heldout, prompts, plan, detector)
    watcher = Watcher(request, pace, reaction, partial(print, flush=True))
    events = watcher.run()
    return WatchResult(events, not (watcher.breached and reaction.action.kind == "exit"), page_of(request))


def show(result: WatchResult, arguments: dict[str, Any]) -> None:
    """Prints where to look, unless machines read along."""
    if not arguments["reaction"].json:
        print(result)
