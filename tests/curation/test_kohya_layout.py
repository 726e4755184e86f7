"""Folders as sd-scripts has them: repeats and words by the folder's name, pictures for regularization apart."""

import doctest

import pytest
from PIL import Image

from basinguard.curation import kohya_layout
from basinguard.curation.folder import read_folder
from basinguard.curation.kohya_layout import concepts_of
from basinguard.training.data_sources import ImageSource


def test_examples():
    assert doctest.testmod(kohya_layout).failed == 0


@pytest.fixture
def folder(tmp_path):
    names = ("img/10_ohwx man/a.png", "img/10_ohwx man/b.png", "img/3_ohwx man outdoor/c.png", "reg/1_man/d.png")
    for k, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (40 * k, 90, 200 - 40 * k)).save(path)
    (tmp_path / "img/10_ohwx man/b.txt").write_text("ohwx man in the rain")
    return tmp_path


def test_repeats_and_words_come_from_the_folder_and_captions_win(folder):
    read = read_folder(folder)
    assert [(i.file_name, i.caption, i.repeats) for i in read.items] == [
        ("img/10_ohwx man/a.png", "ohwx man", 10),
        ("img/10_ohwx man/b.png", "ohwx man in the rain", 10),
        ("img/3_ohwx man outdoor/c.png", "ohwx man outdoor", 3),
    ]
    said = {problem.file: problem.message for problem in read.problems}
    assert "shown 10 times an epoch; 1 without a caption are called 'ohwx man'" in said["img/10_ohwx man"]
    assert "1 pictures for regularization, left out" in said["reg/1_man"]
    assert not any(problem.skipped for problem in read.problems)


def test_training_shows_each_image_as_often_as_its_folder_says(folder):
    source = ImageSource.of_folder(folder)
    assert source.repeats == (10, 10, 3)
    assert source.problems == ()
    assert any("regularization" in line for line in source.oddities)


def test_numbers_that_are_no_repeats_stay_names():
    assert concepts_of(["2024_summer/a.png", "01_portraits/b.png"]) == {}
    assert concepts_of(["10_ohwx man/a.png", "b.png"]) == {}, "one image outside: the folder is something else"
