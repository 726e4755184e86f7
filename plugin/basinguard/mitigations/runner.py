"""`basinguard compare`: every method of the field beside ours, on the same prompts and the same noise, in one run.

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
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..core.metric import Metric
from ..core.versions import versions
from ..plots.contact_sheet import to_image
from .base import Bench, Method
from .comparison import Comparison, Skipped
from .costs import Cost, costs
from .measure import Pairs, Point, measure
from .ranking import beaten, within
from .registry import METHODS, named
from .setting import Plans, bench_of, pairs_on, require_same, settings_of

SHOWN = 6  # samples of each point that are kept as a strip
COST_PAIRS = 2


def compare(
    model: str,
    data: Path,
    *,
    methods: Sequence[str] = ("all",),
    base: str | None = None,
    heldout: Path | None = None,
    checkpoints: Sequence[Path] = (),
    plans: Plans | None = None,
    align: str = "auto",
    metric: Metric | None = None,
    out: Path = Path("comparison"),
    command: str = "",
) -> Comparison:
    """Measures every method at every strength and writes `comparison.json` and `comparison.html` to `out`.

    Args:
        model: the fine-tuned model: a directory, a hub id or "tinyworld".
        data: the training images it must not reproduce.
        methods: names of `registry.METHODS`, or "all".
        base: what was fine-tuned; the model's own record says so if it carries one.
        heldout: captioned images that were not trained on. Captions that were not trained on are sampled for fidelity.
            Quality is measured against those of the prompts where each prompt has as many, else against all; where
            that is fewer than 16, against the base model's samples.
        checkpoints: earlier states of the run, most trained first.
        plans: how much to sample.
        align: an open_clip model; "auto" takes TinyWorld's own for TinyWorld and none otherwise.
        metric: what a copy is, when the embedder's own threshold was measured on another kind of image
            (`similarity.null`).
        out: folder of the results; a run that was stopped goes on there.
        command: how the run was started, for the page.

    Raises:
        FileNotFoundError, ValueError: the model or the images cannot be used; an unknown method.
        FileExistsError: `out` holds points of other settings.
    """
    start = time.monotonic()
    wanted = named(methods)
    plans = plans or Plans()
    bench, base = bench_of(model, data, base, checkpoints, plans, align, metric)
    pairs, prompts = pairs_on(bench, plans, heldout)
    settings = settings_of(bench, model, base, data, heldout, plans, len(prompts))
    out.mkdir(parents=True, exist_ok=True)
    require_same(out / "settings.json", settings)
    points, skipped = _points(bench, wanted, pairs, out, plans.first_look)
    result = Comparison(
        settings=settings,
        points=tuple(points),
        skipped=tuple(skipped),
        costs=tuple(_costs(bench, wanted, pairs, out)) if plans.costs and not plans.first_look else (),
        prompts=prompts,
        clusters=pairs.cluster,
        beaten=tuple(beaten(points, pairs.cluster, bench.guard.embedder.metric.threshold)),
        versions=versions(),
        command=command,
        seconds=round(time.monotonic() - start, 1),
        machine=f"{bench.pipe.unet.device.type}, {torch.get_num_threads()} thread(s)",
    )
    write(result, out)
    return result


def write(result: Comparison, out: Path) -> None:
    """Writes both forms of a comparison; the pictures are read from `out`."""
    from .report import render

    (out / "comparison.json").write_text(result.to_json(), encoding="utf-8")
    (out / "comparison.html").write_text(render(result, out / "samples"), encoding="utf-8")


def _points(
    bench: Bench, wanted: Sequence[Method], pairs: Pairs, out: Path, first_look: bool
) -> tuple[list[Point], list[Skipped]]:
    skipped = [Skipped(method=m.name, reason=reason) for m in wanted if (reason := m.why_not(bench))]
    gone = {entry.method for entry in skipped}
    todo = [(m, s) for m in wanted if m.name not in gone for s in ((m.default,) if first_look else strengths(bench, m))]
    points = []
    with tqdm(todo, desc="comparing", unit="point") as bar:
        for method, strength in bar:
            bar.set_postfix_str(f"{method.name} at {strength:g}")
            points.append(_point(bench, method, strength, pairs, out))
    return points, skipped


def strengths(bench: Bench, method: Method) -> tuple[float, ...]:
    """The points of a method's curve on this bench: no more checkpoints than there are."""
    if method.name == "early-stopped":
        return method.strengths[: len(bench.checkpoints)]
    return method.strengths


