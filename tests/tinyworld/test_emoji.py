"""Real art from an unpacked package: families are split, the licence is named, what is missing is said."""

import json

import pytest
from PIL import Image

from basinguard.tinyworld.emoji import GROUPS, LICENCE, EmojiSet
from basinguard.tinyworld.tasks import art

FAMILIES = 10


@pytest.fixture
def package(tmp_path):
    """A package as npm unpacks it: three pictures in each of ten families, a clock face and a flag."""
    pictures = tmp_path / "img" / "google" / "64"
    pictures.mkdir(parents=True)
    rows = [("time", GROUPS[3], "one_oclock"), ("flag", "Flags", "flag-no")]
    rows += [(f"family-{f}", GROUPS[f % len(GROUPS)], f"thing_{f}_{k}") for f in range(FAMILIES) for k in range(3)]
    entries = []
    for number, (family, group, name) in enumerate(rows):
        Image.new("RGBA", (64, 64), (number, 0, 0, 0 if number % 2 else 255)).save(pictures / f"{number:04x}.png")
        entries.append({"image": f"{number:04x}.png", "short_name": name, "category": group, "subcategory": family})
    entries.append(entries[-1] | {"image": "not-there.png"})
    (tmp_path / "emoji.json").write_text(json.dumps(entries))
    return tmp_path


def test_no_family_is_both_trained_on_and_held_out(package):
    emoji = EmojiSet.read(package)
    families = [{e.family for e in part} for part in (emoji.train, emoji.heldout)]
    assert not families[0] & families[1]
    assert (len(families[0]), len(families[1])) == (7, 3)
    assert "time" not in families[0] | families[1]


def test_a_picture_stands_on_white_and_is_named_in_words(package):
    emoji = EmojiSet.read(package)
    clear = next(e for e in (*emoji.train, *emoji.heldout) if int(e.path.stem, 16) % 2)
    assert clear.draw().getcolors() == [(64 * 64, (255, 255, 255))]
    assert all(e.caption.startswith("a thing ") for e in emoji.train)


def test_art_draws_each_picture_once(package):
    task = art(package)
    drawn = task.train(21)
    assert len(set(drawn.captions)) == 21
    assert not set(drawn.captions) & set(task.truth(9).captions)
    with pytest.raises(ValueError, match=r"'art': n=22, seed=0; expected n in 1..21"):
        task.train(22)


def test_a_folder_that_is_no_package_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="npm pack emoji-datasource-google@16"):
        EmojiSet.read(tmp_path)


def test_licence_is_named():
    assert "Apache License 2.0" in LICENCE
