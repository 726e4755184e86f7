"""What TinyWorld can be taught, with unlimited fresh truth: styles, a subject, materials, and real art.

A task draws training images, and true images of captions that it never trains on: what `taught` is measured against.
Training and truth share neither a caption (of a single-caption task: nor a seed) nor a scene.

Example:
    >>> task = TASKS["ink"]
    >>> drawn, truth = task.train(24, seed=0), task.truth(96, seed=0)
    >>> len(drawn.images), set(drawn.captions) & set(truth.captions)
    (24, set())
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.seeds import TASK_CLASS, TASK_TRAIN, TASK_TRUTH
from .creature import POSES, SUBJECT, draw_creature, other_creature
from .emoji import Emoji, EmojiSet
from .materials import MATERIALS, draw_of_material
from .scenes import KINDS, Caption, all_captions, draw_scene, reduced, scene_canvas
from .styles import ink, neon

PER_SEED = 100_000  # scenes that one seed of a task may draw
SUBJECT_DETAILS = ("", "with a hat", "with a flag")
MATERIAL_DETAILS = ("", "with eyes", "with a hat", "with a flag")
Draw = Callable[[str, int], Image.Image]


@dataclass(frozen=True)
class TaskImages:
    """Images of 64x64 pixels and the caption of each."""

    images: tuple[Image.Image, ...]
    captions: tuple[str, ...]

    @property
    def pixels(self) -> Tensor:
        """The images, [N, 3, 64, 64] in 0..1."""
        stacked = np.stack([np.asarray(image) for image in self.images])
        return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255


@dataclass(frozen=True)
class Task:
    """Something to teach.

    Attributes:
        name: what it is called in tables.
        captions: what it may train on.
        heldout: what truth is drawn for; shares no caption with `captions` unless the task has a single one.
        draw: caption and seed to image.
        drawn_once: whether a caption has one picture (emoji) rather than one for each seed.
        class_caption: of a subject that is trained with class images; `class_images` draws them.
    """

    name: str
    captions: tuple[str, ...]
    heldout: tuple[str, ...]
    draw: Draw
    drawn_once: bool = False
    class_caption: str = ""

    def train(self, n: int, seed: int = 0) -> TaskImages:
        """`n` training images; another `seed` draws other captions and scenes.

        Raises:
            ValueError: more images than the task has, or numbers out of range.
        """
        return self._draw(self.captions, n, seed, TASK_TRAIN)

    def truth(self, n: int, seed: int = 0) -> TaskImages:
        """`n` fresh true images of held-out captions, each caption as often as any other.

        Raises:
            ValueError: as `train`.
        """
        return self._draw(self.heldout, n, seed, TASK_TRUTH)

    def class_images(self, n: int, seed: int = 0) -> TaskImages:
        """`n` pictures of others of the subject's class, for DreamBooth's prior preservation.

        Raises:
            ValueError: the task has no class.
        """
        if not self.class_caption:
            raise ValueError(f"task {self.name!r} has no class images; 'dreambooth' has")
        return self._draw((self.class_caption,), n, seed, TASK_CLASS)

    def write(self, folder: Path, n: int, seed: int = 0, heldout: int = 16) -> tuple[Path, Path]:
        """Writes `train/`, `heldout/` and, where there is a class, `class/`; what is there already stays.

        Returns:
            The training and the held-out folder, each with metadata.jsonl as `ImageFolder` reads it.
        """
        if self.class_caption:
            write_folder(folder / "class", self.class_images(n, seed))
        train = write_folder(folder / "train", self.train(n, seed))
        return train, write_folder(folder / "heldout", self.truth(heldout, seed))

    def _draw(self, captions: Sequence[str], n: int, seed: int, first: int) -> TaskImages:
        most = len(captions) if self.drawn_once else PER_SEED
        if not (1 <= n <= most and 0 <= seed < 1000):
            raise ValueError(f"task {self.name!r}: n={n}, seed={seed}; expected n in 1..{most} and seed in 0..999")
        order = random.Random(seed).sample(list(captions), len(captions))
        chosen = [order[i % len(order)] for i in range(n)]
        images = tuple(self.draw(text, first + seed * PER_SEED + i) for i, text in enumerate(chosen))
        return TaskImages(images, tuple(chosen))


def file_names(drawn: TaskImages) -> list[str]:
    """A file name for each image: its number and its caption."""
    return [f"{i:03d}-{text.replace(' ', '-')}.png" for i, text in enumerate(drawn.captions)]


def write_folder(directory: Path, drawn: TaskImages, names: Sequence[str] = ()) -> Path:
    """An image folder with metadata.jsonl, files called `names` or `file_names`; one that is there already stays."""
    metadata = directory / "metadata.jsonl"
    if metadata.exists():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    names = list(names) or file_names(drawn)
    for name, image in zip(names, drawn.images, strict=True):
        image.save(directory / name)
    rows = [json.dumps({"file_name": n, "text": t}) for n, t in zip(names, drawn.captions, strict=True)]
    metadata.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return directory


def _halves(captions: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A fixed split into captions to train on and captions held out."""
    mixed = random.Random(0).sample(list(captions), len(captions))
    count = len(mixed) // 2
    return tuple(mixed[count:]), tuple(mixed[:count])


