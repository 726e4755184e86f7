"""What comes out of our own exports when they are attacked, and whether anybody can tell what they were trained on.

Copy this file, do not import it. The runs are those of `shipped_products.py` and of `basinguard demo`: a folder with
data/train, export and export-epochs. Attacked are the base model (nothing may come out), the plain fine-tune of the
last epoch (a model known to copy), the export by its rule and as plain weights, and a share of the epoch in the middle,
which is what somebody ships who lowers the strength. Membership is tested on the last epoch, against fresh pictures of
the same task. A study that was stopped goes on.

    python recipes/studies/attack_study.py --runs ink=runs/demo subject=runs/shipped/subject-24-images-seed-0 \
        art=runs/shipped/art-16-images-seed-0 --art package

Expected: attack_study.json and .md under recipes/results; sheets of what came out, beside the training images, in the
folder of --pictures. Time: about 10 minutes a run on one core. Memory: 3 GB.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from basinguard.attacks.attack import Attack
from basinguard.attacks.extraction import Extraction
from basinguard.attacks.membership import MembershipTest
from basinguard.attacks.plan import AttackPlan, cost_of
from basinguard.attacks.registry import ATTACKS
from basinguard.attacks.round import Lineup, run_round
from basinguard.attacks.target import Target
from basinguard.core.attack_table import TARGETS, TargetName
from basinguard.core.progress import shown
from basinguard.guard.guard import Guard
from basinguard.guidance.core import from_record
from basinguard.pipelines.base_check import weight_correlation
from basinguard.pipelines.latent_model import LatentModel
from basinguard.pipelines.loading import load_pipeline
from basinguard.plots.contact_sheet import contact_sheet
from basinguard.sessions.session import Session, open_export
from basinguard.tinyworld.tasks import TASKS, Task, art
from basinguard.training.epoch_archive import EpochArchive

SAMPLES = 32  # of each attack on each model, at most; captions are drawn equally often
SHARE, HALFWAY = 0.6, 0.5  # of the fine-tune, of the epoch in the middle
CONTROLS, CONTROL_SEED = 100, 500  # held-out pictures, drawn with a seed that no training took
SHOWN = 8  # copies of each attack on its sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", required=True, help="TASK=FOLDER of each run")
    parser.add_argument("--parts", nargs="+", default=list(PARTS))
    parser.add_argument("--art", type=Path, help="the unpacked emoji package, for the task art")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--results", type=Path, default=Path("recipes/results"))
    parser.add_argument("--pictures", type=Path, default=Path("runs/attacks"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = args.results / "attack_study.json"
    for part in [part for part in PARTS if part in args.parts]:
        for name, _, folder in (run.partition("=") for run in args.runs):
            results = json.loads(path.read_text()) if path.exists() else {}
            if part in results.get(name, {}):
                continue
            begin = time.process_time()
            with shown():
                result = PARTS[part](name, Path(folder), args)
            results.setdefault(name, {})[part] = result | {"processor_seconds": round(time.process_time() - begin)}
            path.write_text(json.dumps(results, indent=1) + "\n")
            path.with_suffix(".md").write_text(report(results), encoding="utf-8")


def extraction(target: TargetName, name: str, run: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Every attack on one of the models of a run."""
    record, session = open_export(run / "export", run / "data" / "train", alignment="none")
    base = LatentModel(load_pipeline(record.base))
    last, epoch = stored_epoch(run, record.base)
    if target == "guarded" and record.guidance.plain and record.scale == record.sampler.scale:
        return {"table": None}  # it samples as its plain weights do
    model = {"base": base, "plain": last}.get(target, session.model)
    if target == "safe weights":
        model, epoch = stored_epoch(run, record.base, HALFWAY, SHARE)
    rule = from_record(record.model_dump()) if target == "guarded" else None
    opening = {target: lambda: nullcontext(Target(target, model, rule, base))}
    per_sample = sum(cost_of(attack, session.guard.plan.timesteps) for attack in ATTACKS)
    plan = AttackPlan("full", args.samples * per_sample)
    table = run_round(Lineup(opening, {}), session.guard, plan, show=sheets(args.pictures / name, session))  # type: ignore[arg-type]
    return {
        "product": product(record),
        "epoch": epoch,
        "copy": record.metric.definition,
        "risk": record.risk.model_dump(),
        "plain": record.plain.model_dump(),
        "correlation_with_base": round(weight_correlation(last.pipe, base.pipe), 4),
        "table": json.loads(table.to_json()),
    }


