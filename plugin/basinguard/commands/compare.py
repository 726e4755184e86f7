"""`basinguard compare MODEL --data DIR`: every mitigation of the field beside ours, in one run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..mitigations.settings import ComparisonOptions
from ..similarity.copy_detector_settings import CopyDetectorSettings

if TYPE_CHECKING:
    from ..mitigations.comparison import Comparison

OPTIONS = ComparisonOptions()


def compare(
    model: str,
    *,
    data: Path,
    mitigations: str | Sequence[str] = "all",
    base: str | None = None,
    lora: Path | None = None,
    heldout: Path | None = None,
    checkpoints: Sequence[Path] = (),
    options: ComparisonOptions = OPTIONS,
    detector: CopyDetectorSettings = CopyDetectorSettings(),
    out: Path = Path("comparison"),
    command: Sequence[str] = (),
) -> Comparison:
    """Puts every mitigation of the field beside ours, on the same prompts and noise: table, trade-off plot, JSON.

    Args:
        model: the fine-tuned model: a directory, a hub id or "tinyworld".
        data: folder of the training images it must not reproduce, with captions.
        mitigations: names with commas between them, or "all".
        base: what was fine-tuned; mitigations that need it are skipped, with the reason, when it is not known.
        lora: a LoRA file on the model, which is then the base.
        heldout: folder of images of the same subject that were not trained on, with captions: is it still learnt?
        checkpoints: a JSON list of earlier states of the run, most trained first.
        options: how much to sample.
        detector: what decides that a sample is a copy.
        out: folder of the results; a run that was stopped goes on there.
        command: the words that started the run, for the page; the command line gives them itself.

    Raises:
        FileExistsError: `out` holds points of other settings.
        FileNotFoundError, ValueError: the model or the images cannot be used; an unknown mitigation.
    """
    from ..mitigations.runner import command_line, compare

    return compare(
        model,
        data,
        mitigations=[name.strip() for name in mitigations.split(",")] if isinstance(mitigations, str) else mitigations,
        base=base,
        lora=lora,
        heldout=heldout,
        checkpoints=checkpoints,
        options=options,
        detector=detector,
        out=out,
        command=command_line(command) if command else "",
    )


def show(comparison: Comparison, arguments: dict[str, Any]) -> None:
    """Prints the table, and where the page is."""
    from ..mitigations.report import comparison_table

    out = arguments["out"]
    print(f"{comparison_table(comparison)}\n\n{out / 'comparison.html'}   {out / 'comparison.json'}")