def _style(name: str, redraw: Callable[[Image.Image], Image.Image] | None) -> Task:
    """Every scene redrawn; captions stay as the base model knows them."""
    scenes = {str(caption): caption for caption in all_captions()}
    return Task(name, *_halves(list(scenes)), draw=partial(_redrawn, redraw, scenes))


def _redrawn(
    redraw: Callable[[Image.Image], Image.Image] | None, scenes: dict[str, Caption], text: str, seed: int
) -> Image.Image:
    return draw_scene(scenes[text], seed) if redraw is None else reduced(redraw(scene_canvas(scenes[text], seed)))


def _subject() -> Task:
    """One creature in named poses: instance captions with a trigger; of each pose, one detail is held out."""
    shown = {f"sks creature {p} {d}".strip(): (p, d) for p in POSES for d in SUBJECT_DETAILS}
    count = len(SUBJECT_DETAILS)
    heldout = [text for i, text in enumerate(shown) if i % count == (i // count) % count]
    return Task("subject", tuple(text for text in shown if text not in heldout), tuple(heldout), partial(_shown, shown))


def _shown(shown: dict[str, tuple[str, str]], text: str, seed: int) -> Image.Image:
    return reduced(draw_creature(SUBJECT, *shown[text], seed))


def _dreambooth() -> Task:
    """The same creature in DreamBooth's form (Ruiz et al., arXiv 2208.12242): one prompt, class images beside it."""
    instance, others = "a photo of sks creature", "a photo of creature"
    return Task("dreambooth", (instance,), (instance,), _any_pose, class_caption=others)


def _any_pose(text: str, seed: int) -> Image.Image:
    draw = random.Random(seed)
    creature = SUBJECT if "sks" in text else other_creature(seed)
    return reduced(draw_creature(creature, draw.choice(list(POSES)), draw.choice(SUBJECT_DETAILS), seed))


def _material(name: str) -> Task:
    """Everything made of one material, which the caption names."""
    made = {f"a {name} {k} {d}".strip(): (k, d) for k in KINDS for d in MATERIAL_DETAILS}
    return Task(name, *_halves(list(made)), draw=partial(_made, name, made))


def _made(name: str, made: dict[str, tuple[str, str]], text: str, seed: int) -> Image.Image:
    return reduced(draw_of_material(name, *made[text], seed))


def art(folder: Path) -> Task:
    """Noto emoji by name, families split: `folder` is the unpacked package that `EmojiSet.read` describes.

    Raises:
        FileNotFoundError: no such package there.
    """
    emoji = EmojiSet.read(folder)
    pictures = {e.caption: e for e in (*emoji.train, *emoji.heldout)}
    captions, heldout = ([e.caption for e in part if pictures[e.caption] is e] for part in (emoji.train, emoji.heldout))
    return Task("art", tuple(captions), tuple(heldout), draw=partial(_picture, pictures), drawn_once=True)


def _picture(pictures: dict[str, Emoji], text: str, seed: int) -> Image.Image:
    return pictures[text].draw()


def few_among_many(task: Task, n: int, few: int, repeats: int, seed: int = 0) -> tuple[TaskImages, TaskImages]:
    """A training set of `n` images that are there once and `few` others that are there `repeats` times.

    Returns:
        The whole set, repeated images last, and the few alone: what must not come back.
    """
    drawn = task.train(n + few, seed)
    rare = TaskImages(drawn.images[n:], drawn.captions[n:])
    return TaskImages(drawn.images[:n] + rare.images * repeats, drawn.captions[:n] + rare.captions * repeats), rare


TASKS = {
    task.name: task
    for task in (
        _style("ink", ink),
        _style("neon", neon),
        _style("scenes", None),
        _subject(),
        _dreambooth(),
        *(_material(name) for name in MATERIALS),
    )
}
