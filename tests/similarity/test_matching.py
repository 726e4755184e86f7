import pytest
import torch
from torchvision.transforms.v2 import functional as edit

from basinguard.similarity import matching as match
from basinguard.similarity.embedder import embed_all, unit
from basinguard.similarity.matching import nearest_matches, search
from basinguard.similarity.structure import Structure
from basinguard.tinyworld.scenes import all_captions, draw_scene


@pytest.fixture(scope="module")
def scenes() -> torch.Tensor:
    drawn = [draw_scene(caption, seed) for seed, caption in enumerate(all_captions()[::16])]
    return edit.to_dtype(torch.stack([edit.to_image(d) for d in drawn]), torch.float32, scale=True)


def test_search_equals_the_full_product_whatever_the_chunk(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    queries, gallery = (unit(torch.randn(n, 12, generator=generator)) for n in (23, 31))
    expected = (queries @ gallery.T).topk(3, dim=1)
    for chunk in (1, 40, 10_000):
        monkeypatch.setattr(match, "CHUNK", chunk)
        values, indices = search(queries, gallery, k=3)
        torch.testing.assert_close(values, expected.values)
        assert torch.equal(indices, expected.indices)


def test_search_gives_as_many_as_there_are():
    values, indices = search(torch.eye(3), torch.eye(3)[:2], k=5)
    assert values.shape == indices.shape == (3, 2)


def test_every_scene_finds_itself(scenes):
    matches = nearest_matches(scenes, scenes, Structure())
    assert [m.index for m in matches] == list(range(len(scenes)))
    assert all(m.similarity == pytest.approx(1, abs=1e-5) and not m.mirrored for m in matches)


def test_a_mirrored_copy_is_found_and_said_to_be_mirrored(scenes):
    matches = nearest_matches(scenes.flip(-1), scenes, Structure())
    assert [m.index for m in matches] == list(range(len(scenes)))
    assert all(m.mirrored and m.similarity == pytest.approx(1, abs=1e-5) for m in matches)
    blind = nearest_matches(scenes.flip(-1), scenes, Structure(), mirror=False)
    assert all(b.similarity < m.similarity and not b.mirrored for b, m in zip(blind, matches, strict=True))


def test_embeddings_stand_for_the_images(scenes):
    embeddings = embed_all(scenes, Structure())
    assert nearest_matches(scenes[:3], embeddings, Structure()) == nearest_matches(scenes[:3], scenes, Structure())


def test_refuses_an_empty_training_set(scenes):
    with pytest.raises(ValueError, match="0 training images"):
        nearest_matches(scenes, scenes[:0], Structure())
    with pytest.raises(ValueError, match="0 samples"):
        nearest_matches(scenes[:0], scenes, Structure())


def test_refuses_embeddings_of_another_embedder(scenes):
    with pytest.raises(ValueError, match=r"\[12, 7\]"):
        nearest_matches(scenes, torch.ones(12, 7), Structure())


def test_refuses_damaged_embeddings():
    with pytest.raises(ValueError, match="NaN"):
        search(torch.eye(2), torch.full((2, 2), float("nan")))


def test_refuses_a_zero_embedding():
    with pytest.raises(ValueError, match="image 1 is zero"):
        unit(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


def test_faiss_finds_what_the_product_finds(monkeypatch):
    pytest.importorskip("faiss")
    generator = torch.Generator().manual_seed(0)
    queries, gallery = (unit(torch.randn(n, 12, generator=generator)) for n in (23, 300))
    expected = search(queries, gallery, k=3)
    monkeypatch.setattr(match, "FAISS_FROM", 300)
    monkeypatch.setattr(match, "CHUNK", 0)  # the product would divide by it
    values, indices = search(queries, gallery, k=3)
    torch.testing.assert_close(values, expected[0])
    assert torch.equal(indices, expected[1])
