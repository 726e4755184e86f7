"""Which copy stays, on pictures made here: what was enlarged, stretched or pasted together is known."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from basinguard.curation.collages import has_seams, tell_collages
from basinguard.curation.duplicates import find_pairs
from basinguard.curation.folder import read_folder
from basinguard.curation.groups import find_alike, find_groups
from basinguard.curation.scan import scan_images
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


def collage(pictures, gap=0):
    side = pictures[0].width
    sheet = Image.new("RGB", (2 * side + gap, 2 * side + gap), "white")
    for place, picture in enumerate(pictures):
        sheet.paste(picture, (place % 2 * (side + gap), place // 2 * (side + gap)))
    return sheet


@pytest.mark.parametrize("gap", [0, 8])
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
