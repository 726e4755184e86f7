"""One picture or two: pictures made here, so the truth is known; means and extremes are checked against plain loops."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from basinguard.curation import pixel_agreement
from basinguard.curation.colour_match import ColourRule, find_rule
from basinguard.curation.pooling import block_means, even_edges, highest, lowest, pooled, spread_out
from basinguard.curation.same_picture import same_picture
from basinguard.curation.scan import inside_frame
from basinguard.similarity.registration import Overlay

WHOLE = Overlay(1.0, 1.0, False)


@pytest.fixture(scope="module")
def photograph(pictures):
    return pictures[0].resize((320, 320), Image.Resampling.BICUBIC)


def barred(picture, share=0.17):
    """Letters on a black bar across the middle."""
    copy = picture.copy()
    pen, (width, height) = ImageDraw.Draw(copy), copy.size
    pen.rectangle((0, 0.5 * height, width, (0.5 + share) * height), fill="black")
    pen.text((0.05 * width, 0.5 * height), "READ THIS", fill="white", font_size=int(0.13 * height))
    return copy


def saved(picture, directory, quality=90):
    picture.save(directory / "saved.jpg", quality=quality)
    with Image.open(directory / "saved.jpg") as image:
        return image.convert("RGB")


def test_a_bar_of_letters_does_not_pull_the_alignment(photograph, tmp_path):
    stretched = photograph.resize((416, 320), Image.Resampling.BICUBIC)
    verdict = same_picture(stretched, saved(barred(photograph), tmp_path), WHOLE)
    assert verdict.same
    assert verdict.overlay == 1
    assert verdict.box == pytest.approx((0, 0, 1, 1), abs=2e-3)


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("colour", [(8, 35, 210), (250, 250, 250), (0, 0, 0)])
def test_a_frame_is_cut_to_the_pixel(photograph, tmp_path, scale, colour):
    picture = photograph.resize((320 * scale, 320 * scale), Image.Resampling.BICUBIC)
    framed = saved(ImageOps.expand(picture, 40 * scale, colour), tmp_path)
    expected = (40 * scale, 40 * scale, 360 * scale, 360 * scale)
    assert inside_frame(framed) == pytest.approx(expected, abs=1)


def test_a_framed_copy_is_the_same_picture(photograph, tmp_path):
    framed = saved(ImageOps.expand(photograph, 41, (8, 35, 210)), tmp_path, quality=97)
    assert same_picture(photograph, framed.crop(inside_frame(framed)), WHOLE).same


def test_another_word_is_another_picture(photograph):
    one, two = (ImageOps.expand(photograph, 0) for _ in range(2))
    for picture, word in ((one, "LEFT"), (two, "RIGHT")):
        ImageDraw.Draw(picture).text((20, 20), word, fill="white", font_size=48)
    assert not same_picture(one, two, WHOLE).same


@pytest.mark.parametrize("shape", [(9, 7), (8, 8), (10, 13, 3), (1, 5)])
def test_extremes_and_means_are_those_of_plain_loops(shape):
    values = np.random.default_rng(0).random(shape).astype(np.float32)
    for row, column in np.ndindex(*shape[:2]):
        beside = values[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
        assert (highest(values)[row, column] == beside.max((0, 1))).all()
        assert (lowest(values)[row, column] == beside.min((0, 1))).all()
        square = values[row // 4 * 4 : row // 4 * 4 + 4, column // 4 * 4 : column // 4 * 4 + 4]
        mean = spread_out(pooled(values, 4), 4, shape)[row, column]
        assert mean == pytest.approx(square.mean((0, 1)), rel=1e-5)


def test_blocks_are_even_and_cover_all():
    values = np.random.default_rng(1).random((50, 33)).astype(np.float32)
    rows, columns = even_edges(50, 16), even_edges(33, 16)
    assert rows.tolist() == [0, 17, 33, 50]
    assert columns.tolist() == [0, 16, 33]
    assert block_means(values, rows, columns)[1, 1] == pytest.approx(values[17:33, 16:33].mean(), rel=1e-5)


@pytest.mark.parametrize("rule", [ColourRule((1.2, 0.9, 1.0), (10.0, -20.0, 5.0)), ColourRule(gamma=1.8)])
def test_a_rule_of_colours_is_found_under_something_laid_over(rule):
    cells = np.random.default_rng(2).uniform(0, 255, (576, 3)).astype(np.float32)
    target = rule(cells)
    target[:100] = 0  # a black bar
    fitted_rule = find_rule(cells, target)
    assert fitted_rule is not None
    assert np.median(np.abs(fitted_rule(cells) - rule(cells))[100:]) < 2


def test_one_digit_of_a_screenshot_counts():
    screens = []
    for digit in "06":
        screen = Image.new("RGB", (384, 384), (235, 235, 240))
        pen = ImageDraw.Draw(screen)
        for line in range(12):
            pen.text((90, 50 + 24 * line), "model river paper light window garden", fill=(30, 30, 30), font_size=12)
        pen.text((90, 360), f"page 1{digit} of 24", fill=(30, 30, 30), font_size=11)
        screens.append(screen)
    assert not same_picture(*screens, WHOLE).same
    assert same_picture(screens[0], screens[0].copy(), WHOLE).same


def test_a_new_colour_on_the_same_ground_is_another_picture(photograph):
    shade = np.asarray(photograph.convert("L"), np.float32)[..., None] / 255
    inside = np.zeros((320, 320, 1), np.float32)
    inside[60:260, 60:260] = 1
    shirts = [
        np.array(colour, np.float32) * (0.7 + 0.5 * shade) * inside + 240 * (1 - inside)
        for colour in ((60, 200, 140), (85, 210, 120))
    ]
    one, two = (Image.fromarray(shirt.clip(0, 255).astype(np.uint8)) for shirt in shirts)
    assert not same_picture(one, two, WHOLE).same


def test_nothing_is_laid_over_a_drawing():
    figures = []
    for leg in (0, 1):
        grid = np.random.default_rng(4).integers(0, 2, (24, 24, 1)) * np.array([150, -60, 90]) + np.array([40, 90, 30])
        grid[18 + leg : 20 + leg, 8:14] = (250, 250, 40)
        figures.append(Image.fromarray(grid.astype(np.uint8)).resize((384, 384), Image.Resampling.NEAREST))
    assert not same_picture(*figures, WHOLE).same


def test_a_blur_of_the_whole_picture_is_undone_at_its_rim_too(pictures):
    blurred = pictures[3].filter(ImageFilter.GaussianBlur(2.6))
    whole = Overlay(1.0, 1.0, False)
    assert same_picture(pictures[3], blurred, whole).same
    assert same_picture(blurred, pictures[3], whole).same


def test_the_order_of_two_pictures_decides_nothing(pictures):
    """Brightened until light colours are clipped: only one way round the change of light is a rule."""
    clipped = pictures[4].point(lambda value: min(255, int(1.35 * value) + 20))
    whole = Overlay(1.0, 1.0, False)
    verdicts = [same_picture(pictures[4], clipped, whole).same, same_picture(clipped, pictures[4], whole).same]
    assert verdicts[0] == verdicts[1]


def test_letters_on_a_gradient_are_a_drawing():
    """A gradient has contrast in every block and no detail, so its mirror image may mean another thing."""
    y, x = np.mgrid[0:256, 0:256] / 256
    waves = np.stack([127 + 60 * (x - y) + 50 * np.sin(7 * (a * x + y)) for a in (0.7, -0.4, 0.5)], -1)
    poster = Image.fromarray(waves.clip(0, 255).astype(np.uint8))
    ImageDraw.Draw(poster).text((128, 128), "STOP", "white", ImageFont.load_default(60), anchor="mm")
    verdict = same_picture(poster, ImageOps.mirror(poster), Overlay(1.0, 1.0, True))
    assert not verdict.same
    assert "a drawing" in verdict.reason


@pytest.mark.parametrize(("radius", "same"), [(6, False), (30, True)])
def test_a_spot_is_no_logo(pictures, radius, same):
    """A mole, a bird, a button: what is flat and small may be in the scene."""
    spotted = pictures[6].copy()
    ImageDraw.Draw(spotted).ellipse((96 - radius, 96 - radius, 96 + radius, 96 + radius), fill="red")
    assert same_picture(pictures[6], spotted, Overlay(1.0, 1.0, False)).same == same


def test_off_a_plane_is_what_least_squares_leave():
    y, x = np.mgrid[0:16, 0:16]
    block = np.random.default_rng(0).normal(2 * x + 3 * y, 5).astype(np.float32)
    plane = np.stack([np.ones(256), x.ravel(), y.ravel()], 1)
    rest = block.ravel() - plane @ np.linalg.lstsq(plane, block.ravel(), rcond=None)[0]
    assert pixel_agreement._off_plane(block[None, :, None, :]) == pytest.approx(rest.std(), abs=1e-4)
