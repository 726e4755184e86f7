"""One picture, one set of pixels: whoever opens a file gets what training gets."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

from basinguard.core import images
from basinguard.core.images import FORMATS, BadImage, load_rgb, open_image, read_facts, to_rgb, to_tensor
from basinguard.curation.scan import shrink
from basinguard.similarity.image_files import load_image
from basinguard.training.data_sources import ImageSource
from basinguard.training.finetune_options import HubDataset

SIDE = 64
RAMP = np.linspace(0, 255, SIDE * SIDE).round().reshape(SIDE, SIDE)
DEEP = {
    "16-bit grey": (RAMP * 257).astype(np.uint16),
    "32-bit integers of 8 bits": RAMP.astype(np.int32),
    "32-bit integers of 16 bits": (RAMP * 257).astype(np.int32),
    "32-bit integers": (RAMP * (2**31 // 255)).astype(np.int32),
    "floats in 0..1": (RAMP / 255).astype(np.float32),
    "floats in 0..255": RAMP.astype(np.float32),
    "floats in 0..65535": (RAMP * 257).astype(np.float32),
}


def pattern() -> Image.Image:
    grid = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 4), dtype=np.uint8)
    return Image.fromarray(grid)


def pictures() -> dict[str, tuple[Image.Image, str, dict]]:
    """Name -> picture, suffix and how to save it."""
    rgba = pattern()
    rgb, turned = rgba.convert("RGB"), Image.Exif()
    turned[images.ORIENTATION] = 6
    palette = rgb.quantize(32)
    return {
        "1": (rgb.convert("1"), ".png", {}),
        "L": (rgb.convert("L"), ".png", {}),
        "LA": (rgba.convert("LA"), ".png", {}),
        "P": (palette, ".png", {}),
        "P with one clear colour": (palette, ".png", {"transparency": 3}),
        "P with an alpha for each colour": (palette, ".png", {"transparency": bytes(range(0, 256, 8))}),
        "GIF with a clear colour": (palette, ".gif", {"transparency": 3}),
        "L with a clear level": (rgb.convert("L"), ".png", {"transparency": 100}),
        "RGB with a clear colour": (rgb, ".png", {"transparency": rgb.getpixel((0, 0))}),
        "RGBA": (rgba, ".png", {}),
        "RGBA, WebP": (rgba, ".webp", {"lossless": True}),
        "CMYK": (rgb.convert("CMYK"), ".jpg", {}),
        "CMYK, TIFF": (rgb.convert("CMYK"), ".tif", {}),
        "YCbCr": (rgb.convert("YCbCr"), ".tif", {}),
        "JFIF": (rgb, ".jfif", {}),
        "turned": (rgb.resize((SIDE, 40)), ".jpg", {"exif": turned}),
        "turned TIFF": (rgb.resize((SIDE, 40)), ".tif", {"tiffinfo": {images.ORIENTATION: 6}}),
        **{name: (Image.fromarray(values), ".tif", {}) for name, values in DEEP.items()},
        "16-bit PNG": (Image.fromarray(DEEP["16-bit grey"]), ".png", {}),
    }


PICTURES = pictures()
avif = pytest.mark.skipif(not Image.registered_extensions().get(".avif"), reason="this Pillow has no AVIF")


def saved(folder: Path, name: str) -> Path:
    picture, suffix, options = PICTURES[name]
    path = folder / f"picture{suffix}"
    picture.save(path, **({"format": "JPEG"} if suffix == ".jfif" else {}), **options)
    path.with_suffix(".txt").write_text("a picture")
    return path


def dataset_row(path: Path) -> Image.Image:
    """The picture as training opens it out of a `datasets` dataset."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageColumn

    features = Features({"image": ImageColumn(), "text": Value("string")})
    rows = Dataset.from_dict({"image": [{"bytes": path.read_bytes(), "path": None}], "text": ["a"]}, features=features)
    rows.save_to_disk(path.parent / "stored")
    return ImageSource.of_dataset(HubDataset(str(path.parent / "stored"))).open(0)


