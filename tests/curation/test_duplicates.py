"""Copies are made here, so the truth is known; hashes and neighbours are checked against plain loops."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.fft import dctn

from basinguard.curation import nearest_neighbours as neighbours
from basinguard.curation.descriptors import (
    CELLS,
    SIDE,
    SPANS,
    WINDOW,
    describe_thumbnails,
    near_pairs,
    perceptual_hashes,
)
from basinguard.curation.duplicates import Pair, exact_pairs, find_pairs
from basinguard.curation.folder import read_folder
from basinguard.curation.groups import find_alike, find_groups
from basinguard.curation.nearest_neighbours import nearest_neighbours, nearest_views
from basinguard.curation.same_picture import PictureVerdict
from basinguard.curation.scan import scan_images
from basinguard.similarity.cross_correlation import back
from basinguard.similarity.overlay_fit import sketch
from basinguard.similarity.registration import WHOLE, best_overlays, whole_overlays
from basinguard.tinyworld.scenes import Caption, draw_scene
from support.picture_edits import EDITS


@pytest.fixture(scope="module")
def scanned(pictures, tmp_path_factory):
    """Twelve strangers and every edit of the first one."""
    directory = tmp_path_factory.mktemp("set")
    for number, picture in enumerate(pictures[:12]):
        picture.save(directory / f"s{number:02d}.png")
    for name, edit in EDITS.items():
        edit(pictures[0]).save(directory / f"e {name}.png")
    return scan_images(read_folder(directory, decode=False).items)


@pytest.fixture(scope="module")
def pairs(scanned):
    return find_pairs(scanned)


@pytest.fixture(scope="module")
def groups(scanned, pairs):
    return find_groups(scanned, pairs)


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_copy_is_found(scanned, groups, edit):
    names = [item.file_name for item in scanned.items]
    (group,) = groups
    assert names.index(f"e {edit}.png") in group.members


def test_strangers_are_not(scanned, pairs):
    of_first = {
        row for row, item in enumerate(scanned.items) if item.file_name[0] == "e" or item.file_name == "s00.png"
    }
    assert {row for pair in pairs for row in (pair.first, pair.second)} <= of_first


def test_mirrored_and_cropped_are_said(scanned):
    names = [item.file_name for item in scanned.items]
    listed = [[names.index("s00.png"), names.index(f"e {edit}.png")] for edit in ("mirror", "jpeg", "square crop")]
    mirror, plain = whole_overlays(sketch(scanned.thumbs), np.array(listed[:2]))
    (crop,) = best_overlays(scanned.thumbs, scanned.aspects, np.array(listed[2:]))
    assert mirror.mirrored
    assert not plain.mirrored
    assert crop.share == pytest.approx(0.7, abs=0.05)


def test_twins_are_rarely_merged():
    """One caption, other layouts: not the same picture. One pair in 45 is known to be taken for one all the same."""
    scenes = [draw_scene(Caption("star", "striped", "with eyes"), seed) for seed in range(10)]
    thumbs = np.stack([np.asarray(scene) for scene in scenes])
    listed = np.array([(a, b) for a in range(10) for b in range(a)])
    overlays = zip(whole_overlays(sketch(thumbs), listed), best_overlays(thumbs, np.ones(10), listed), strict=True)
    assert sum(whole.fits or inside.fits for whole, inside in overlays) <= 1


def test_a_flat_picture_is_like_no_other(pictures):
    thumbs = np.stack([np.full((64, 64, 3), 90, np.uint8), np.asarray(pictures[0].resize((64, 64)))])
    assert whole_overlays(sketch(thumbs), np.array([[0, 1]]))[0].similarity == 0
    assert best_overlays(thumbs, np.ones(2), np.array([[0, 1]]))[0].similarity == 0


def test_exact_copies_point_at_the_first():
    assert exact_pairs(["x", "y", "x", "x"]) == [
        Pair(0, 2, "exact", 1.0, 1.0, False),
        Pair(0, 3, "exact", 1.0, 1.0, False),
    ]


def test_the_hash_is_the_sign_of_a_cosine_transform(pictures):
    thumb = np.asarray(pictures[3].resize((64, 64)))
    small = thumb.mean(-1).reshape(32, 2, 32, 2).mean((1, 3))
    low = dctn(small, norm="ortho")[:8, :8]
    expected = np.packbits((low > np.median(low)).ravel()).view(np.uint64)[0]
    assert perceptual_hashes(thumb[None])[0, 0] == expected


def test_the_mirrored_hash_is_that_of_the_mirror_image(pictures):
    thumbs = np.stack([np.asarray(picture.resize((64, 64))) for picture in pictures])
    both, flipped = perceptual_hashes(thumbs), perceptual_hashes(thumbs[:, :, ::-1])
    assert (np.bitwise_count(both[:, 1] ^ flipped[:, 0]) <= 1).all()  # a frequency at the median may round either way
    assert (both[:, 0] != both[:, 1]).all()


def test_a_window_is_seen_as_the_crop_alone_would_be(pictures):
    """A crop enlarged to a whole thumbnail is described like the window that it was cut from, up to resampling."""
    thumb = np.asarray(pictures[2].resize((SIDE, SIDE)))
    crops = [
        thumb[top : top + high, left : left + wide]
        for (top, high), (left, wide) in [(SPANS[r], SPANS[c]) for r, c in ((1, 1), (1, 3), (2, 2))]
    ]
    alone = np.stack(
        [np.asarray(Image.fromarray(crop).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for crop in crops]
    )
    windows = describe_thumbnails(thumb[None]).upright
    for crop, window in zip(describe_thumbnails(alone).upright[0], (windows[1], windows[2], windows[5]), strict=True):
        assert float(crop @ window[0]) > 0.97
    assert describe_thumbnails(thumb[None]).mirrored.numpy() == pytest.approx(
        describe_thumbnails(np.ascontiguousarray(thumb[None, :, ::-1])).upright[0].numpy(), abs=1e-4
    )
    assert windows[0].shape == (1, 3 * CELLS**2)
    assert WINDOW < SIDE


def test_only_the_asked_corner_of_an_inverse_transform_is_made():
    values = torch.randn(3, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    corner = back(torch.fft.rfft2(values), 5, 7)
    assert corner.numpy() == pytest.approx(values[:, :, :5, :7].numpy(), abs=1e-5)


def test_a_picture_fits_itself_and_its_mirror_image(pictures):
    thumbs = np.stack([np.asarray(picture.resize((64, 64))) for picture in pictures[:2]])
    both = np.concatenate([thumbs, thumbs[:, :, ::-1]])
    same, mirror, other = whole_overlays(sketch(both), np.array([[0, 0], [0, 2], [0, 1]]))
    assert (same.similarity, same.mirrored) == (pytest.approx(1, abs=0.02), False)
    assert (mirror.similarity, mirror.mirrored) == (pytest.approx(1, abs=0.02), True)
    assert not other.fits


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=30), st.integers(0, 40))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_near_pairs_are_all_pairs_within_the_limit(values, limit):
    hashes = np.array(values, np.uint64)
    brute = {(a, b) for a in range(len(values)) for b in range(len(values))
             if a != b and (values[a] ^ values[b]).bit_count() <= limit}  # fmt: skip
    assert {tuple(pair) for pair in near_pairs(hashes, hashes, limit=limit, per_row=99).tolist()} == brute


def test_near_pairs_keep_the_nearest():
    hashes = np.array([0, 1, 3, 7, 15], np.uint64)
    assert near_pairs(hashes[:1], hashes, limit=64, per_row=2).tolist() == [[0, 1], [0, 2]]


@pytest.fixture(scope="module")
def vectors():
    generator = torch.Generator().manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(400, 32, generator=generator), dim=1)


def test_neighbours_are_those_of_a_plain_sort(vectors):
    values, indices = nearest_neighbours(vectors, vectors, k=3, skip_self=True)
    similarity = vectors @ vectors.T
    similarity.fill_diagonal_(-2)
    assert indices.tolist() == similarity.argsort(dim=1, descending=True)[:, :3].tolist()
    assert values[:, 0] == pytest.approx(similarity.max(1).values.numpy())


@pytest.mark.parametrize("exact_up_to", [50_000, 10])
def test_the_best_way_to_see_an_image_counts(vectors, monkeypatch, exact_up_to):
    if exact_up_to < len(vectors):
        pytest.importorskip("faiss", reason="beyond 50,000 images only")
        monkeypatch.setattr(neighbours, "EXACT_UP_TO", exact_up_to)
    queries, gallery = (vectors, vectors.flip(0)), (vectors,)
    values, indices = nearest_views(queries, gallery, k=3)
    best = torch.maximum(vectors @ vectors.T, vectors.flip(0) @ vectors.T).fill_diagonal_(-2)
    right = indices == best.argsort(dim=1, descending=True)[:, :3].numpy()
    assert right[:, 0].mean() == 1 if exact_up_to > len(vectors) else right[:, 0].mean() > 0.9
    assert values[right] == pytest.approx(best.gather(1, torch.from_numpy(indices)).numpy()[right], abs=1e-5)


def test_more_neighbours_than_there_are(vectors):
    values, indices = nearest_neighbours(vectors[:2], vectors[:2], k=5, skip_self=True)
    assert indices.tolist() == [[1, -1], [0, -1]]
    assert np.isneginf(values[:, 1]).all()


def test_the_approximate_index_finds_close_neighbours(vectors):
    pytest.importorskip("faiss", reason="beyond 50,000 images only")
    close = torch.nn.functional.normalize(vectors + 0.05 * torch.randn(vectors.shape), dim=1)
    _, indices = nearest_neighbours(close, vectors, k=1, exact=False)
    assert (indices[:, 0] == np.arange(len(vectors))).mean() > 0.95


def test_what_does_not_fit_together_is_refused(vectors):
    with pytest.raises(ValueError, match="do not fit"):
        nearest_neighbours(vectors, vectors[:, :5], k=1)


def test_nothing_is_dropped_through_a_chain(scanned):
    """a-b-c, each told to be the same as the next: c is compared with a, which stays, and is not the same."""

    class Never:
        def __call__(self, first, second, overlay, turned=0):
            return PictureVerdict(False, "made up")

    names = [item.file_name for item in scanned.items]
    a, b, c = (names.index(name) for name in ("s00.png", "e jpeg.png", "e blur.png"))
    chain = [Pair(min(p), max(p), "hash", 0.9, 1.0, False, box=WHOLE) for p in ((a, b), (b, c))]
    groups = find_groups(scanned, chain, judge=Never())
    assert [sorted(group.members) for group in groups] == [sorted((a, b))]
    assert [set(rows) for rows in find_alike(chain, groups)] == [{a, c}]


def test_the_representative_has_the_most_true_detail(scanned, pairs):
    (group,) = find_groups(scanned, pairs)
    representative = scanned.items[group.representative]
    assert representative.file_name == "s00.png"
    assert group.reason.startswith("nothing laid over it and no frame and ")
