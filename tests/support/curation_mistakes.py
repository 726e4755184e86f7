"""What people do to a folder of images, its captions and its manifest; each function ends in what the user sees."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
import struct
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image, ImageCms

from basinguard.commands.metrics import metrics
from basinguard.core.files import joined_sha256
from basinguard.curation import thumbnail_cache
from basinguard.curation.curate import curate_images
from basinguard.curation.folder import Problem, read_folder
from basinguard.curation.manifest import MANIFEST
from basinguard.curation.workers import worker_pool
from basinguard.training.data import ImageFolder

from .curation_records import record_with
from .ending_reads import read_or_end
from .guarded_runs import picture_folder

Change = Callable[[Path], object]
WORDS = ("outside", "reading", "asleep", "running", "by a lake")
TURNED = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # EXIF: orientation 6


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
        (root / "photos-curation").mkdir(exist_ok=True)
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


def foreign_profile() -> bytes:
    """A profile of Lab colours, which no RGB picture has."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def wide_profile() -> bytes:
    """The profile of sRGB under another name, as cameras and screens write theirs."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace("sRGB".encode("utf-16-be"), "Wide".encode("utf-16-be")).replace(b"sRGB", b"Wide")


def with_pixels_that_are_no_numbers() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((64, 64), np.nan, np.float32)).save(file, "TIFF")
    return file.getvalue()


def of_pixels(width: int, height: int) -> bytes:
    """The beginning of a PNG that says to have so many pixels."""
    said = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    size, check = struct.pack(">I", len(said) - 4), struct.pack(">I", zlib.crc32(said))
    return as_png(grey("RGB"))[:8] + size + said + check + as_png(grey("RGB"))[33:]


def note(captions: list[str], word: str) -> Change:
    """A folder with these captions: the first note about all of them that holds a word."""

    def run(root: Path) -> None:
        photos = picture_folder(root / "photos")
        for number, caption in enumerate(captions):
            grey("RGB").rotate(10 * number).save(photos / f"{number}.png")
            (photos / f"{number}.txt").write_text(caption)
        notes = curate_images(photos, workers=1).curation.notes
        raise UserWarning(next(each for each in notes if word in each))

    return run


def while_locked(root: Path) -> None:
    """A curation whose cache another run is writing."""
    (root / "photos-curation").mkdir()
    with closing(sqlite3.connect(root / "photos-curation/cache.sqlite", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        with patch.object(thumbnail_cache, "PATIENCE", 0.01):
            problem_of("cache-not-used", lambda photos: None)(root)


def while_one_ends_its_process(root: Path) -> None:
    """Two images read by two processes, one of which ends the process that reads it."""
    with worker_pool(2) as mapped:
        error = next(mapped(read_or_end, ["ends.png", "0.png"]))
    raise UserWarning(str(Problem(error.code, "ends.png", str(error), True)))


def one_picture_as(name: str, content: bytes) -> Change:
    """A folder that holds only this."""

    def run(root: Path) -> None:
        (root / "photos").mkdir()
        (root / "photos" / name).write_bytes(content)
        curate_images(root / "photos", workers=1)

    return run


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
    "curate: pictures of a phone that are not read": problem("type-not-read", "a.heic", b"x"),
    "curate: a drawing in PostScript": problem("type-not-read", "a.eps", b"%!PS"),
    "curate: a film": problem("type-not-read", "a.mp4", b"x"),
    "curate: a browser's unfinished download": problem("type-not-read", "a.jpg.crdownload", b"x"),
    "curate: an empty picture": problem("empty", "a.png", b""),
    "curate: a picture of a billion pixels": problem("bomb", "a.png", of_pixels(40_000, 40_000)),
    "curate: a TIFF of numbers that are none": problem_of(
        "unreadable", lambda photos: (photos / "a.tif").write_bytes(with_pixels_that_are_no_numbers())
    ),
    "curate: a colour profile": finding("profile", "a.png", grey("RGB"), icc_profile=wide_profile()),
    "curate: a colour profile of other pixels": finding("profile", "a.png", grey("RGB"), icc_profile=foreign_profile()),
    "curate: a picture with transparent pixels": finding("alpha", "a.png", grey("RGB").convert("RGBA").rotate(45)),
    "curate: a picture that EXIF turns": finding("rotated", "a.jpg", grey("RGB"), exif=b"Exif\0\0" + TURNED),
    "curate: a picture of several frames": finding(
        "animated", "a.gif", grey("L"), save_all=True, append_images=[grey("L").rotate(90)]
    ),
    "curate: a narrow picture": finding("ratio", "a.png", grey("RGB").resize((300, 64))),
    "curate: no column that names images": problem("row-unusable", "metadata.csv", b"image,caption\n0.png,a\n"),
    "curate: names of Windows that lead out": problem("row-escapes", "metadata.csv", b"file_name,text\n..\\0.png,a\n"),
    "curate: a trigger in every caption": note([f"zxq man {word}" for word in WORDS], "trigger"),
    "curate: what most captions say besides the trigger": note(
        [f"zxq man {word} in a white shirt" for word in WORDS], "white shirt"
    ),
    "curate: a cache that another run holds": while_locked,
    "curate: an image that ends the process reading it": while_one_ends_its_process,
    "curate: a folder of no pictures": one_picture_as("notes.pdf", b"x"),
    "curate: a folder of one damaged picture": one_picture_as("a.png", b"no picture"),
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
