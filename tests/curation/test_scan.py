"""Expected values: the file's own SHA-256 and its pixels, shrunk by Pillow."""

import hashlib
import sqlite3

import numpy as np
import pytest
from PIL import Image, ImageOps

from basinguard.curation import scan as scanning
from basinguard.curation.folder import read_folder
from basinguard.curation.scan import scan_images, shrink


def read(directory):
    return read_folder(directory, decode=False).items


def test_hashes_and_thumbnails(folder_of, pictures):
    directory = folder_of({"a.png": (pictures[0], "a"), "b.png": (pictures[1], "b")})
    scan = scan_images(read(directory))
    assert scan.sha256[0] == hashlib.sha256((directory / "a.png").read_bytes()).hexdigest()
    direct = np.asarray(pictures[0].resize((64, 64), Image.Resampling.BOX), int)
    assert np.abs(scan.thumbs[0].astype(int) - direct).max() <= 2
    assert scan.aspects.tolist() == [1.0, 1.0]


def test_processes_do_not_change_the_result(folder_of, pictures):
    directory = folder_of({f"{n}.jpg": (picture, "") for n, picture in enumerate(pictures[:4])})
    (directory / "bad.jpg").write_bytes((directory / "0.jpg").read_bytes()[:4000])
    one, two = (scan_images(read(directory), workers=count) for count in (1, 2))
    assert np.array_equal(one.thumbs, two.thumbs)
    assert (one.sha256, one.problems) == (two.sha256, two.problems)
    assert [problem.file for problem in one.problems] == ["bad.jpg"]


def test_a_second_run_decodes_nothing(folder_of, pictures, tmp_path, monkeypatch):
    directory = folder_of({"a.png": (pictures[0], ""), "b.png": (pictures[1], "")})
    first = scan_images(read(directory), cache=tmp_path / "cache.sqlite")
    monkeypatch.setattr(scanning, "shrink", lambda path: pytest.fail(f"decoded {path} again"))
    second = scan_images(read(directory), cache=tmp_path / "cache.sqlite")
    assert np.array_equal(first.thumbs, second.thumbs)


def test_an_interrupted_scan_goes_on_where_it_stopped(folder_of, pictures, tmp_path, monkeypatch):
    directory = folder_of({f"{n}.png": (picture, "") for n, picture in enumerate(pictures[:4])})
    decoded = []

    def interrupted(path):
        if len(decoded) == 2:
            raise KeyboardInterrupt
        decoded.append(path)
        return shrink(path)

    monkeypatch.setattr(scanning, "shrink", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scan_images(read(directory), cache=tmp_path / "cache.sqlite")
    with sqlite3.connect(tmp_path / "cache.sqlite") as database:
        assert database.execute("SELECT count(*) FROM thumbs").fetchone() == (2,)
    database.close()
    rest = []
    monkeypatch.setattr(scanning, "shrink", lambda path: (rest.append(path), shrink(path))[1])
    assert len(scan_images(read(directory), cache=tmp_path / "cache.sqlite").items) == 4
    assert len(rest) == 2


def test_a_file_that_is_no_cache_is_refused(folder_of, pictures, tmp_path):
    directory = folder_of({"a.png": (pictures[0], "")})
    (tmp_path / "cache.sqlite").write_bytes(b"something else" * 100)
    with pytest.raises(ValueError, match="not a cache"):
        scan_images(read(directory), cache=tmp_path / "cache.sqlite")
    assert (tmp_path / "cache.sqlite").read_bytes() == b"something else" * 100


@pytest.mark.parametrize("fill", ["black", "white", (200, 30, 30)])
def test_a_plain_frame_is_cut_off(tmp_path, pictures, fill):
    ImageOps.expand(pictures[0], 24, fill=fill).save(tmp_path / "framed.png")
    pictures[0].save(tmp_path / "plain.png")
    framed, aspect, inside = shrink(tmp_path / "framed.png")
    plain, _, whole = shrink(tmp_path / "plain.png")
    assert aspect == pytest.approx(1.0, abs=0.02)
    assert inside == pytest.approx((192 / 240) ** 2, abs=0.02)
    assert whole == 1
    assert np.abs(framed.astype(int) - plain.astype(int)).mean() < 4


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_every_mode_becomes_a_thumbnail(tmp_path, mode):
    grey = Image.linear_gradient("L").resize((80, 80))
    if mode in ("I;16", "F"):
        values = np.asarray(grey, np.float32) * 257
        picture = Image.fromarray(values.astype(np.uint16) if mode == "I;16" else values)
    else:
        picture = grey.convert("RGB").convert(mode) if mode != "LA" else grey.convert("LA")
    picture.save(tmp_path / "a.tif")
    thumb, _, _ = shrink(tmp_path / "a.tif")
    assert thumb[:8].mean() < 60 < 190 < thumb[-8:].mean()


def test_rotation_and_transparency(tmp_path, pictures):
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures[0].rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    pictures[0].save(tmp_path / "plain.png")
    turned, plain = shrink(tmp_path / "turned.png")[0], shrink(tmp_path / "plain.png")[0]
    assert np.abs(turned.astype(int) - plain.astype(int)).max() <= 2
    Image.new("RGBA", (80, 80), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert shrink(tmp_path / "clear.png")[0].tolist() == np.full((64, 64, 3), 255).tolist()


def test_no_processes_is_an_error(folder_of, pictures):
    directory = folder_of({"a.png": (pictures[0], "")})
    with pytest.raises(ValueError, match="at least 1"):
        scan_images(read(directory), workers=0)
