"""Which copy stays, on pictures made here: what was enlarged, stretched or pasted together is known."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from basinguard.curation.collages import has_seams, tell_collages
from basinguard.curation.duplicates import find_pairs
from basinguard.curation.folder import read_folder
from basinguard.curation.groups import find_alike, find_groups
from basinguard.curation.picture_quality import picture_qualities, why_best
from basinguard.curation.placement import Placement
from basinguard.curation.reconstruction import is_blurred
from basinguard.curation.scan import scan_images
from basinguard.curation.true_detail import true_details
from support.picture_edits import cropped, jpeg

LARGER = {
    "stretched": lambda p: p.resize((250, 192)),
    "made taller": lambda p: p.resize((192, 250), Image.Resampling.LANCZOS),
    "enlarged": lambda p: p.resize((250, 250), Image.Resampling.BILINEAR),
    "enlarged crop": lambda p: cropped(p, 0.1, 0.1, 0.95, 0.95).resize((250, 250), Image.Resampling.BICUBIC),
    "mirrored, stretched, jpeg": lambda p: jpeg(ImageOps.mirror(p).resize((250, 192)), 90),
}


def scan_of(directory, pictures):
    for name, picture in pictures.items():
        picture.save(directory / f"{name}.png")
    return scan_images(read_folder(directory, decode=False).items)


def kept(scan):
    """What stays of each group, and which are alike, by name."""
    pairs, names = tell_collages(scan, find_pairs(scan)), [item.file_name[:-4] for item in scan.items]
    groups = find_groups(scan, pairs)
    alike = [{names[row] for row in rows} for rows in find_alike(pairs, groups)]
    return {names[group.representative]: {names[row] for row in group.members[1:]} for group in groups}, alike, groups


@pytest.mark.parametrize("edit", LARGER)
def test_more_pixels_are_no_more_detail(pictures, tmp_path, edit):
    scan = scan_of(tmp_path, {"original": pictures[0], "a copy": LARGER[edit](pictures[0])})
    groups, _, proposals = kept(scan)
    assert groups == {"original": {"a copy"}}
    assert "the most true detail (192 x 192" in proposals[0].reason


@pytest.mark.parametrize("method", ["NEAREST", "BILINEAR", "BICUBIC", "LANCZOS", "BOX"])
def test_a_copy_made_smaller_does_not_stay(pictures, tmp_path, method):
    smaller = pictures[1].resize((148, 148), Image.Resampling[method])
    scan = scan_of(tmp_path, {"original": pictures[1], "a copy": smaller})
    assert kept(scan)[0] == {"original": {"a copy"}}


def figure(item):
    """A pixel figure on a plain ground, with or without something in the air above its arm."""
    grid = np.full((24, 24, 3), (150, 240, 210), np.uint8)
    half = np.where(np.random.default_rng(3).random((8, 4, 1)) < 0.7, (240, 20, 90), (120, 130, 250))
    grid[6:14, 11:15], grid[6:14, 15:19] = half, half[:, ::-1]
    grid[8:10, 8:11] = grid[11:12, 19:22] = (90, 210, 180)
    grid[14:19, 12:15] = (90, 90, 0)
    if item:
        grid[4:6, 18:20] = (90, 210, 180)
    return Image.fromarray(grid).resize((384, 384), Image.Resampling.NEAREST)


def test_what_stands_beside_a_figure_on_a_plain_ground_counts(tmp_path):
    groups, alike, _ = kept(scan_of(tmp_path, {"with": figure(True), "without": figure(False)}))
    assert not groups
    assert alike == [{"with", "without"}]


def test_a_crop_of_a_framed_picture_is_a_copy(pictures, tmp_path):
    framed = ImageOps.expand(pictures[2], 40, "white")
    groups, _, _ = kept(scan_of(tmp_path, {"framed": framed, "a crop": cropped(pictures[2], 0.1, 0.05, 1.0, 0.9)}))
    assert [len(members) for members in groups.values()] == [1]


def collage(pictures, gap=0):
    side = pictures[0].width
    sheet = Image.new("RGB", (2 * side + gap, 2 * side + gap), "white")
    for place, picture in enumerate(pictures):
        sheet.paste(picture, (place % 2 * (side + gap), place // 2 * (side + gap)))
    return sheet


@pytest.mark.parametrize("gap", [pytest.param(0, marks=pytest.mark.long), 8])
def test_a_collage_of_pictures_that_are_there_goes(pictures, tmp_path, gap):
    tiles = {f"tile {place}": picture for place, picture in enumerate(pictures[:4])}
    groups, alike, proposals = kept(scan_of(tmp_path, {"a collage": collage(pictures[:4], gap)} | tiles))
    assert [len(members) for members in groups.values()] == [1]
    assert set(groups) < set(tiles)
    assert groups.popitem()[1] == {"a collage"}
    assert "no collage" in proposals[0].reason
    assert not alike


def test_a_collage_that_shows_more_is_shown_and_not_dropped(pictures, tmp_path):
    groups, alike, _ = kept(
        scan_of(tmp_path, {"a collage": collage(pictures[:4]), "tile": pictures[0], "copy": jpeg(pictures[0], 60)})
    )
    assert groups == {"tile": {"copy"}}
    assert alike == [{"a collage", "tile"}]


def test_a_crop_has_no_seams(pictures):
    for picture in pictures:
        assert not has_seams(np.asarray(picture.convert("L"), np.float32), (0.2, 0.1, 0.8, 0.7))


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_copy_is_found(pictures, tmp_path, degrees):
    images = {f"s{place}": picture for place, picture in enumerate(pictures[:4])}
    groups, _, _ = kept(scan_of(tmp_path, images | {"turned": jpeg(pictures[2].rotate(degrees), 80)}))
    assert groups == {"s2": {"turned"}}


def test_colours_that_most_copies_have_stay(pictures, tmp_path):
    darker = pictures[5].point(lambda value: 255 * (value / 255) ** 1.6)
    images = {"darker": darker, "original": pictures[5], "mirrored": ImageOps.mirror(pictures[5])}
    groups, _, _ = kept(scan_of(tmp_path, images | {"smaller": pictures[5].resize((150, 150))}))
    assert groups == {"original": {"darker", "mirrored", "smaller"}}


SMALL_OR_STRETCHED = {
    "a stretched thumbnail": lambda p: p.resize((120, 80), Image.Resampling.BICUBIC),
    "a thumbnail": lambda p: p.resize((128, 128), Image.Resampling.LANCZOS),
    "half of the size": lambda p: p.resize((p.width // 2, p.height // 2), Image.Resampling.BOX),
    "every second pixel": lambda p: p.resize((p.width // 2, p.height // 2), Image.Resampling.NEAREST),
    "pixels twice": lambda p: p.resize((2 * p.width, 2 * p.height), Image.Resampling.NEAREST),
}
DRAWINGS = {
    "soft": lambda: drawing(3).filter(ImageFilter.GaussianBlur(5)),
    "very soft": lambda: drawing(4).filter(ImageFilter.GaussianBlur(20)),
    "flat": lambda: drawing(5),
    "gradient": lambda: gradient(500),
}


def drawing(seed, side=500):
    rng = np.random.default_rng(seed)
    fine = Image.new("RGB", (2 * side, 2 * side), "beige")
    pen = ImageDraw.Draw(fine)
    for _ in range(20):
        (x, y), r = rng.uniform(0, 2 * side, 2), rng.uniform(0.05, 0.2) * 2 * side
        shape = pen.ellipse if rng.integers(2) else pen.rectangle
        fill = tuple(int(value) for value in rng.integers(0, 256, 3))
        shape((x - r, y - r, x + r, y + r * rng.uniform(0.3, 1)), fill=fill, outline="black", width=side // 60)
    return fine.resize((side, side), Image.Resampling.BOX)


def gradient(side):
    y, x = np.mgrid[0:side, 0:side] / side
    waves = [127 + 60 * (x - y) + 50 * np.sin(7 * (a * x + b * y)) for a, b in ((0.7, 0.2), (-0.4, 0.9), (0.5, -0.6))]
    return Image.fromarray(np.stack(waves, -1).clip(0, 255).astype(np.uint8))


def best_of(directory, pictures):
    """The name of the best of copies that show all of one picture, and why."""
    scan = scan_of(directory, pictures)
    rows = range(len(scan.items))
    qualities = true_details(scan, picture_qualities(scan, rows, (), ()), dict.fromkeys(rows, Placement()))
    ranked = sorted(rows, key=lambda row: qualities[row].rank, reverse=True)
    return scan.items[ranked[0]].file_name, why_best([qualities[row] for row in ranked])


@pytest.mark.parametrize("kind", DRAWINGS)
@pytest.mark.parametrize("edit", SMALL_OR_STRETCHED)
def test_a_drawing_stays_before_its_thumbnail(tmp_path, kind, edit):
    original = DRAWINGS[kind]()
    copy = SMALL_OR_STRETCHED[edit](original)
    assert best_of(tmp_path, {"a copy": copy, "original": original})[0] == "original.png"


@pytest.mark.parametrize("blur", [1.0, 2.5])
def test_a_drawing_stays_before_a_blurred_copy(tmp_path, blur):
    copies = {"a copy": drawing(6).filter(ImageFilter.GaussianBlur(blur)), "original": drawing(6)}
    assert best_of(tmp_path, copies)[0] == "original.png"


def test_noise_is_no_detail(tmp_path):
    soft = drawing(7).filter(ImageFilter.GaussianBlur(4))
    noise = np.random.default_rng(0).normal(0, 4, (soft.height, soft.width, 3))
    noisy = Image.fromarray((np.asarray(soft) + noise).clip(0, 255).astype(np.uint8))
    places = ((0.0, 0.0, 500.0, 500.0),) * 2
    assert not is_blurred(soft.convert("L"), noisy.convert("L"), places)
    assert is_blurred(soft.convert("L"), drawing(7).convert("L"), places)


def test_of_two_shapes_the_usual_one_stays_and_of_two_copies_the_larger(tmp_path):
    soft = DRAWINGS["very soft"]()
    copies = {"wide": soft.resize((650, 500)), "original": soft}
    name, why = best_of(tmp_path, copies)
    assert (name, why) == ("wide.png", "the most pixels (650 x 500); their proportions differ, look which are right")
    assert best_of(tmp_path, copies | {"smaller": soft.resize((480, 480))})[0] == "original.png"


def test_a_file_without_loss_stays_even_if_it_is_smaller(tmp_path):
    picture = drawing(8)
    picture.save(tmp_path / "a copy.jpg", quality=100)
    name, why = best_of(tmp_path, {"original": picture})
    assert (tmp_path / "original.png").stat().st_size < (tmp_path / "a copy.jpg").stat().st_size
    assert (name, why) == ("original.png", "as much detail as any (500 x 500) and a file format without loss")


def test_a_soft_drawing_and_its_stretched_thumbnail_in_a_folder(tmp_path):
    original = drawing(3, 700).filter(ImageFilter.GaussianBlur(5))
    copies = {"a copy": original.resize((120, 80)), "original": original, "other": drawing(9)}
    assert kept(scan_of(tmp_path, copies))[0] == {"original": {"a copy"}}


def test_what_is_turned_against_an_enlarged_copy_is_laid_over_the_original_too(pictures, tmp_path):
    images = {
        "original": pictures[7],
        "enlarged": pictures[7].resize((384, 384)),
        "made taller": pictures[7].resize((192, 250)),
        "turned": jpeg(pictures[7].rotate(90), 80),
    }
    assert kept(scan_of(tmp_path, images))[0] == {"original": {"enlarged", "made taller", "turned"}}