def membership_of(name: str, run: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Every statistic on the last epoch, which is known to copy; less the base's, too."""
    record, session = open_export(run / "export", run / "data" / "train", alignment="none")
    guard, controls = with_controls(session, art(args.art) if name.startswith("art") else TASKS[name.split()[0]])
    last, epoch = stored_epoch(run, record.base)
    base = LatentModel(load_pipeline(record.base))
    table = MembershipTest(guard, base).table("plain", last)
    return {
        "last_epoch": epoch,
        "members": table.members,
        "controls": controls,
        "evaluations": table.evaluations,
        "rows": [json.loads(row.to_json()) for row in table.rows],
    }


ORDER: tuple[TargetName, ...] = ("plain", "base", "guarded, as plain weights", "guarded", "safe weights")
PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    **{f"extraction, {target}": partial(extraction, target) for target in ORDER},
    "membership": membership_of,
}


def stored_epoch(run: Path, base: str, way: float = 1.0, strength: float = 1.0) -> tuple[LatentModel, int]:
    """A share of the epoch that is so far along the stored ones: 1 is plain fine-tuning to its end."""
    pipe = load_pipeline(base)
    own = {f"unet.{name}": parameter for name, parameter in pipe.unet.named_parameters()}
    archive = EpochArchive(run / "export-epochs", 100)
    stored = archive.stored()
    epoch = stored[min(int(way * len(stored)), len(stored) - 1)].epoch
    weights = archive.weights(epoch, {name: parameter.detach() for name, parameter in own.items()})
    with torch.no_grad():
        for name, weight in weights.items():
            own[name].lerp_(weight, strength)
    return LatentModel(pipe), epoch


def with_controls(session: Session, task: Task) -> tuple[Guard, str]:
    """The guard with held-out pictures that the run never saw, of captions that it never saw."""
    guard, trained = session.guard, set(session.guard.training.captions)
    pool = task.captions if task.drawn_once else None
    drawn = task.train(len(pool) if pool else 3 * CONTROLS, CONTROL_SEED)
    rows = [k for k, text in enumerate(drawn.captions) if text not in trained][:CONTROLS]
    kind = "fresh pictures of captions like those trained on"
    if len(rows) < CONTROLS // 2:
        drawn = task.truth(CONTROLS, CONTROL_SEED)
        rows, kind = list(range(CONTROLS)), "fresh pictures of held-out captions (the task has too few others)"
    captions, pixels = tuple(drawn.captions[k] for k in rows), drawn.pixels[rows]
    training = replace(guard.training, heldout=captions, heldout_images=pixels, stand_in=False)
    return Guard(training, guard.embedder, guard.plan), f"{len(rows)} {kind}"


def sheets(folder: Path, session: Session) -> Callable[[Extraction], None]:
    """Draws what came out beside the training image that it copies."""

    def show(result: Extraction) -> None:
        rows = result.copied.nonzero().squeeze(1)[:SHOWN]
        rows = rows if len(rows) else torch.tensor([m.similarity for m in result.matches]).topk(SHOWN).indices
        truth = session.guard.training.images[[result.matches[k].index for k in rows.tolist()]]
        titles = [f"{result.matches[k].similarity:.2f}" for k in rows.tolist()]
        marks = {"came out": result.copied[rows].tolist()}
        sheet = contact_sheet({"training image": truth, "came out": result.samples[rows]}, titles, marks)
        folder.mkdir(parents=True, exist_ok=True)
        sheet.save(folder / f"{result.target}-{slug(result.attack)}.png".replace(", ", "-").replace(" ", "-"))

    return show


def slug(attack: Attack) -> str:
    return "".join(c if c.isalnum() else "-" for c in f"{attack.name}-{attack.setting}")[:60]