def _point(bench: Bench, method: Method, strength: float, pairs: Pairs, out: Path) -> Point:
    path = out / "points" / f"{method.name}_{strength:g}.json"
    if path.is_file():
        return Point.from_json(path.read_text(encoding="utf-8"))
    point, images = measure(bench, method, strength, pairs)
    _strip(images, pairs.cluster).save(_strip_path(out / "samples", point))
    path.parent.mkdir(exist_ok=True)
    path.write_text(point.to_json(), encoding="utf-8")
    return point


def _strip_path(folder: Path, point: Point) -> Path:
    folder.mkdir(exist_ok=True)
    return folder / f"{point.method}_{point.strength:g}.png"


def shown(clusters: Sequence[int]) -> list[int]:
    """Which pairs are shown: the first of a few prompts, spread evenly."""
    firsts = [clusters.index(k) for k in sorted(set(clusters))]
    return [firsts[len(firsts) * k // min(SHOWN, len(firsts))] for k in range(min(SHOWN, len(firsts)))]


def _strip(images: Tensor, clusters: Sequence[int]) -> Image.Image:
    """The shown samples side by side, at most 128 pixels each."""
    tiles = [to_image(images[i]) for i in shown(clusters)]
    for tile in tiles:
        tile.thumbnail((128, 128))
    width, height = tiles[0].size
    strip = Image.new("RGB", (width * len(tiles), height))
    for k, tile in enumerate(tiles):
        strip.paste(tile, (k * width, 0))
    return strip


def _costs(bench: Bench, wanted: Sequence[Method], pairs: Pairs, out: Path) -> list[Cost]:
    path = out / "costs.json"
    known = [Cost.model_validate(entry) for entry in json.loads(path.read_text())] if path.is_file() else []
    if {c.method for c in known} >= {m.name for m in wanted if not m.why_not(bench)}:
        return known
    with tqdm(desc="timing, interleaved", unit="run") as bar:

        def report(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        found = costs(bench, wanted, METHODS["none"], pairs.batch[:COST_PAIRS], report)
    path.write_text(json.dumps([entry.model_dump() for entry in found], indent=2))
    return found


def command_line(arguments: Sequence[str]) -> str:
    """How a run was started, without the folders of one machine.

    Example:
        >>> command_line(["compare", "runs/export", "--data", "/home/me/images"])
        'basinguard compare runs/export --data images'
    """
    return "basinguard " + " ".join(re.sub(r'(^|")/[^"]*/', r"\1", argument) for argument in arguments)


def table(result: Comparison, budget: float = 0.1) -> str:
    """The best point of each method within a risk budget, for a terminal."""
    lines = [f"{'':15} {'strength':>8} {'risk [95% interval]':24} {'sim p95':>8} {'utility':>10} {'UNet/img':>9}"]
    for entry in within(result.points, budget):
        if entry.point is None:
            lines.append(f"{entry.method:15} no strength has a risk of at most {budget:.0%}")
            continue
        point = result.points[entry.point]
        risk = point.risk.interval()
        utility = f"{point.utility.value:.3f}" if point.utility else "-"
        lines.append(
            f"{point.method:15} {point.strength:8g} {risk:24} {point.similarity_p95.value:8.3f} {utility:>10} "
            f"{point.unet_evals:9.1f}"
        )
    lines += [f"{entry.method:15} not run: {entry.reason}" for entry in result.skipped]
    return "\n".join(lines)
