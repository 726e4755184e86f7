"""The training set as the model sees it: pixels, order, resuming, and every kind of source."""

import hashlib
import json
import warnings

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageColumn
from datasets import config as datasets_config
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor, to_dtype

from basinguard.core.images import to_rgb
from basinguard.curation.folder import read_folder
from basinguard.similarity.matching import nearest_matches as best_matches
from basinguard.similarity.structure import Structure
from basinguard.tinyworld.scenes import all_captions, draw_scene
from basinguard.training.buckets import shapes
from basinguard.training.caption_augmentation import CaptionAugmentation
from basinguard.training.control_group import training_set
from basinguard.training.cropping import Crop, fitted, whole
from basinguard.training.epoch_order import EpochOrder, ResumableLoader
from basinguard.training.finetune_options import HubDataset
from basinguard.training.guard_options import ControlGroup
from support.fine_tunes import image_folder


def gradient(width, height):
    """Red grows to the right, green downwards, so a pixel says where it came from."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))


def load_all(images, epoch=0):
    """Every batch of an epoch; Lightning sets the epoch in the same two places."""
    loader = images.train_dataloader()
    order = getattr(loader.batch_sampler, "sampler", loader.sampler)
    order.set_epoch(epoch)
    return list(loader)


def test_pixels_are_untouched_at_the_right_size():
    image = gradient(32, 32)
    expected = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(fitted(image, 32), expected, rtol=0, atol=1e-7)


def test_pixels_are_torchvisions_to_the_last_bit():
    """Trained weights hang on it: x / 255 and x * (1 / 255) differ for every other value."""
    image = gradient(256, 256)
    assert torch.equal(fitted(image, 256), to_dtype(pil_to_tensor(image), torch.float32, scale=True))


def test_the_middle_is_cropped_out():
    pixels = (fitted(gradient(100, 40), 40) * 255).round()
    assert pixels.shape == (3, 40, 40)
    assert pixels[0, 0, [0, -1]].tolist() == [30, 69]
    assert pixels[1, [0, -1], 0].tolist() == [0, 39]


def test_the_short_side_is_resized():
    assert fitted(gradient(101, 67), 32).shape == (3, 32, 32)
    assert fitted(gradient(3, 200), 16).shape == (3, 16, 16)


def test_sizes_say_where_a_crop_lies():
    """The gradient's red is the column: the first of the crop is the corner that is told; XL's order, rows first."""
    crop = Crop.of((100, 40), 40)
    assert crop.sizes().tolist() == [40, 100, 0, 30, 40, 40]
    assert round(float(crop.pixels(gradient(100, 40))[0, 0, 0]) * 255) == 30
    assert Crop.of((120, 60), 64).sizes().tolist() == [60, 120, 0, 32, 64, 64]  # resized to 128 x 64 first
    assert Crop.of((120, 60), (80, 48)).sizes().tolist() == [60, 120, 0, 8, 48, 80]  # to 96 x 48


def test_a_mirrored_crop_is_told_as_it_lies_in_the_mirrored_picture():
    image, crop = gradient(100, 40), Crop.of((100, 40), 40, torch.Generator().manual_seed(1))
    left = int(crop.sizes(mirrored=True)[3])
    assert left != crop.left
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).crop((left, 0, left + 40, 40))
    assert torch.equal(crop.pixels(image).flip(-1), fitted(mirrored, 40))


def test_sizes_of_pictures_without_any_are_their_own():
    assert whole(torch.zeros(2, 3, 24, 48)).tolist() == [[24, 48, 0, 0, 24, 48]] * 2


def test_a_batch_says_the_sizes_of_its_pictures(mixed_folder):
    for batch in load_all(bucketed(mixed_folder, keep_in_memory=True)):
        height, width = batch["pixel_values"].shape[-2:]
        assert batch["sizes"][:, 4:].tolist() == [[height, width]] * len(batch["index"])
        originals = [[[60, 120], [120, 60], [88, 90]][index % 3] for index in batch["index"].tolist()]
        assert batch["sizes"][:, :2].tolist() == originals


def test_random_crops_stay_inside_and_differ():
    corners = [
        tuple(
            (fitted(gradient(60, 40), 40, generator=torch.Generator().manual_seed(s)) * 255).round()[:2, 0, 0].tolist()
        )
        for s in range(50)
    ]
    assert {y for _, y in corners} == {0}
    assert min(x for x, _ in corners) < 3
    assert max(x for x, _ in corners) > 17
    assert len(set(corners)) > 10


def test_modes_become_rgb():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert to_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    deep = Image.fromarray(np.full((4, 4), 32768, dtype=np.uint16))
    assert to_rgb(deep).getpixel((0, 0)) == (127, 127, 127)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert to_rgb(palette).getpixel((0, 0)) == (10, 20, 30)
    assert to_rgb(Image.new("1", (4, 4), 1)).getpixel((0, 0)) == (255, 255, 255)


def test_exif_turns_the_image(tmp_path):
    image, exif = gradient(30, 20), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    (tmp_path / "turned.txt").write_text("a turned picture")
    assert image_folder(str(tmp_path)).source.open(0).size == (20, 30)


def test_a_batch_is_what_the_model_takes(scene_folder):
    images = image_folder(str(scene_folder), resolution=32, batch_size=4)
    images.setup("fit")
    first, second = load_all(images)
    assert first["pixel_values"].shape == (4, 3, 32, 32)
    assert len(second["caption"]) == 2
    assert sorted([*first["index"].tolist(), *second["index"].tolist()]) == list(range(6))
    for row, index in enumerate(first["index"].tolist()):
        assert first["caption"][row] == images.items[index][1]
        assert torch.equal(first["pixel_values"][row], images.pixels(index) * 2 - 1)
    assert images.all_pixels().shape == (6, 3, 32, 32)
    assert images.items[3] == (str(scene_folder / "3.png"), "a ball 3")


def test_order_depends_on_seed_and_epoch_alone(scene_folder):
    def order(seed, epoch):
        batches = load_all(image_folder(str(scene_folder), resolution=8, batch_size=2, seed=seed), epoch)
        return [i for batch in batches for i in batch["index"].tolist()]

    torch.manual_seed(0)
    first = order(0, 0)
    torch.manual_seed(1)
    assert order(0, 0) == first
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_augmentation_is_the_same_in_any_worker(scene_folder):
    options = {"resolution": 24, "batch_size": 2, "crop": "random", "flip": True}
    alone, helped = (load_all(image_folder(str(scene_folder), num_workers=n, **options)) for n in (0, 1))
    for a, b in zip(alone, helped, strict=True):
        assert torch.equal(a["pixel_values"], b["pixel_values"])
    assert not torch.equal(
        alone[0]["pixel_values"], load_all(image_folder(str(scene_folder), **options), 1)[0]["pixel_values"]
    )


def test_half_of_the_images_are_flipped(scene_folder):
    images = image_folder(str(scene_folder), resolution=32, batch_size=6, flip=True, keep_in_memory=True)
    straight = images.all_pixels() * 2 - 1
    loader, flipped, epochs = images.train_dataloader(), 0, 40
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            for pixels, index in zip(batch["pixel_values"], batch["index"], strict=True):
                same = torch.allclose(pixels, straight[index], atol=1e-6)
                assert same or torch.allclose(pixels, straight[index].flip(-1), atol=1e-6)
                flipped += not same
    assert 89 < flipped < 151  # 120 expected of 240, 4 standard deviations


def test_keeping_pixels_in_memory_changes_none(scene_folder):
    read, decoded = (
        load_all(image_folder(str(scene_folder), resolution=24, keep_in_memory=k))[0] for k in (False, True)
    )
    torch.testing.assert_close(decoded["pixel_values"], read["pixel_values"], rtol=0, atol=1e-6)


def test_a_loader_skips_what_was_trained_on_once(scene_folder):
    images = image_folder(str(scene_folder), resolution=8, batch_size=2)
    whole = [batch["index"].tolist() for batch in load_all(images)]
    loader = images.train_dataloader()
    loader.load_state_dict({"processed": 2})
    assert [batch["index"].tolist() for batch in loader] == whole[2:]
    assert [batch["index"].tolist() for batch in loader] == whole
    assert len(loader) == 3


def test_a_loader_without_a_trainer_has_nothing_to_resume():
    assert ResumableLoader(torch.arange(4), sampler=EpochOrder(4, 0)).state_dict() == {"processed": 0}


def test_captions_pass_through_an_augmentation(scene_folder):
    images = image_folder(
        str(scene_folder), resolution=8, batch_size=6, caption_augmentation=lambda caption: caption.upper()
    )
    assert all(caption.isupper() for caption in load_all(images)[0]["caption"])
    assert images.items[0][1] == "a ball 0"


@pytest.mark.parametrize(
    "name", ["with space.png", "ünïcödé 猫.png", "100% #1.png", "it's;$(x).png", "-rf.png", "a.b.png"]
)
def test_awkward_file_names(tmp_path, name):
    gradient(8, 8).save(tmp_path / name)
    row = json.dumps({"file_name": name, "text": "a picture"}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_text(row + "\n", encoding="utf-8")
    images = image_folder(str(tmp_path), resolution=8)
    images.setup("fit")
    assert images.items == ((str(tmp_path / name), "a picture"),)
    assert torch.equal(images.pixels(0), fitted(gradient(8, 8), 8))


def dataset_of(captions, column="text"):
    pictures = [gradient(8 + i, 8) for i in range(len(captions))]
    features = Features({"image": ImageColumn(), column: Value("string")})
    return Dataset.from_dict({"image": pictures, column: captions}, features=features)


def test_a_dataset_saved_to_disk(tmp_path):
    dataset_of(["a ball", "a box"]).save_to_disk(tmp_path / "stored")
    images = image_folder(dataset=HubDataset(str(tmp_path / "stored")), resolution=8)
    images.setup("fit")
    assert [caption for _, caption in images.items] == ["a ball", "a box"]
    assert torch.equal(images.pixels(1), fitted(gradient(9, 8), 8))


def test_a_dataset_of_parquet_files(tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    dataset_of(["a ball", "a box"], "caption").to_parquet(str(tmp_path / "data.parquet"))
    images = image_folder(dataset=HubDataset(str(tmp_path), caption_column="caption"), resolution=8)
    images.setup("fit")
    assert len(images.items) == 2
    assert (
        "no column ['text']; it has ['image', 'caption']"
        in image_folder(dataset=HubDataset(str(tmp_path))).source.problems[0]
    )


def test_a_dataset_row_without_a_caption_is_named(tmp_path):
    dataset_of(["a ball", None]).save_to_disk(tmp_path / "stored")
    images = image_folder(dataset=HubDataset(str(tmp_path / "stored")))
    assert images.source.problems == (f"{tmp_path / 'stored'}[1]: no caption in column 'text'",)


def test_a_missing_dataset_says_so(tmp_path):
    problem = image_folder(dataset=HubDataset(str(tmp_path / "nowhere"))).source.problems[0]
    assert problem.startswith(f"dataset '{tmp_path / 'nowhere'}' cannot be loaded (")


def test_bad_images_are_refused_or_skipped(scene_folder):
    (scene_folder / "5.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"cannot be used:\n- 5\.png: "):
        image_folder(str(scene_folder)).setup("fit")
    images = image_folder(str(scene_folder), skip_bad=True)
    with pytest.warns(UserWarning, match=r"5\.png: "):
        images.setup("fit")
    assert len(images.items) == 5


def test_exactly_one_source_is_asked_for(tmp_path):
    for options in ({}, {"directory": "a", "dataset": HubDataset("b")}):
        assert image_folder(**options).source.problems[0].endswith("give exactly one of them")


def test_numbers_out_of_range_are_named():
    with pytest.raises(ValueError, match="resolution=4, batch_size=0, num_workers=0; expected at least 8, 1 and 0"):
        image_folder("x", resolution=4, batch_size=0)


def manifest_row(item, captions, repeats):
    return {
        "file_name": item.file_name,
        "text": captions[0],
        "captions": captions,
        "repeats": repeats,
        "image_sha256": hashlib.sha256(item.path.read_bytes()).hexdigest(),
        "caption_sha256": hashlib.sha256(json.dumps(list(item.captions)).encode()).hexdigest(),
    }


@pytest.fixture
def curated(scene_folder):
    """A manifest beside the images: two of them, one shown three times, one with two captions."""
    items = read_folder(scene_folder).items
    rows = [manifest_row(items[0], ["one", "uno"], 1), manifest_row(items[2], ["two"], 3)]
    (scene_folder / "metadata.curated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"directory": str(scene_folder), "manifest": "metadata.curated.jsonl", "resolution": 8, "batch_size": 4}


def test_a_manifest_says_which_images_how_often_and_with_which_captions(curated):
    images = image_folder(**curated)
    assert [caption for _, caption in images.items] == ["one", "two"]
    batch = load_all(images)[0]
    assert sorted(batch["index"].tolist()) == [0, 1, 1, 1]
    assert sorted(batch["caption"]) == ["one", "two", "two", "two"]
    assert "embedding_noise" not in batch


def test_augmentation_draws_captions_caps_repeats_and_asks_for_noise(curated):
    images = image_folder(**curated, caption_augmentation=CaptionAugmentation(draw=True, most_repeats=2, noise=0.1))
    loader, captions = images.train_dataloader(), set()
    for epoch in range(20):
        loader.sampler.set_epoch(epoch)
        (batch,) = loader
        assert sorted(batch["index"].tolist()) == [0, 1, 1]
        assert batch["embedding_noise"].tolist() == [0.1] * 3
        captions.update(batch["caption"])
    assert captions == {"one", "uno", "two"}


def test_augmentation_depends_on_seed_and_epoch_alone(curated):
    noisy = CaptionAugmentation(
        draw=True, replace_words=0.5, insert_words=0.5, repeat_words=0.5, dropout=0.2, replace=0.2
    )
    one, two, other = (
        [batch["caption"] for batch in load_all(image_folder(**curated, caption_augmentation=noisy, seed=seed))]
        for seed in (0, 0, 1)
    )
    assert one == two
    assert one != other


@pytest.mark.parametrize("wrong", [{"dropout": 1.5}, {"replace_words": -1}, {"noise": -0.1}, {"most_repeats": 0}])
def test_augmentation_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        CaptionAugmentation(**wrong)


def rewrite_manifest(folder, **changed):
    """The first row of the manifest, changed."""
    path = folder / "metadata.curated.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | changed), *rest]))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"file_name": "gone.png"}, "gone.png: no such image; curate again"),
        ({"image_sha256": "0" * 64}, "another image than when the manifest was written"),
        ({"caption_sha256": "0" * 64}, "its caption was changed after the manifest was written"),
        ({"captions": [""]}, "no caption; write one and curate again"),
        ({"repeats": 0}, "line 1: .*repeats"),
        ({"image_sha256": "?"}, "line 1: .*image_sha256"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(curated, scene_folder, changed, message):
    rewrite_manifest(scene_folder, **changed)
    with pytest.raises(ValueError, match=message):
        image_folder(**curated).setup("fit")


def test_captions_of_a_dropped_copy_must_not_have_changed(curated, scene_folder):
    copy = read_folder(scene_folder).items[1]
    source = {"dropped": copy.file_name, "caption_sha256": manifest_row(copy, ["uno"], 1)["caption_sha256"]}
    rewrite_manifest(scene_folder, captions_from=[source])
    assert len(image_folder(**curated).items) == 2
    rewrite_manifest(scene_folder, captions_from=[source | {"caption_sha256": "0" * 64}])
    with pytest.raises(ValueError, match=f"it has the caption of its copy {copy.file_name}, which was changed after"):
        image_folder(**curated).setup("fit")
    rewrite_manifest(scene_folder, captions_from=[source | {"dropped": "removed.png", "caption_sha256": "0" * 64}])
    assert len(image_folder(**curated).items) == 2


def test_a_manifest_of_before_names_what_it_lacks(curated, scene_folder):
    row = {"file_name": "0.png", "text": "a", "captions": ["a"], "repeats": 1}
    (scene_folder / "metadata.curated.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=r"line 1: .*image_sha256.*write it with `basinguard curate --apply`"):
        image_folder(**curated).setup("fit")


def test_a_row_that_comes_twice_is_refused(curated, scene_folder):
    path = scene_folder / "metadata.curated.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[0])
    with pytest.raises(ValueError, match="a second row for this image"):
        image_folder(**curated).setup("fit")


def test_a_file_damaged_after_the_curation_is_refused_and_one_left_out_is_no_matter(curated, scene_folder):
    first, second, third = (item.path for item in read_folder(scene_folder).items[:3])
    second.write_bytes(second.read_bytes()[:99])
    second.with_suffix(".txt").unlink(missing_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image_folder(**curated).setup("fit")
    third.write_bytes(third.read_bytes()[:99])
    with pytest.raises(ValueError, match=rf"{third.name}: .*; curate again"):
        image_folder(**curated).setup("fit")
    (item,) = image_folder(**curated, skip_bad=True).items
    assert item == (str(first), "one")


def test_a_folder_that_cannot_be_used_names_the_manifest_that_lies_in_it(curated, scene_folder):
    second = read_folder(scene_folder).items[1].path
    second.write_bytes(second.read_bytes()[:99])
    with pytest.raises(ValueError, match=r"a manifest lies there: with --manifest metadata\.curated\.jsonl"):
        image_folder(**curated | {"manifest": None}).setup("fit")


def test_a_guard_knows_the_files_that_were_trained_on(curated, scene_folder):
    rows = [json.loads(line) for line in (scene_folder / "metadata.curated.jsonl").read_text().splitlines()]
    training = training_set(image_folder(**curated), ControlGroup())
    assert training.image_sha256 == tuple(row["image_sha256"] for row in rows)


def test_a_manifest_may_lie_elsewhere(curated, scene_folder, tmp_path):
    (scene_folder / "metadata.curated.jsonl").rename(tmp_path / "kept.jsonl")
    assert len(image_folder(**curated | {"manifest": str(tmp_path / "kept.jsonl")}).items) == 2
    with pytest.raises(ValueError, match=r"no such manifest; `basinguard curate .* --apply` writes one"):
        image_folder(**curated).setup("fit")


@pytest.fixture
def mixed_folder(tmp_path):
    """Wide, tall and square pictures, five of each."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number in range(15):
        size = ((120, 60), (60, 120), (90, 88))[number % 3]
        gradient(*size).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"picture {number}")
    return folder