def product(record: Any) -> str:
    rule = record.guidance
    switched = f"{rule.before:g} above {rule.transition:g}, then {rule.after:g}"
    how = f"plain CFG {rule.after:g}" if rule.plain else switched
    return f"epoch {record.product.epoch}, strength {record.product.strength:g}, {how}"


def report(results: dict[str, Any]) -> str:
    """All runs as Markdown."""
    parts = [
        "# Attacks on our own exports",
        "`python recipes/studies/attack_study.py`. A cell: share of samples that copy a training image [95 % "
        "interval], and how many of the training images came back; a dash where an attack needs the weights, or where "
        "the rule samples as the weights alone do. A row says something about memory only where the base model's cell "
        "is 0: otherwise the attacker brought the picture along.",
    ]
    for name, result in results.items():
        tables = {key.partition(", ")[2]: part for key, part in result.items() if key.startswith("extraction")}
        if tables:
            parts.append(extraction_text(name, tables))
        if "membership" in result:
            parts.append(membership_text(name, result["membership"]))
    return "\n\n".join(parts) + "\n"


def extraction_text(name: str, results: dict[str, Any]) -> str:
    attacked = {key: result for key, result in results.items() if result["table"]}
    first = next(iter(attacked.values()))
    heads: dict[str, str] = {**TARGETS}
    heads |= {"plain": f"plain, last epoch ({attacked['plain']['epoch']})"} if "plain" in attacked else {}
    if "safe weights" in attacked:
        heads["safe weights"] = f"share {SHARE:g} of epoch {attacked['safe weights']['epoch']}, plain"
    columns = [key for key in TARGETS if key in attacked]
    rows: dict[str, dict[str, Any]] = {}
    for key in columns:
        for row in attacked[key]["table"]["rows"]:
            rows.setdefault(f"{row['attack']}, {row['setting']}", {})[key] = row["outcomes"][0]
    lines = [
        f"## {name}: extraction",
        f"Ships: {first['product']}; {first['table']['images_total']} training images; {first['copy']}.",
        f"| attack | {' | '.join(heads[key] for key in columns)} | n | evaluations a sample |",
    ]
    rule = f"|{'---|' * (len(columns) + 3)}"
    return "\n".join(["\n\n".join(lines), rule, *(row_text(label, row, columns) for label, row in rows.items())])


def row_text(label: str, outcomes: dict[str, Any], columns: list[str]) -> str:
    cells = [cell(outcomes.get(key)) for key in columns]
    samples = max(outcome["copies"]["n"] for outcome in outcomes.values())
    most = max(outcome["evaluations"] / outcome["copies"]["n"] for outcome in outcomes.values())
    return f"| {label} | {' | '.join(cells)} | {samples} | {most:.0f} |"


def cell(outcome: dict[str, Any] | None) -> str:
    if outcome is None:
        return "-"
    note = f"; {outcome['note']}" if outcome["note"] else ""
    return f"{rate(outcome['copies'])}, {outcome['images']} images{note}"


def membership_text(name: str, result: dict[str, Any]) -> str:
    head = [
        f"## {name}: membership",
        f"The last epoch ({result['last_epoch']}); {result['members']} members against {result['controls']}. AUC by "
        "DeLong; true positives at 1 % false positives with exact intervals.",
        f"| statistic | AUC | true positives | false positives there |\n|{'---|' * 4}",
    ]
    lines = [
        f"| {row['statistic']} | {interval(row['auc'])} | {rate(row['hits'])} | {rate(row['false'])} |"
        for row in sorted(result["rows"], key=lambda row: -row["auc"]["value"])
    ]
    return "\n\n".join(head) + "\n" + "\n".join(lines)


def rate(estimate: dict[str, Any] | None) -> str:
    if estimate is None:
        return "too few held-out images"
    return f"{estimate['value']:.0%} [{estimate['low']:.0%}, {estimate['high']:.0%}]"


def interval(estimate: dict[str, Any]) -> str:
    return f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


if __name__ == "__main__":
    main()