@pytest.mark.parametrize("name", PICTURES)
def test_training_metrics_and_curation_read_the_very_same_pixels(tmp_path, name):
    path = saved(tmp_path, name)
    trained = ImageSource.of_folder(tmp_path).open(0)
    assert trained.mode == "RGB"
    pixels = torch.from_numpy(np.array(trained)).permute(2, 0, 1)
    assert torch.equal(load_image(path), pixels.float() / 255)
    assert torch.equal(load_image(path), to_tensor(trained))
    assert dataset_row(path).tobytes() == trained.tobytes()
    facts = read_facts(path)
    assert trained.size == (facts.width, facts.height)
    if trained.size == (SIDE, SIDE) and not path.suffix.startswith(".j"):  # curation keeps every pixel of these
        assert shrink(path)[0].tobytes() == trained.tobytes()


@pytest.mark.parametrize("name", DEEP)
def test_more_than_eight_bits_are_scaled(name):
    assert np.array_equal(np.asarray(to_rgb(Image.fromarray(DEEP[name])))[..., 1], RAMP)


def test_dark_sixteen_bit_grey_stays_dark():
    assert to_rgb(Image.fromarray(np.full((4, 4), 255, np.uint16))).getpixel((0, 0)) == (0, 0, 0)
    assert to_rgb(Image.fromarray(np.full((4, 4), 32768, np.uint16))).getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_pixels_that_are_no_numbers_are_refused(tmp_path, wrong):
    Image.fromarray(np.full((SIDE, SIDE), wrong, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(BadImage, match="not finite"):
        load_rgb(tmp_path / "a.tif")
    with pytest.raises(BadImage, match=r"a\.tif: .*not finite"):
        load_image(tmp_path / "a.tif")


def test_clear_pixels_are_white_whatever_colour_they_hide():
    for mode, colour in (("RGBA", (255, 0, 0, 0)), ("LA", (0, 0)), ("PA", (0, 0))):
        assert to_rgb(Image.new(mode, (2, 2), colour)).getpixel((0, 0)) == (255, 255, 255)
    half = to_rgb(Image.new("RGBA", (2, 2), (0, 0, 0, 128))).getpixel((0, 0))
    assert half == (127, 127, 127)


@pytest.mark.parametrize("turn", range(10))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_every_orientation_stands_upright_once(tmp_path, turn, suffix):
    exif = Image.Exif()
    exif[images.ORIENTATION] = turn
    picture = pattern().convert("L").resize((48, 32)).convert("RGB")
    options = {"tiffinfo": {images.ORIENTATION: turn}} if suffix == ".tif" else {"exif": exif}
    picture.save(tmp_path / f"a{suffix}", **options)
    with Image.open(tmp_path / f"a{suffix}") as stored:
        expected = ImageOps.exif_transpose(stored).convert("RGB")
    upright = load_rgb(tmp_path / f"a{suffix}")
    assert upright.tobytes() == expected.tobytes()
    assert to_rgb(upright).tobytes() == upright.tobytes()
    facts = read_facts(tmp_path / f"a{suffix}")
    assert (facts.width, facts.height) == upright.size
    assert facts.rotated == (2 <= turn <= 8)
    assert facts.exif == ("" if 1 <= turn <= 8 else f"its orientation {turn} is none of 1 to 8")


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "CMYK", "LAB", "YCbCr"])
def test_only_a_mode_with_an_alpha_channel_is_transparent(tmp_path, mode):
    Image.new(mode, (8, 8)).save(tmp_path / "a.tif")
    assert not read_facts(tmp_path / "a.tif").alpha


TURN = b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"  # the entry of a directory that says: orientation 6


def block(*entries: bytes) -> bytes:
    """A little-endian EXIF block with one directory."""
    return b"Exif\0\0II*\0\x08\0\0\0" + len(entries).to_bytes(2, "little") + b"".join(entries) + bytes(12)


