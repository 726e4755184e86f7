"""The most diverse few: by hand on a circle, and through the command."""

import doctest

import numpy as np
import pytest

from basinguard.curation import embedding_map
from basinguard.curation.curate import curate_images
from basinguard.curation.decisions import Allowed, AllowList, Decision
from basinguard.curation.embedding_map import map_positions
from basinguard.curation.findings import Finding
from basinguard.curation.selection import select_diverse


def decision(number, action="keep", findings=(), allowed=()):
    return Decision(
        file_name=f"{number}.png", sha256=f"{number:064x}", action=action, reason="nothing speaks against it",
        repeats=1, captions=("zxq",), risk=0.0, findings=findings, allowed=allowed,
    )  # fmt: skip


def on_a_circle(*degrees):
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


def names_of_kept(decisions):
    return [each.file_name for each in decisions if each.action != "drop"]


def test_examples():
    assert doctest.testmod(embedding_map).failed == 0


def test_the_middle_then_what_is_farthest_from_all_chosen():
    chosen = select_diverse([decision(k) for k in range(5)], on_a_circle(0, 10, 30, 35, 62), 3)
    # the mean direction is 27 degrees; 62 is 32 from the 30 chosen first, then 0 is 30 from it
    assert names_of_kept(chosen) == ["0.png", "2.png", "4.png"]
    first = "number 1 of the 3 most diverse: the most typical image, nearest to the middle of the set"
    assert chosen[2].reason == first
    assert "number 2 of the 3 most diverse: the least like" in chosen[4].reason
    assert "similarity 0.85" in chosen[4].reason
    assert "similarity 0.87" in chosen[0].reason
    assert chosen[3].reason == "not among the 3 most diverse: most like '2.png', which is (similarity 1.00)"
    assert chosen[3].repeats == 0


def test_what_does_not_show_the_concept_comes_last_and_a_refusal_first():
    outlier = Finding(code="outlier", message="unlike the rest")
    given = [decision(0), decision(1, findings=[outlier]), decision(2, action="drop"), decision(3, allowed=("drop",)),
             decision(4)]  # fmt: skip
    vectors = on_a_circle(0, 180, 90, 5, 20)
    two, every = (select_diverse(given, vectors, count) for count in (2, 9))
    assert names_of_kept(two) == ["3.png", "4.png"]
    assert "does not show the concept" in two[1].reason
    assert names_of_kept(every) == ["0.png", "1.png", "3.png", "4.png"]


def test_a_map_is_the_plane_of_largest_variance_up_to_turns():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(40, 2)) * (3, 1)
    turned, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    places = map_positions((plane @ turned[:2]).astype(np.float32))
    assert 0 <= places.min() < places.max() <= 1
    distances = [np.linalg.norm(each[:, None] - each[None], axis=2) for each in (plane, places)]
    np.testing.assert_allclose(distances[1] / distances[1].max(), distances[0] / distances[0].max(), atol=2e-3)


def test_a_curation_selects_and_its_page_goes_on_with_it(folder_of, pictures, tmp_path):
    images = {f"{n}.png": (picture, "zxq") for n, picture in enumerate(pictures[:5])}
    photos = folder_of(images | {"copy.png": (pictures[0], "zxq")})
    curation = curate_images(photos, select=3, workers=1).curation
    assert len(names_of_kept(curation.decisions)) == 3
    assert len(curation.positions) == len(curation.decisions) == 6
    assert "--select 3 --allow-list allow-list.json --apply" in (tmp_path / "photos-curation/report.html").read_text()
    unpicked = next(d for d in curation.decisions if d.reason.startswith("not among"))
    refusal = AllowList(allowed=(Allowed(sha256=unpicked.sha256, action="drop"),))
    (tmp_path / "allow.json").write_text(refusal.to_json())
    again = curate_images(photos, select=3, workers=1, allow_list=tmp_path / "allow.json").curation
    assert unpicked.file_name in names_of_kept(again.decisions)
    assert len(names_of_kept(again.decisions)) == 3
    with pytest.raises(ValueError, match="select=0: expected how many images to keep, at least 1"):
        curate_images(photos, select=0)
