"""`basinguard compare MODEL --data DIR`: every mitigation of the field beside ours, in one run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..mitigations.setting import Plans

if TYPE_CHECKING:
    from ..mitigations.comparison import Comparison


def compare(
    model: str,
    *,
    data: Path,
    methods: str | Sequence[str] = "all",
    base: str | None = None,
    heldout: Path | None = None,
    checkpoints: Sequence[Path] = (),
    plans: Plans = Plans(),
    align: str = "auto",
    metric: Path | None = None,
    out: Path = Path("comparison"),
    command: str = "",
) -> Comparison:
    """Puts every mitigation of the field beside ours, on the same prompts and noise: table, trade-off plot, JSON.

    Args:
        model: the fine-tuned model: a directory, a hub id or "tinyworld".
        data: folder of the training images it must not reproduce, with captions.
        methods: names with commas between them, or "all".
        base: what was fine-tuned; methods that need it are skipped, with the reason, when it is not known.
        heldout: folder of images of the same subject that were not trained on, with captions: is it still learnt?
        checkpoints: a JSON list of earlier states of the run, most trained first.
        plans: how much to sample.
        align: an open_clip model that scores captions; "auto" has one for TinyWorld alone, "none" leaves it out.
        metric: JSON file that says what a copy is, for images that need a threshold of their own.
        out: folder of the results; a run that was stopped goes on there.
        command: how the run was started, for the page; the command line says it itself.

    Raises:
        FileExistsError: `out` holds points of other settings.
        FileNotFoundError, ValueError: the model or the images cannot be used; an unknown method.
    """
    from ..core.metric import Metric
    from ..mitigations.runner import compare

    return compare(
        model,
        data,
        methods=[name.strip() for name in methods.split(",")] if isinstance(methods, str) else methods,
        base=base,
        heldout=heldout,
        checkpoints=checkpoints,
        plans=plans,
        align=align,
        metric=Metric.from_json(metric.read_text(encoding="utf-8")) if metric else None,
        out=out,
        command=command,
    )


def show(comparison: Comparison, arguments: dict[str, Any]) -> None:
    """Prints the table, and where the page is."""
    from ..mitigations.runner import table

    out = arguments["out"]
    print(f"{table(comparison)}\n\n{out / 'comparison.html'}   {out / 'comparison.json'}")
