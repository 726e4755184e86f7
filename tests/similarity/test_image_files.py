import numpy as np
import pytest
import torch
from PIL import Image

from basinguard.core.files import file_sha256
from basinguard.core.images import to_tensor
from basinguard.similarity.embedder import embed_all
from basinguard.similarity.image_files import Cache, by_size, embed_files, image_paths, load_image
from basinguard.similarity.structure import Structure


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for number, size in enumerate(((64, 64), (40, 64), (64, 64), (80, 50))):
        picture = Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8))
        picture.save(tmp_path / f"{number}.png")
    return tmp_path


def test_every_mode_becomes_colour():
    rgba = Image.new("RGBA", (20, 30), (255, 0, 0, 0))
    assert to_tensor(rgba).tolist() == torch.ones(3, 30, 20).tolist()  # fully transparent: white
    assert to_tensor(Image.new("L", (20, 30), 51))[:, 0, 0].tolist() == pytest.approx([0.2] * 3)
    assert to_tensor(Image.new("1", (20, 30), 1)).shape == (3, 30, 20)
    assert to_tensor(Image.new("CMYK", (20, 30))).shape == (3, 30, 20)
    sixteen = Image.fromarray(np.full((30, 20), 65535 // 4, np.uint16))
    assert to_tensor(sixteen).unique().tolist() == pytest.approx([63 / 255])  # 8 bits, as they are trained on


def test_a_rotated_photo_stands_upright(tmp_path):
    picture = Image.new("RGB", (40, 20), "red")
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg").shape == (3, 40, 20)


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.png: not an image in a known format"):
        load_image(tmp_path / "text.png")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_image(tmp_path / "no.png")
    whole = Image.new("RGB", (64, 64))
    whole.save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"cut\.png: the file ends too early"):
        load_image(tmp_path / "cut.png")


def test_a_bomb_is_not_opened(tmp_path, monkeypatch):
    Image.new("RGB", (64, 64)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    with pytest.raises(ValueError, match=r"large\.png: more than [\d,]+ pixels"):
        load_image(tmp_path / "large.png")


def test_folders_without_pictures_are_said_to_be_empty(tmp_path):
    with pytest.raises(ValueError, match="no picture in it"):
        image_paths(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        image_paths(tmp_path / "no")


def test_mixed_sizes_are_grouped_and_keep_their_place(folder):
    images = [load_image(path) for path in image_paths(folder)]
    groups = list(by_size(images))
    assert sorted(index for where, _ in groups for index in where) == [0, 1, 2, 3]
    assert all(torch.equal(batch[k], images[i]) for where, batch in groups for k, i in enumerate(where))


def test_embeddings_of_files_are_those_of_their_pictures(folder):
    paths = image_paths(folder)
    embeddings = embed_files(paths, Structure())
    for vector, path in zip(embeddings, paths, strict=True):
        torch.testing.assert_close(vector, embed_all(load_image(path)[None], Structure())[0], atol=1e-5, rtol=0)


class Unused(Structure):
    """The same embedder by its name, which must not be called."""

    def __call__(self, images):
        pytest.fail(f"embedded {len(images)} images again")


def test_what_is_cached_is_not_embedded_again_under_any_name(folder, tmp_path_factory):
    cache = Cache(tmp_path_factory.mktemp("cache"))
    first = embed_files(image_paths(folder), Structure(), cache=cache)
    (folder / "0.png").rename(folder / "renamed.png")
    again = embed_files(image_paths(folder), Unused(), cache=cache)
    assert torch.equal(again, first[[1, 2, 3, 0]])


def test_changed_content_is_embedded_again(folder, tmp_path_factory):
    cache = Cache(tmp_path_factory.mktemp("cache"))
    first = embed_files(image_paths(folder), Structure(), cache=cache)
    Image.new("RGB", (64, 64), "green").save(folder / "0.png")
    again = embed_files(image_paths(folder), Structure(), cache=cache)
    assert not torch.equal(again[0], first[0])
    assert torch.equal(again[1:], first[1:])


def test_a_damaged_cache_is_written_anew(folder, tmp_path_factory):
    cache = Cache(tmp_path_factory.mktemp("cache"))
    first = embed_files(image_paths(folder), Structure(), cache=cache)
    cache.path(Structure()).write_bytes(b"not safetensors")
    assert torch.equal(embed_files(image_paths(folder), Structure(), cache=cache), first)
    assert len(cache.read(Structure())) == 4


def test_no_files_are_refused():
    with pytest.raises(ValueError, match="0 files"):
        embed_files([], Structure())


def test_hash_is_the_published_one(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
