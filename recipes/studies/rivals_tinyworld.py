"""What TinyWorld is taught, and the four scenarios of arXiv 2411.16738, each ending in `compare`.

Copy this file, do not import it. The first five teach what the base cannot draw, so that what is left of it can be
measured: 24 images of a style, a subject or a material, 24 emoji, and a style of which 4 drawings are there 12 times
among 40 others. The rest teach scenes that the base draws already.

    python recipes/studies/rivals_tinyworld.py ink --out runs/ink    also: few, subject, brick
    python recipes/studies/rivals_tinyworld.py emoji --out runs/emoji --art DIR       24 emoji with their names
    python recipes/studies/rivals_tinyworld.py s1 --out runs/s1      32 scenes, a caption of its own for each
    python recipes/studies/rivals_tinyworld.py s2 --out runs/s2      32 scenes, class prompts such as "a star"
    python recipes/studies/rivals_tinyworld.py s3 --out runs/s3      8 scenes x 32 copies among 256 others
    python recipes/studies/rivals_tinyworld.py s4 --out runs/s4      24 scenes x 32 copies among 1,000 others
    python recipes/studies/rivals_tinyworld.py art --out runs/art --openmoji DIR      32 animals with their names

The DIR of `--art` is the unpacked npm package `emoji-datasource-google`; that of `--openmoji` the unpacked `openmoji`
(CC BY-SA 4.0, openmoji.org), and drawing it needs `pip install resvg-py`. Fine-tuning alone: add `--train-only`. A
comparison that was stopped goes on when the same line is run again. `ink` and `few` take every mitigation, the other
three that teach all of ours and the twelve rivals that do best in those two (`rivals_table.py --best 12`):
`--mitigations`. Results: recipes/results/rivals_*.json and .png, each with its command, commit, time and machine, made
from what this writes by rivals_table.py.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
from PIL import Image

from basinguard.sessions.demo_run import demo_model
from basinguard.similarity.structure import Structure
from basinguard.similarity.thresholds import from_samples
from basinguard.tinyworld.demo_folder import write_demo_folder
from basinguard.tinyworld.scenes import KINDS, Caption, all_captions, draw_scene
from basinguard.tinyworld.tasks import TASKS, few_among_many, write_folder
from basinguard.tinyworld.tasks import art as emoji_art
from basinguard.training.data import ImageFolder
from basinguard.training.finetune import FineTune
from basinguard.training.finetune_options import ReadingOptions
from basinguard.training.fit_cli import quiet_lightning

SCALE, TIMESTEPS = "3", "16"  # TinyWorld's usual CFG and sampling steps
FRESH_SEED = 7_000_000  # draws no scene of the base or of a training set
TAUGHT = {"ink": "ink", "few": "ink", "subject": "subject", "brick": "brick", "emoji": ""}  # to the names of tasks
IMAGES, HELDOUT = 24, 32
CHECKPOINTS = (10 / 13, 8 / 13)  # shares of the updates after which a checkpoint is saved
EARLIER = (3 / 4, 1 / 2, 3 / 8, 1 / 4)  # of what teaches: copies begin early there
Named = list[tuple[str, str, Image.Image]]  # file name, caption, picture


@dataclass(frozen=True)
class Scenario:
    """Folders of one scenario and how long to train on them."""

    train: Path
    protected: Path  # what must not come back: the training set, or the part of it that is memorized
    updates: int
    heldout: Path | None = None  # not trained on: fresh scenes of the prompts for quality, unseen animals for fidelity
    threshold: float | str | None = None
    align: str = "auto"
    checkpoints: tuple[float, ...] = CHECKPOINTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=[*TAUGHT, "s1", "s2", "s3", "s4", "art"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--openmoji", type=Path)
    parser.add_argument("--art", type=Path)
    parser.add_argument("--captions", default="16")
    parser.add_argument("--per-caption", default="4")
    parser.add_argument("--mitigations", default="all")
    parser.add_argument("--updates", type=int)
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--no-costs", action="store_true", help="time and memory were measured in another scenario")
    args = parser.parse_args()
    if args.scenario in TAUGHT:
        scenario = taught(args.scenario, args.out / "data", args.art)
    elif args.scenario == "art":
        scenario = art(args.out / "data", args.openmoji)
    else:
        scenario = {"s1": s1, "s2": s2, "s3": s3, "s4": s4}[args.scenario](args.out / "data")
    if not (args.out / "model").exists():
        fine_tune(scenario, args.out, args.updates or scenario.updates)
    if not args.train_only:
        compare(scenario, args)


def taught(name: str, data: Path, package: Path | None) -> Scenario:
    """Something the base cannot draw; the threshold of a copy is measured on true images that were not trained on."""
    if name == "emoji" and package is None:
        raise SystemExit("emoji needs --art DIR: npm pack emoji-datasource-google@16, unpack it, and name the folder")
    task = emoji_art(package) if package is not None and name == "emoji" else TASKS[TAUGHT[name]]
    train, heldout = task.write(data, IMAGES, heldout=HELDOUT)
    protected = train
    if name == "few":
        everything, planted = few_among_many(task, 40, few=4, repeats=12)
        train, protected = write_folder(data / "everything", everything), write_folder(data / "planted", planted)
    return Scenario(train, protected, updates=400, heldout=heldout, threshold="heldout", checkpoints=EARLIER)


def s1(data: Path) -> Scenario:
    """A small set with a caption of its own for each image, two of them stored twice."""
    train, _ = write_demo_folder(data, TASKS["scenes"])
    texts = {json.loads(line)["text"] for line in (train / "metadata.jsonl").read_text("utf-8").splitlines()}
    captions = [c for c in all_captions() if str(c) in texts]
    return Scenario(train, train, updates=520, heldout=fresh(data, [(str(c), c) for c in captions]))


def s2(data: Path) -> Scenario:
    """A small set of eight classes, one prompt a class."""
    kinds = list(KINDS)[:8]
    scenes = [(kind, Caption(kind, *words)) for kind in kinds for words in WORDS]
    train = [(f"{i}.png", f"a {kind}", draw_scene(scene, seed=i)) for i, (kind, scene) in enumerate(scenes)]
    folder = write(data / "train", train)
    heldout = fresh(data, [(f"a {kind}", scene) for kind, scene in scenes], each=1)
    return Scenario(folder, folder, updates=400, heldout=heldout)


WORDS = (("plain", ""), ("striped", "with eyes"), ("dotted", "with a hat"), ("checkered", "with a flag"))


def s3(data: Path, planted: int = 8, copies: int = 32, others: int = 256, updates: int = 400) -> Scenario:
    """A few images many times among many that are there once; only the repeated ones must not come back."""
    captions = random.Random(1).sample(all_captions(), planted)
    few = [(f"planted {i}.png", str(c), draw_scene(c, seed=i)) for i, c in enumerate(captions)]
    rest = [c for c in all_captions() if c not in captions]
    crowd = [
        (f"other {i}.png", str(rest[i % len(rest)]), draw_scene(rest[i % len(rest)], seed=5000 + i))
        for i in range(others)
    ]
    repeated = [(f"copy {k} of {name}", text, picture) for name, text, picture in few for k in range(copies)]
    heldout = fresh(data, [(str(c), c) for c in captions])
    return Scenario(write(data / "train", crowd + repeated), write(data / "planted", few), updates, heldout)


def s4(data: Path) -> Scenario:
    """Planted pairs in a training that is long and broad: as near to a memorizing base as continued training gets."""
    return s3(data, planted=24, copies=32, others=1000, updates=800)


def art(data: Path, openmoji: Path | None) -> Scenario:
    """Animals of OpenMoji with their names; the threshold of a copy is measured on other emoji of the set."""
    if openmoji is None:
        raise SystemExit("art needs --openmoji DIR: npm pack openmoji@17, unpack it, and name the folder")
    entries = json.loads((openmoji / "data" / "openmoji.json").read_text(encoding="utf-8"))
    animals = [e for e in entries if e["group"] == "animals-nature" and len(e["annotation"]) <= 16]
    chosen = random.Random(0).sample(animals, 48)
    train = write(data / "train", [emoji(openmoji, e) for e in chosen[:32]])
    heldout = write(data / "heldout", [emoji(openmoji, e) for e in chosen[32:]])
    others = [e for e in entries if e["group"] in ("food-drink", "objects", "travel-places", "activities")]
    others += [e for e in animals if e not in chosen]
    foreign = write(data / "others", [emoji(openmoji, e) for e in others])
    return Scenario(train, train, updates=600, heldout=heldout, threshold=threshold(train, foreign), align="none")


def emoji(openmoji: Path, entry: dict) -> tuple[str, str, Image.Image]:
    """One emoji on white, 64 x 64 px."""
    import io

    import resvg_py

    path = openmoji / "color" / "svg" / f"{entry['hexcode']}.svg"
    png = bytes(resvg_py.svg_to_bytes(svg_path=str(path), background="#ffffff", width=64, height=64))
    return f"{entry['hexcode']}.png", entry["annotation"], Image.open(io.BytesIO(png)).convert("RGB")


def threshold(train: Path, foreign: Path) -> float:
    """The copy threshold for this art: what no foreign emoji reaches against the training images."""
    embedder = Structure()
    embedded = []
    for folder in (foreign, train):
        images = ImageFolder(str(folder), resolution=64)
        images.setup("null")
        embedded.append(images.all_pixels())
    pictures, gallery = embedded
    mirrored = embedder(pictures.flip(-1))
    measured = from_samples(embedder(pictures), embedder(gallery), mirrored=mirrored, name="other OpenMoji")
    return measured.metric(embedder.name).threshold


def fresh(data: Path, prompts: list[tuple[str, Caption]], each: int = 4) -> Path:
    """Scenes of the prompts with seeds that nothing was trained on, `each` of every scene."""
    drawn = [(text, scene, FRESH_SEED + i) for i, (text, scene) in enumerate(prompts * each)]
    return write(data / "fresh", [(f"{seed}.png", text, draw_scene(scene, seed)) for text, scene, seed in drawn])


def write(folder: Path, rows: Named) -> Path:
    """An image folder with metadata.jsonl; what is there already is kept."""
    if not (folder / "metadata.jsonl").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name, _, picture in rows:
            picture.save(folder / name)
        lines = [json.dumps({"file_name": name, "text": text}) for name, text, _ in rows]
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


class Keep(pl.Callback):
    """Saves pipelines on the way, for the early-stopped rows."""

    def __init__(self, out: Path, updates: int, shares: Sequence[float]) -> None:
        self.at = {round(share * updates): out / f"update-{round(share * updates)}" for share in shares}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: FineTune, *unused: object) -> None:
        """Saves the pipeline when its turn has come."""
        if trainer.global_step in self.at:
            pl_module.export_pipeline().save_pretrained(self.at[trainer.global_step])


def fine_tune(scenario: Scenario, out: Path, updates: int) -> None:
    """Full fine-tuning, as `basinguard demo` does it."""
    quiet_lightning()
    images = ImageFolder(str(scenario.train), resolution=64, batch_size=16, reading=ReadingOptions(keep_in_memory=True))
    images.setup("fit")
    module = demo_model()
    trainer = pl.Trainer(
        max_steps=updates,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[Keep(out / "checkpoints", updates, scenario.checkpoints)],
        default_root_dir=out,
    )
    trainer.fit(module, datamodule=images)
    module.export_pipeline().save_pretrained(out / "model")


def compare(scenario: Scenario, args: argparse.Namespace) -> None:
    """All methods beside ours, by the command a user would run."""
    checkpoints = sorted((args.out / "checkpoints").glob("update-*"), key=lambda p: -int(p.name.split("-")[1]))
    command = [sys.executable, "-m", "basinguard", "compare", str(args.out / "model")]
    command += ["--data", str(scenario.protected), "--base", "tinyworld"]
    command += ["--checkpoints", json.dumps([str(path) for path in checkpoints]), "--mitigations", args.mitigations]
    command += ["--captions", args.captions, "--per_caption", args.per_caption]
    command += ["--scale", SCALE, "--timesteps", TIMESTEPS, "--alignment", scenario.align]
    command += ["--costs", str(not args.no_costs).lower(), "--out", str(args.out / "comparison")]
    for option, value in (("--threshold", scenario.threshold), ("--heldout", scenario.heldout)):
        command += [option, str(value)] if value is not None else []
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout
    (args.out / "commit").write_text(commit, encoding="utf-8")
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
