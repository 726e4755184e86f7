"""What a collage may hold, on pictures made here."""

import numpy as np
import pytest
from PIL import Image

from basinguard.curation import tiles
from basinguard.curation.tiles import tile_proposals

SIDE = 64


def thumbnail(picture):
    return np.asarray(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def pasted(pictures, down, across):
    """A collage of the first pictures, row by row."""
    side = pictures[0].width
    sheet = Image.new("RGB", (across * side, down * side))
    for place, picture in enumerate(pictures[: down * across]):
        sheet.paste(picture, (place % across * side, place // across * side))
    return thumbnail(sheet)


@pytest.mark.parametrize(("down", "across"), [(1, 2), (2, 1), (2, 2)])
def test_tiles_are_proposed_where_they_lie(pictures, down, across):
    thumbs = np.stack([pasted(pictures, down, across), *map(thumbnail, pictures)])
    expected = {(0, 1 + place): (place % across / across, place // across / down) for place in range(down * across)}
    assert {(whole, row): box[:2] for whole, row, box in tile_proposals(thumbs)} == expected


def test_a_hash_that_is_near_by_chance_is_not_enough(pictures, monkeypatch):
    monkeypatch.setattr(tiles, "LIMIT", 64)  # every hash is near every other
    thumbs = np.stack([pasted(pictures, 2, 2), *map(thumbnail, pictures)])
    assert {row for whole, row, _ in tile_proposals(thumbs) if whole == 0} <= {1, 2, 3, 4}
