"""What the page says of pictures that train otherwise than they look in a viewer."""

import numpy as np
import pytest
from PIL import Image

from basinguard.curation.curate import curate_images
from basinguard.curation.findings import about_alike

RAMP = np.linspace(0, 4095, 64 * 64).reshape(64, 64).astype(np.uint16)  # every value that 12 bits can have


@pytest.mark.parametrize(("times", "dark_expected"), [(1, True), (16, False)])
def test_twelve_bits_in_a_file_of_sixteen_are_said_to_train_as_almost_black(tmp_path, times, dark_expected):
    """4095 / 257 is 15 of 255; sixteen times as bright fills the range."""
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(RAMP * np.uint16(times)).save(photos / "scan.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(photos / "b.png")
    decisions = curate_images(photos, workers=1).curation.decisions
    dark = {d.file_name: f.message for d in decisions for f in d.findings if f.code == "dark"}
    message = "trains as almost black; its values may be of 12 bits in a 16-bit file: scale them"
    assert dark == ({"scan.png": message} if dark_expected else {})


@pytest.mark.parametrize(("count", "said"), [(2, "another"), (3, "2 others")])
def test_look_alikes_are_counted_in_words(count, said):
    assert about_alike(4, count).message == f"looks like {said} (set 4 of look-alikes); not the same"


def test_the_summary_counts_one_as_one(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.fromarray(RAMP).save(tmp_path / "photos/a.png")
    first_line = str(curate_images(tmp_path / "photos", workers=1)).splitlines()[0]
    assert first_line.startswith("1 image, 0 pictures shown more than once, 0 sets of look-alikes, 0 leaks")
    assert first_line.endswith("1 problem")
