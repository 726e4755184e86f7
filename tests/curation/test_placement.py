"""Placements against points moved by hand."""

import pytest

from basinguard.curation.duplicates import Pair
from basinguard.curation.placement import Placement, of_pair, placements


def test_a_piece_of_a_piece_lies_where_both_say():
    """2 is the right half of 1, mirrored, and 1 the middle fifth to four fifths of 0."""
    one = Pair(0, 1, "hash", 1.0, 0.36, False, box=(0.2, 0.2, 0.8, 0.8))
    two = Pair(1, 2, "hash", 1.0, 0.5, True, box=(0.5, 0.0, 1.0, 1.0))
    overlay = placements(0, [one, two])[2].overlay()
    assert overlay.mirrored
    assert not overlay.swapped
    assert overlay.box == pytest.approx((0.5, 0.2, 0.8, 0.8))
    back = placements(2, [one, two])[0].overlay()
    assert back.swapped
    assert back.box == pytest.approx(overlay.box)


def test_two_pieces_that_only_overlap_are_none_of_each_other():
    left = Pair(0, 1, "hash", 1.0, 0.6, False, box=(0.0, 0.0, 0.6, 1.0))
    right = Pair(0, 2, "hash", 1.0, 0.6, False, box=(0.4, 0.0, 1.0, 1.0))
    assert placements(1, [left, right])[2].overlay() is None


def test_an_inverse_undoes():
    placement = of_pair(Pair(0, 1, "hash", 1.0, 0.5, True, swapped=True, box=(0.1, 0.2, 0.7, 0.9)))
    both = placement.after(placement.inverse())
    assert [both.across, both.left, both.down, both.top] == pytest.approx([1, 0, 1, 0])
    assert of_pair(Pair(0, 1, "hash", 1.0, 1.0, False)) is None
    assert Placement().overlay().box == (0.0, 0.0, 1.0, 1.0)
