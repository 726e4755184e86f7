"""Compares every mitigation of the field with ours, on the same prompts and the same noise, in one run.

Each point is written as soon as it is measured, so a run that is stopped goes on where it was; points of other
settings are refused, never mixed in.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ..core import seeds as seed_table
from ..core.files import write_text
from ..core.progress import say
from ..core.provenance import versions
from ..exports.fingerprints import dataset_sha256, weights_sha256
from ..similarity.copy_detector_settings import CopyDetectorSettings
from .base import Mitigation
from .comparison import Comparison, Skipped
from .costs import Cost, costs
from .measure import Point, measure_point
from .pairs import ComparedPairs, pairs_of_comparison
from .plain_cfg import PLAIN
from .ranking import rival_wins
from .registry import by_name
from .report import render_comparison
from .sample_strips import save_strip, strip_path
from .settings import ComparisonOptions, ComparisonSettings, require_same_settings
from .testbed import Testbed, load_testbed

COST_PAIRS = 2


def run_comparison(
    model: str,
    data: Path,
    options: ComparisonOptions = ComparisonOptions(),
    *,
    detector: CopyDetectorSettings = CopyDetectorSettings(),
    out: Path = Path("comparison"),
    command: str = "",
) -> Comparison:
    """Measures every mitigation at every intensity and writes `comparison.json` and `comparison.html` to `out`.

    Args:
        model, data, options, detector, out: as in `commands.compare`. Quality is measured against the held-out images
            of the prompts where each prompt has as many, else against all; where that is fewer than 16, against the
            base model's samples.
        command: how the run was started, for the page.

    Raises:
        FileNotFoundError, ValueError: the model or the images cannot be used; an unknown mitigation.
        FileExistsError: `out` holds points of other settings.
    """
    start = time.monotonic()
    listed = by_name(options.names)
    testbed, base = load_testbed(model, data, options, detector)
    pairs, prompts = pairs_of_comparison(testbed, options)
    settings = _settings(testbed, options, len(prompts), model=model, base=base, data=data)
    out.mkdir(parents=True, exist_ok=True)
    require_same_settings(out / "settings.json", settings)
    skipped = [Skipped(mitigation=m.name, reason=r) for m in listed if (r := m.missing_requirement(testbed))]
    running = [m for m in listed if not m.missing_requirement(testbed)]
    points = _points(testbed, running, pairs, out, options.first_look)
    comparison = Comparison(
        settings=settings,
        points=tuple(points),
        skipped=tuple(skipped),
        costs=tuple(_costs(testbed, running, pairs, out)) if options.costs and not options.first_look else (),
        prompts=prompts,
        clusters=pairs.cluster,
        rival_wins=tuple(rival_wins(points, pairs.cluster, settings.metric.threshold)),
        versions=versions(),
        command=command,
        seconds=round(time.monotonic() - start, 1),
        machine=f"{testbed.pipe.unet.device.type}, {torch.get_num_threads()} thread(s)",
    )
    write(comparison, out)
    return comparison


def write(comparison: Comparison, out: Path) -> None:
    """Writes both forms of a comparison; the pictures are read from `out`."""
    write_text(out / "comparison.json", comparison.to_json())
    write_text(out / "comparison.html", render_comparison(comparison, out / "samples"))


def _settings(
    testbed: Testbed,
    options: ComparisonOptions,
    captions: int,
    *,
    model: str,
    base: str,
    data: Path,
) -> ComparisonSettings:
    training, scorer = testbed.guard.training, testbed.guard.score_alignment
    return ComparisonSettings(
        model=Path(model).name,
        base=Path(base).name if base else None,
        checkpoints=tuple(path.name for path in testbed.checkpoints),
        data=data.name,
        heldout=options.heldout.name if options.heldout else None,
        weights_sha256=weights_sha256(testbed.pipe),
        dataset_sha256=dataset_sha256(training.images, training.captions),
        metric=testbed.guard.embedder.metric,
        aligned_by=getattr(getattr(scorer, "__self__", None), "name", "none"),
        captions=captions,
        per_caption=options.per_caption,
        first_seed=seed_table.VERIFICATION,
        timesteps=options.timesteps,
        scale=options.guidance_scale,
    )


def _points(
    testbed: Testbed, mitigations: Sequence[Mitigation], pairs: ComparedPairs, out: Path, first_look: bool
) -> list[Point]:
    curve = [(m, i) for m in mitigations for i in ((m.default,) if first_look else intensities(testbed, m))]
    points = []
    for number, (mitigation, intensity) in enumerate(curve, start=1):
        points.append(_point(testbed, mitigation, intensity, pairs, out))
        say(f"{number} of {len(curve)}: {mitigation.name} at {intensity:g}, risk {points[-1].risk}")
    return points


def intensities(testbed: Testbed, mitigation: Mitigation) -> tuple[float, ...]:
    """The points of a mitigation's curve on this testbed: no more checkpoints than there are."""
    if mitigation.name == "early-stopped":
        return mitigation.intensities[: len(testbed.checkpoints)]
    return mitigation.intensities


def _point(testbed: Testbed, mitigation: Mitigation, intensity: float, pairs: ComparedPairs, out: Path) -> Point:
    path = out / "points" / f"{mitigation.name}_{intensity:g}.json"
    if path.is_file():
        return Point.from_json(path.read_text(encoding="utf-8"))
    point, images = measure_point(testbed, mitigation, intensity, pairs)
    save_strip(images, pairs.cluster, strip_path(out / "samples", point))
    write_text(path, point.to_json())
    return point


def _costs(testbed: Testbed, mitigations: Sequence[Mitigation], pairs: ComparedPairs, out: Path) -> list[Cost]:
    path = out / "costs.json"
    measured = [Cost.model_validate(entry) for entry in json.loads(path.read_text())] if path.is_file() else []
    named = {cost.mitigation for cost in measured}
    if missing := [mitigation for mitigation in mitigations if mitigation.name not in named]:
        measured += costs(testbed, missing, PLAIN, pairs.batch[:COST_PAIRS])
        write_text(path, json.dumps([cost.model_dump() for cost in measured], indent=2))
    return measured


def command_line(arguments: Sequence[str]) -> str:
    """How a run was started, without the folders of one machine.

    Example:
        >>> command_line(["compare", "runs/export", "--data", "/home/me/images"])
        'basinguard compare runs/export --data images'
    """
    return "basinguard " + " ".join(re.sub(r'(^|")/[^"]*/', r"\1", argument) for argument in arguments)
