"""`basinguard compare MODEL --data DIR`: every mitigation of the field beside ours, in one run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..mitigations.settings import ComparisonOptions
from ..similarity.copy_detector_settings import CopyDetectorSettings

if TYPE_CHECKING:
    from ..mitigations.comparison import Comparison
    from ..sessions.dry_run import DryRun


def compare(
    model: str,
    *,
    data: Path,
    options: ComparisonOptions = ComparisonOptions(),
    detector: CopyDetectorSettings = CopyDetectorSettings(),
    out: Path = Path("comparison"),
    dry_run: bool = False,
    command: Sequence[str] = (),
) -> Comparison | DryRun:
    """Puts every mitigation of the field beside ours, on the same prompts and noise: table, trade-off plot, JSON.

    Args:
        model: the fine-tuned model: a directory, a hub id or "tinyworld".
        data: folder of the training images it must not reproduce, with captions.
        options: what to compare, and how much to sample.
        detector: what decides that a sample is a copy.
        out: folder of the results; a run that was stopped goes on there.
        dry_run: open the model, say what it would take on this machine, and measure nothing.
        command: the words that started the run, for the page; the command line gives them itself.

    Raises:
        FileExistsError: `out` holds points of other settings.
        FileNotFoundError, ValueError: the model or the images cannot be used; an unknown mitigation.
    """
    from ..mitigations.runner import command_line, run_comparison

    if dry_run:
        from ..sessions.dry_run import comparison_dry_run

        return comparison_dry_run(model, data, options, detector)
    return run_comparison(
        model,
        data,
        options,
        detector=detector,
        out=out,
        command=command_line(command) if command else "",
    )


def show(comparison: Comparison | DryRun, arguments: dict[str, Any]) -> None:
    """Prints the table, and where the page is; or what it would take."""
    from ..mitigations.comparison import Comparison
    from ..mitigations.report import comparison_table

    if not isinstance(comparison, Comparison):
        print(comparison)
        return
    out = arguments["out"]
    print(f"{comparison_table(comparison)}\n\n{out / 'comparison.html'}   {out / 'comparison.json'}")