def bucketed(folder, **options):
    return image_folder(
        str(folder), **{"resolution": 64, "batch_size": 2, "buckets": True, "bucket_step": 16, **options}
    )


def test_a_batch_holds_one_shape_and_an_epoch_every_picture(mixed_folder):
    images = bucketed(mixed_folder)
    batches = load_all(images)
    assert len(batches) == len(images.train_dataloader()) == 9  # three shapes, five pictures each
    assert sorted(index for batch in batches for index in batch["index"].tolist()) == list(range(15))
    sizes = {tuple(batch["pixel_values"].shape[-2:]) for batch in batches}
    assert sizes == {(48, 80), (80, 48), (64, 64)}  # height, width
    for batch in batches:
        for row, index in enumerate(batch["index"].tolist()):
            width, height = images.shapes[index]
            expected = fitted(images.source.open(index), (width, height)) * 2 - 1
            assert torch.equal(batch["pixel_values"][row], expected)


def test_less_is_cropped_away_than_from_a_square(mixed_folder):
    """A picture of 2:1 loses half of itself as a square; the gradient's red says how much of its width is left."""
    image = bucketed(mixed_folder).source.open(0)
    square, wide = fitted(image, 64), fitted(image, (80, 48))
    spans = [float(pixels[0].max() - pixels[0].min()) * 255 for pixels in (square, wide)]
    assert spans[0] == pytest.approx(60, abs=2)
    assert spans[1] == pytest.approx(100, abs=2)


