"""A sheet of samples: long titles stay in their column, copies get a frame."""

import torch
from PIL import ImageColor, ImageFont

from basinguard.plots.contact_sheet import TILE, contact_sheet, contact_strip, title_lines
from basinguard.plots.style import VERMILLION


def test_a_long_title_is_broken_and_the_sheet_grows_by_its_lines():
    font = ImageFont.load_default(size=15)
    lines = title_lines("plain CFG, whole fine-tune of the newest epoch", font)
    assert len(lines) > 1
    assert all(font.getlength(line) <= TILE for line in lines)
    tiles = torch.zeros(1, 3, 8, 8)
    short, long = (contact_sheet({title: tiles}, ["a"], {}) for title in ("base", " ".join(lines)))
    assert long.height > short.height
    assert long.width == short.width


def test_only_copies_get_a_frame():
    white = torch.ones(2, 3, 8, 8)
    sheet = contact_sheet({"a": white}, ["x", "y"], {"a": [False, True]})
    framed = [y for y in range(sheet.height) if sheet.getpixel((10, y)) == ImageColor.getrgb(VERMILLION)]
    assert framed
    assert min(framed) > sheet.height // 2


def test_a_strip_is_wide_and_frames_the_copy_of_its_column():
    white = torch.ones(4, 3, 8, 8)
    captions = ["a dotted kite with a hat and with eyes", "y", "z", "w"]
    sheet = contact_strip(
        {"training image": white, "plain CFG": white}, captions, {"plain CFG": [False, False, True, False]}
    )
    assert sheet.width > 1.5 * sheet.height
    colour = ImageColor.getrgb(VERMILLION)
    framed = [(x, y) for x in range(sheet.width) for y in range(sheet.height) if sheet.getpixel((x, y)) == colour]
    (left, top), (right, bottom) = map(min, zip(*framed, strict=True)), map(max, zip(*framed, strict=True))
    assert (right - left, bottom - top) == (TILE + 5, TILE + 5)
    assert top > sheet.height // 2 - TILE // 2
    assert left > sheet.width // 2
