import pytest
import torch
import torch.nn.functional as F

from basinguard.core.images import to_tensor
from basinguard.similarity.aligned import MAP, RUNNER_UP, Aligned, gallery_candidates, luminance_map, overlay_scores
from basinguard.similarity.embedder import Embedder, TwoStage, features
from basinguard.similarity.matching import nearest_matches, search
from basinguard.similarity.sampler_edits import PIXEL_EDITS
from basinguard.tinyworld.scenes import all_captions, draw_scene


@pytest.fixture(scope="module")
def scenes():
    captions = all_captions()[:24]
    return torch.stack([to_tensor(draw_scene(caption, 900 + k)) for k, caption in enumerate(captions)])


def test_is_an_embedder_that_searches_for_itself(scenes):
    assert isinstance(Aligned(), Embedder)
    assert isinstance(Aligned(), TwoStage)
    vectors = Aligned()(scenes)
    torch.testing.assert_close(features(vectors, Aligned()).norm(dim=1), torch.ones(24), atol=1e-4, rtol=0)


def test_a_picture_is_most_like_itself(scenes):
    vectors = Aligned()(scenes)
    values, indices = search(vectors, vectors, Aligned(), k=3)
    assert indices[:, 0].tolist() == list(range(24))
    torch.testing.assert_close(values[:, 0], torch.ones(24), atol=1e-4, rtol=0)
    assert (values[:, 0] > values[:, 1]).all()


@pytest.mark.parametrize("edit", [*PIXEL_EDITS, "grey", "negative shift", "logo"])
def test_edited_copies_find_their_original_and_are_more_alike_than_strangers(scenes, edit):
    ways = {
        **PIXEL_EDITS,
        "grey": lambda x: x.mean(1, keepdim=True).expand(-1, 3, -1, -1),
        "negative shift": lambda x: F.pad(x, (0, 3, 0, 2), mode="replicate")[..., 2:, 3:],
        "logo": lambda x: x * (1 - F.pad(torch.ones(16, 16), (44, 4, 44, 4))),
    }
    matches = nearest_matches(ways[edit](scenes).clamp(0, 1), scenes, Aligned())
    assert [match.index for match in matches] == list(range(24))
    strangers = search(Aligned()(scenes), Aligned()(scenes), Aligned(), k=2)[0][:, 1].max()
    assert min(match.similarity for match in matches) > strangers


def test_what_is_alike_to_many_is_a_copy_of_none_and_two_versions_of_one_picture_do_not_hide_a_copy(scenes):
    vectors, pair = Aligned()(scenes), Aligned()(scenes[:2])
    alone = float(search(vectors[2:3], pair[:1], Aligned())[0])
    assert alone == pytest.approx(float(Aligned().compare(vectors[2:3], pair[:1])), abs=1e-6), "nothing to stand out of"
    among = search(vectors[2:3], pair, Aligned())[0]
    rivals = Aligned().compare(vectors[2:3].expand(2, -1), pair)
    expected = (rivals.max() - RUNNER_UP * rivals.min()) / (1 - RUNNER_UP * rivals.min())
    assert float(among[0, 0]) == pytest.approx(float(expected), abs=1e-5), "Lowe's ratio, softened"
    twice = search(vectors, torch.cat([vectors, vectors]), Aligned())[0]
    torch.testing.assert_close(twice[:, 0], torch.ones(24), atol=1e-3, rtol=0)
    copies = Aligned()(PIXEL_EDITS["shift 4 %"](scenes).clamp(0, 1))
    is_copy = search(copies, torch.cat([vectors, vectors]), Aligned())[0][:, 0] >= Aligned().metric.threshold
    assert float(is_copy.float().mean()) > 0.7, "of a set in which every picture is there twice"


def test_a_mirrored_copy_is_found_and_said_to_be_mirrored(scenes):
    matches = nearest_matches(scenes.flip(-1), scenes, Aligned())
    assert [match.index for match in matches] == list(range(24))
    assert all(match.mirrored for match in matches)


def test_the_place_of_an_overlay_is_the_place_of_the_shift():
    """A map moved by whole cells correlates with itself exactly, by the shift theorem."""
    maps = torch.randn(1, MAP, MAP, generator=torch.Generator().manual_seed(0))
    canvas = F.pad(maps[:, None], (4,) * 4, mode="replicate")[:, 0]
    moved = canvas[:, 1 : 1 + MAP, 6 : 6 + MAP]
    similarity = overlay_scores(moved, maps, torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    assert float(similarity) == pytest.approx(1, abs=1e-4)


def test_pictures_without_structure_are_like_nothing(scenes):
    flat = torch.full((2, 3, 64, 64), 0.5)
    assert float(luminance_map(flat).abs().max()) < 1e-3  # its contrast is rounding
    values, _ = search(Aligned()(flat), Aligned()(scenes), Aligned(), k=3)
    assert float(values.max()) < Aligned().metric.threshold


def test_proposals_name_each_picture_once_however_few_there_are(scenes):
    vectors = Aligned()(scenes)
    for count, entries in ((8, 24), (3, 3), (1, 24)):
        proposed = gallery_candidates(vectors, vectors[:entries], count)
        assert proposed.shape == (24, count)
        assert all(len(set(row)) == count for row in proposed.tolist())


def test_a_batch_gives_what_single_images_give(scenes):
    together = Aligned()(scenes)
    torch.testing.assert_close(together, torch.cat([Aligned()(image[None]) for image in scenes]), atol=1e-5, rtol=0)
    all_at_once = search(together, together, Aligned())[0]
    torch.testing.assert_close(all_at_once, torch.cat([search(v[None], together, Aligned())[0] for v in together]))