def test_bucketed_batches_resume_where_they_stopped(mixed_folder):
    whole = [batch["index"].tolist() for batch in load_all(bucketed(mixed_folder))]
    loader = bucketed(mixed_folder).train_dataloader()
    loader.load_state_dict({"processed": 4})
    assert [batch["index"].tolist() for batch in loader] == whole[4:]
    assert [batch["index"].tolist() for batch in loader] == whole
    assert [b["index"].tolist() for b in load_all(bucketed(mixed_folder), epoch=1)] != whole


def test_epochs_take_turns_at_resolutions(mixed_folder):
    images = bucketed(mixed_folder, resolutions=[32], buckets=False, keep_in_memory=True)
    sides = [load_all(images, epoch)[0]["pixel_values"].shape[-1] for epoch in range(4)]
    assert sides == [64, 32, 64, 32]
    assert images.augments
    large = load_all(bucketed(mixed_folder, resolutions=[96]), 1)
    assert {tuple(batch["pixel_values"].shape[-2:]) for batch in large} == {(80, 112), (112, 80), (96, 96)}
    assert len(large) == 9


@pytest.mark.parametrize("resolution", [256, 512, 768])
def test_shapes_have_no_more_pixels_than_the_square(resolution):
    sizes = shapes(resolution)
    assert (resolution, resolution) in sizes
    assert all(w * h <= resolution**2 and w % 64 == h % 64 == 0 and max(w, h) <= 2 * min(w, h) for w, h in sizes)
    assert {(h, w) for w, h in sizes} == set(sizes)
    assert all(w * h > 0.7 * resolution**2 for w, h in sizes)


