"""What people do to a folder of images, its captions and its manifest; each function ends in what the user sees."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from basinguard.commands.metrics import metrics
from basinguard.core.files import joined_sha256
from basinguard.curation.curate import curate_images
from basinguard.curation.folder import read_folder
from basinguard.curation.manifest import MANIFEST
from basinguard.training.data import ImageFolder

from .curation_records import record_with
from .guarded_runs import picture_folder

Change = Callable[[Path], object]


def after_manifest(change: Change) -> Change:
    """A manifest was written, then the folder was changed, then somebody trains by the manifest."""

    def run(root: Path) -> None:
        photos = picture_folder(root / "photos")
        curate_images(photos, apply=True, workers=1)
        change(photos)
        ImageFolder(str(photos), manifest=MANIFEST).setup("fit")

    return run


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def without_hashes(photos: Path) -> None:
    row = {"file_name": "0.png", "text": "a", "captions": ["a"], "repeats": 1}
    (photos / MANIFEST).write_text(json.dumps(row))


def twice(photos: Path) -> None:
    rows = (photos / MANIFEST).read_text()
    (photos / MANIFEST).write_text(rows + rows.splitlines()[0])


def from_run(name: str, values: dict[str, object]) -> Change:
    """A run that says these things of a folder."""

    def run(root: Path) -> None:
        (root / name).write_text(json.dumps(values))
        curate_images(picture_folder(root / "photos"), from_run=root, workers=1)

    return run


def from_other_export(root: Path) -> None:
    record = record_with(()).model_copy(update={"files_sha256": joined_sha256(["0" * 64])})
    (root / "basinguard.json").write_text(record.to_json())
    curate_images(picture_folder(root / "photos"), from_run=root, workers=1)


def beside(name: str, content: bytes = b"no picture") -> Change:
    """A folder of two captioned images with one more file."""

    def run(root: Path) -> None:
        path = picture_folder(root / "photos") / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        ImageFolder(str(root / "photos")).setup("fit")

    return run


def problem(code: str, name: str, content: bytes) -> Change:
    """A folder of two captioned images with one more file: the line about it in the list of problems."""

    def run(root: Path) -> None:
        photos = picture_folder(root / "photos")
        (photos / name).write_bytes(content)
        raise UserWarning(next(str(each) for each in read_folder(photos).problems if each.code == code))

    return run


def problem_of(code: str, change: Change) -> Change:
    """A folder of two captioned images after a change: the line about that in the list of problems of a curation."""

    def run(root: Path) -> None:
        photos = picture_folder(root / "photos")
        (root / "photos-curation").mkdir()
        change(photos)
        outcome = curate_images(photos, workers=1)
        problems = (*outcome.curation.problems, *outcome.failed)
        raise UserWarning(next(str(each) for each in problems if each.code == code))

    return run


def linked(photos: Path) -> None:
    (photos.parent / "elsewhere").mkdir()
    (photos / "link").symlink_to(photos.parent / "elsewhere")


def as_concept(photos: Path) -> None:
    (photos / "10_ohwx man").mkdir()
    for path in photos.glob("*.png"):
        path.rename(photos / "10_ohwx man" / path.name)


def caption_of_a_copy_edited(root: Path) -> None:
    photos = picture_folder(root / "photos")
    shutil.copyfile(photos / "0.png", photos / "copy.png")
    (photos / "copy.txt").write_text("the same, again")
    decisions = curate_images(photos, apply=True, workers=1).curation.decisions
    dropped = next(each.file_name for each in decisions if each.action == "drop")
    (photos / dropped).with_suffix(".txt").write_text("a kite")
    ImageFolder(str(photos), manifest=MANIFEST).setup("fit")


def not_counted(root: Path) -> None:
    """Metrics of pictures against a set of which one cannot be read."""
    photos = picture_folder(root / "photos")
    (photos / "bad.png").write_bytes(b"no picture")
    metrics(picture_folder(root / "samples"), photos)


def finding(code: str, name: str, picture: Image.Image, **options: object) -> Change:
    """A folder of two captioned images with one more: what is noticed about it."""

    def run(root: Path) -> None:
        photos = picture_folder(root / "photos")
        picture.save(photos / name, **options)
        decisions = curate_images(photos, workers=1).curation.decisions
        (decision,) = (each for each in decisions if each.file_name == name)
        raise UserWarning(f"{name}: " + next(each.message for each in decision.findings if each.code == code))

    return run


def one_inside_the_other(root: Path) -> None:
    photos = picture_folder(root / "photos")
    (photos / "more").mkdir()
    curate_images([photos, photos / "more"])


def grey(mode: str) -> Image.Image:
    return Image.linear_gradient("L").resize((64, 64)).convert(mode)


def as_png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def of_12_bits() -> Image.Image:
    return Image.fromarray(np.tile(np.linspace(0, 4095, 64), (64, 1)).astype(np.uint16))


CURATION_CASES: dict[str, Change] = {
    "curate: a picture of a type that is not read": problem("type-not-read", "a.psd", b"x"),
    "curate: captions in captions.csv": problem("metadata-name", "captions.csv", b"file_name,text"),
    "curate: a caption in UTF-16 without its mark": problem(
        "caption-unreadable", "0.txt", "a ball".encode("utf-16-le")
    ),
    "curate: a caption with a NUL character": problem("caption-unreadable", "0.txt", b"a\0ball"),
    "curate: a comma in a CSV without quotes": problem("row-unusable", "metadata.csv", b"file_name,text\n0.png,a, b\n"),
    "curate: a stray quote in a CSV": problem(
        "row-unusable", "metadata.csv", b'file_name,text\n0.png,a "b" c"\n1.png,"d\n'
    ),
    "curate: captions under another name of a column": problem(
        "caption-column-missing", "metadata.csv", b"file_name,description\n0.png,a\n"
    ),
    "curate: a .caption beside a .txt": problem("caption-ambiguous", "0.caption", b"a ball"),
    "curate: a caption without an image": problem("caption-orphan", "7.txt", b"a ball"),
    "curate: a damaged EXIF block": finding("exif", "a.jpg", grey("RGB"), exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
    "curate: a white logo on a transparent ground": finding("blank", "a.png", Image.new("LA", (64, 64), (255, 90))),
    "curate: a picture in CMYK": finding("mode", "a.tif", grey("CMYK")),
    "curate: a scan of 12 bits in a file of 16": finding("dark", "a.png", of_12_bits()),
    "curate: a folder and one inside it": one_inside_the_other,
    "curate: a caption in UTF-16": problem("caption-unreadable", "0.txt", "a ball".encode("utf-16")),
    "curate: a caption in Latin-1": problem("caption-unreadable", "0.txt", b"caf\xe9"),
    "curate: a row for an image that is not there": problem(
        "row-missing-file", "metadata.csv", b"file_name,text\n9.png,a\n"
    ),
    "curate: two tables of captions": problem_of(
        "metadata-ambiguous",
        lambda photos: [(photos / f"metadata.{kind}").write_text("") for kind in ("csv", "jsonl")],
    ),
    "curate: a file of macOS beside an image": problem("left-out", "._0.png", b"Mac OS X"),
    "curate: a folder that is a link": problem_of("link-to-folder", linked),
    "curate: a name with a line break": problem("name-control-character", "a\nb.png", as_png(grey("RGB"))),
    "curate: a folder as sd-scripts has them, without captions": problem_of("sd-scripts-layout", as_concept),
    "curate: a picture that is cut off": problem("truncated", "a.png", as_png(grey("RGB"))[:80]),
    "curate: a cache that is damaged": problem_of(
        "cache-not-used", lambda photos: (photos.parent / "photos-curation/cache.sqlite").write_bytes(b"x" * 4096)
    ),
    "curate: a page that cannot be written": problem_of(
        "not-written", lambda photos: (photos.parent / "photos-curation/report.html").mkdir()
    ),
    "curate: --select 0": lambda root: curate_images(picture_folder(root / "photos"), select=0),
    "curate: no folder": lambda root: curate_images([]),
    "thumbnails of a storage box": beside("@eaDir/0.png"),
    "a mask beside its image": beside("0-masklabel.png"),
    "a manifest, then a caption edited": after_manifest(lambda photos: (photos / "0.txt").write_text("a kite")),
    "a manifest, then a caption removed": after_manifest(lambda photos: (photos / "0.txt").unlink()),
    "a manifest, then an image cut off": after_manifest(lambda photos: cut_off(photos / "0.png")),
    "a manifest, then an image replaced": after_manifest(lambda photos: (photos / "1.png").replace(photos / "0.png")),
    "a manifest, then an image removed": after_manifest(lambda photos: (photos / "0.png").unlink()),
    "a manifest, then the caption of a dropped copy edited": caption_of_a_copy_edited,
    "metrics: a picture that cannot be read": not_counted,
    "a manifest with one row twice": after_manifest(twice),
    "a manifest without hashes": after_manifest(without_hashes),
    "a manifest that is not there": after_manifest(lambda photos: (photos / MANIFEST).unlink()),
    "--from-run a folder of something else": lambda root: curate_images(picture_folder(root / "photos"), from_run=root),
    "--from-run a run that knows no files": from_run("guard.json", {"history": []}),
    "--from-run a damaged guard.json": from_run("guard.json", {"history": 3, "image_sha256": ["0" * 64]}),
    "--from-run an export of other images": from_other_export,
}