BLOCKS = {
    "garbage": b"Exif\0\0" + bytes(range(200)),
    "no directory": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "an unknown type": block(TURN, b"\x0f\x01\x63\0\x01\0\0\0\0\0\0\0"),
    "a huge count": block(TURN, b"\x0f\x01\x02\0\xff\xff\xff\x7f\x40\0\0\0"),
    "a rational by zero": block(TURN, b"\x1a\x01\x05\0\x01\0\0\0\x26\0\0\0"),
    "a text": block(b"\x12\x01\x02\0\x02\0\0\0\x36\0\0\0"),
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_a_damaged_exif_block_never_costs_a_picture(tmp_path, name, suffix):
    pattern().convert("RGB").resize((48, 32)).save(tmp_path / f"a{suffix}", exif=BLOCKS[name])
    (tmp_path / "a.txt").write_text("a picture")
    readable = name in ("an unknown type", "a huge count", "a rational by zero")
    size = load_rgb(tmp_path / f"a{suffix}").size
    assert size in ({(32, 48)} if readable else {(48, 32)})
    facts = read_facts(tmp_path / f"a{suffix}")
    assert (facts.width, facts.height) == size
    assert bool(facts.exif) == (name not in ("an unknown type", "a rational by zero"))
    assert ImageSource.of_folder(tmp_path).open(0).size == size
    assert shrink(tmp_path / f"a{suffix}")[0].shape == (64, 64, 3)
    assert load_image(tmp_path / f"a{suffix}").shape == (3, *size[::-1])


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.eps"])
def test_postscript_never_reaches_an_interpreter(tmp_path, monkeypatch, name):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("an interpreter was started"))
    stream = io.BytesIO()
    pattern().convert("RGB").save(stream, "EPS")
    (tmp_path / name).write_bytes(stream.getvalue())
    for read in (load_rgb, load_image, read_facts, shrink, dataset_row):
        with pytest.raises(BadImage, match="not an image in a known format"):
            read(tmp_path / name)


def test_nothing_that_starts_a_program_is_listed():
    assert not {"EPS", "WMF", "GRIB", "BUFR", "HDF5", "PDF"} & set(FORMATS)


def test_bytes_open_like_files(tmp_path):
    path = saved(tmp_path, "RGBA")
    assert load_rgb(path.read_bytes()).tobytes() == load_rgb(path).tobytes()
    with pytest.raises(BadImage, match="0 bytes"), open_image(b""):
        pass


@avif
def test_copies_in_other_containers_are_the_same_picture(tmp_path):
    smooth = Image.effect_noise((SIDE, SIDE), 40).resize((16, 16)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    for name, options in (("a.png", {}), ("b.avif", {"quality": 100}), ("c.jfif", {"format": "JPEG", "quality": 100})):
        smooth.convert("RGB").save(tmp_path / name, **options)
    first, *others = (load_image(tmp_path / name) for name in ("a.png", "b.avif", "c.jfif"))
    assert all(float((first - other).abs().mean()) < 0.01 for other in others)


def test_a_bad_image_survives_a_process_boundary():
    again = pickle.loads(pickle.dumps(BadImage("bomb", "too large")))
    assert (again.code, str(again)) == ("bomb", "too large")


@pytest.mark.parametrize(("kind", "fits"), [("sRGB", True), ("LAB", False)])
def test_a_profile_of_other_pixels_changes_no_colour(tmp_path, kind, fits):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile(kind)).tobytes()
    wide = profile.replace("sRGB".encode("utf-16-be"), "Wide".encode("utf-16-be"))
    picture = pattern().convert("RGB")
    picture.save(tmp_path / "a.png", icc_profile=wide)
    facts = read_facts(tmp_path / "a.png")
    assert (bool(facts.profile), facts.profile_fits) == (True, fits)
    difference = np.abs(np.asarray(load_rgb(tmp_path / "a.png"), int) - np.asarray(picture, int)).max()
    assert difference <= (2 if fits else 0)  # sRGB to sRGB rounds