def test_the_guard_finds_mirrored_copies():
    """`flip` teaches a model both sides of a picture, so a mirrored copy is a copy."""
    embedder = Structure()
    pictures = torch.stack([torch.from_numpy(np.asarray(draw_scene(c, seed=0)).copy()) for c in all_captions()[:3]])
    images = pictures.permute(0, 3, 1, 2) / 255
    matches = best_matches(images.flip(-1), embedder(images), embedder)
    assert [match.index for match in matches] == [0, 1, 2]
    assert min(match.similarity for match in matches) > embedder.metric.threshold


@pytest.fixture
def instances(tmp_path):
    for folder, count in (("dog", 3), ("dogs", 2)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            gradient(40, 40 + number).save(tmp_path / folder / f"{number}.png")
    return tmp_path


def test_one_caption_for_all_images_that_have_none(instances):
    (instances / "dog" / "1.txt").write_text("a dog in the snow")
    images = image_folder(str(instances / "dog"), caption="a photo of sks dog", resolution=16)
    images.setup("fit")
    assert [caption for _, caption in images.items] == ["a photo of sks dog", "a dog in the snow", "a photo of sks dog"]
    with pytest.raises(ValueError, match="or give one caption for all"):
        image_folder(str(instances / "dogs"), resolution=16).setup("fit")
    assert "caption column" in image_folder(dataset=HubDataset("x"), caption="a dog").source.problems[0]


def test_class_pictures_are_trained_on_and_nobody_looks_for_them(instances):
    images = image_folder(
        str(instances / "dog"), caption="a photo of sks dog", resolution=16,
        class_folder=str(instances / "dogs"), class_caption="a photo of a dog",
    )  # fmt: skip
    images.setup("fit")
    assert sorted(int(i) for batch in load_all(images) for i in batch["index"]) == [0, 1, 2, 3, 4]
    assert images.secrets == len(images.all_pixels()) == 3
    training = training_set(images, ControlGroup())
    assert training.captions == ("a photo of sks dog",) * 3
    assert [caption for _, caption in images.items][3:] == ["a photo of a dog"] * 2
    bad = image_folder(str(instances / "dog"), caption="a dog", class_folder=str(instances / "missing"))
    assert bad.source.problems[0].startswith("class pictures: ")


def test_the_next_command_is_told_of_folder_and_manifest():
    assert image_folder("photos").arguments == "photos"
    assert image_folder("my photos", manifest="curated/manifest.jsonl").arguments == (
        "'my photos' --manifest curated/manifest.jsonl"
    )
    assert image_folder(dataset="user/set").arguments == "DATA"
