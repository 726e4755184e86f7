import pytest
import torch
from PIL import Image

from basinguard.similarity.clip_score import ClipScore


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    bytes_ = torch.randint(0, 255, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return bytes_.float() / 255


CAPTIONS = ["a red ball", "a blue box", "a red box"]


def test_equals_open_clips_own_calls(tiny_clip, images):
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tiny_clip}")
    model.eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{tiny_clip}")(CAPTIONS)
    pictures = [Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()) for image in images]
    with torch.no_grad():
        embeddings = model.encode_image(torch.stack([transform(p) for p in pictures]), normalize=True)
        expected = (embeddings * model.encode_text(tokens, normalize=True)).sum(1)
    torch.testing.assert_close(ClipScore.load(tiny_clip).score(images, CAPTIONS), expected, atol=1e-5, rtol=0)


def test_says_which_model_it_is(tiny_clip):
    score = ClipScore.load(tiny_clip)
    assert tiny_clip.name in score.name
    assert score.note == ""
    assert "Stable Diffusion 2" in ClipScore("open_clip ViT-H-14 laion2b", score.model, score._tokenizer).note


def test_takes_words_it_never_saw_and_captions_that_are_too_long(tiny_clip, images):
    score = ClipScore.load(tiny_clip)
    values = score.score(images, ["a zeppelin", "", "a red ball with a blue box with a red ball with a blue box"])
    assert torch.isfinite(values).all()


def test_refuses_another_number_of_captions(tiny_clip, images):
    with pytest.raises(ValueError, match="3 images and 2 captions"):
        ClipScore.load(tiny_clip).score(images, CAPTIONS[:2])
    with pytest.raises(ValueError, match="list with at least one text"):
        ClipScore.load(tiny_clip).embed_captions("a red ball")


def test_refuses_what_is_no_model(tmp_path, tiny_clip):
    with pytest.raises(FileNotFoundError, match=r"no open_clip_config\.json"):
        ClipScore.load(tmp_path)
    with pytest.raises(ValueError, match="neither a folder nor an open_clip architecture"):
        ClipScore.load("ViT-Z-99")
    with pytest.raises(ValueError, match="laion2b_s32b_b79k"):
        ClipScore.load("ViT-H-14")
    with pytest.raises(ValueError, match="has its own weights"):
        ClipScore.load(tiny_clip, "laion2b_s32b_b79k")


def test_weights_that_cannot_be_had_are_named(monkeypatch):
    import open_clip

    def offline(*_, **__):
        raise RuntimeError("Failed to download weights")

    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(FileNotFoundError, match=r"laion2b_s34b_b79k: no weights that fit.*a folder instead"):
        ClipScore.load("ViT-B-32", "laion2b_s34b_b79k")
