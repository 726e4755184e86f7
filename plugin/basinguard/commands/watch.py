"""`basinguard watch OUTPUT_DIR --data DIR --base MODEL`: a guard beside any trainer, from outside."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..guard.plan import ProbePlan
from ..similarity.copy_detector_settings import CopyDetectorSettings
from ..watching.reaction import WatchPace, WatchReaction
from ..watching.watcher import Watcher, checkpoint_to_ship

if TYPE_CHECKING:
    from ..watching.request import WatchRequest
    from ..watching.watcher import Event


@dataclass(frozen=True)
class WatchResult:
    """What a watch wrote down.

    Attributes:
        events: one for each checkpoint.
        ok: False where a checkpoint breached the allowed risk and the watch was to end then.
        page: where to look.
        exported: what was calibrated and exported; "" where nothing was asked for.
    """

    events: list[Event]
    ok: bool
    page: Path
    exported: str = ""

    def __str__(self) -> str:
        count = Counter(event["event"] for event in self.events)
        missed = count["failed"] + count["skipped"]
        text = f"{count['measured']} models measured, {missed} not; curves and verdict: {self.page}"
        return f"{text}\n{self.exported}".rstrip()


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
    if reaction.calibrate == "best":
        _require_calibratable(data, pace, reaction)
    request = WatchRequest(output, data, base, caption, heldout, prompts, plan, detector)
    watcher = Watcher(request, pace, reaction, partial(print, flush=True))
    events = watcher.run()
    exported = _exported(request, checkpoint_to_ship(events)) if reaction.calibrate == "best" else ""
    ok = not (watcher.breached and reaction.action.kind == "exit")
    return WatchResult(events, ok, page_of(request), exported)


def _require_calibratable(data: Path, pace: WatchPace, reaction: WatchReaction) -> None:
    if not data.is_dir():
        raise ValueError(f"calibrate: needs a folder of images as data, not {data}")
    if not (pace.once or pace.idle_minutes or reaction.action.kind == "exit"):
        raise ValueError("calibrate: is done when the watch ends, which this one never does; give idle_minutes or once")


def _exported(request: WatchRequest, event: Event) -> str:
    """Calibrates the checkpoint to ship and writes it beside the page; what was promised, in words."""
    from diffusers.utils import logging as diffusers_logging

    from ..pipelines.session_settings import SessionSettings
    from ..watching.checkpoint_pipeline import write_lora_alone
    from ..watching.request import export_stem
    from .calibrate import calibrate
    from .export import export

    path, kind, plan, folder = Path(event["path"]), event["kind"], request.plan, request.folder
    if kind == "unet":
        raise ValueError(f"{path}: a LoRA or a whole model can be calibrated, this is a UNet alone")
    is_lora, name = kind.startswith("lora"), export_stem(path)
    diffusers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if kind == "lora-in-unet":
        path = folder / f"{name}.safetensors"
        write_lora_alone(Path(event["path"]), path)
    settings = SessionSettings(
        base=request.base, lora=path if is_lora else None, caption=request.caption, heldout=request.heldout,
        timesteps=plan.timesteps, scale=plan.scale,
    )  # fmt: skip
    model, out = request.base if is_lora else str(path), folder / "calibration"
    calibration = calibrate(model, data=request.data, settings=settings, detector=request.detector, out=out)
    form: Literal["kohya", "directory"] = "kohya" if is_lora else "directory"
    target = folder / f"{name}_guarded{'.safetensors' if is_lora else ''}"
    return f"{calibration}\n{export(model, out / 'record.json', target, form, settings.lora)}"


def show(result: WatchResult, arguments: dict[str, Any]) -> None:
    """Prints where to look, unless machines read along."""
    if not arguments["reaction"].json:
        print(result)
