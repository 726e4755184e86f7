import hashlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from basinguard.cli import main
from basinguard.commands.metrics import metrics as verb
from basinguard.similarity.duplicate_groups import duplicate_groups, merge_groups
from basinguard.similarity.folder_metrics import folder_metrics
from basinguard.similarity.image_pair import compare_pair
from basinguard.tinyworld.scenes import all_captions, draw_scene

CAPTIONS = all_captions()


@pytest.fixture
def world(tmp_path):
    """Five training scenes; two prompts with three seeds each, of which one is a mirrored copy."""
    for part in ("train", "heldout", "samples/p0", "samples/p1"):
        (tmp_path / part).mkdir(parents=True)
    for i in range(5):
        draw_scene(CAPTIONS[i * 17], i).save(tmp_path / "train" / f"{i}.png")
        draw_scene(CAPTIONS[i * 17], 500 + i).save(tmp_path / "heldout" / f"{i}.png")
    for prompt in (0, 1):
        for seed in range(3):
            drawn = draw_scene(CAPTIONS[prompt * 17], 100 + seed)
            if (prompt, seed) == (1, 2):
                remembered = draw_scene(CAPTIONS[17], 1).filter(ImageFilter.GaussianBlur(0.7))
                drawn = ImageOps.mirror(ImageEnhance.Color(remembered).enhance(1.8))
            drawn.save(tmp_path / "samples" / f"p{prompt}" / f"{seed}.png")
    return tmp_path


def test_the_copy_is_found_and_counted(world):
    metrics = folder_metrics(world / "samples", world / "train", heldout=world / "heldout", cache=world / "cache")
    json.dumps(metrics)  # plain types only
    assert metrics["aggregates"]["share"]["value"] == pytest.approx(1 / 6)
    assert metrics["aggregates"]["share_any"]["value"] == 0.5
    last = metrics["nearest"][-1]
    assert last["training_image"].endswith("1.png")
    assert last["mirrored"]
    assert "null train-train" in metrics["null_train"]["metric"]["source"]
    assert "0.17 of 5 images" in metrics["null_heldout"]["metric"]["source"]
    assert metrics["null_heldout"]["share"]["value"] >= 1 / 6
    assert metrics["ratio"]["duplicate_groups_known"] is False
    assert 1 < metrics["diversity"]["vendi"]["value"] <= 3
    assert metrics["metric"]["embedder"] == "structure-colour-v1"
    assert 0 < metrics["likeness_to_heldout"]["value"] < 1
    assert "at least 20 of each" in metrics["quality"]
    assert folder_metrics(world / "samples", world / "train", cache=world / "cache")["nearest"] == metrics["nearest"]


def test_a_manifest_says_which_images_count(world):
    """Without the image that was copied there is no copy; a row whose image has changed is refused."""
    train = world / "train"
    names = ("0.png", "2.png", "3.png", "4.png")
    rows = [
        {"file_name": name, "text": "x", "captions": ["x"], "repeats": 1, "caption_sha256": "0" * 64,
         "image_sha256": hashlib.sha256((train / name).read_bytes()).hexdigest()} for name in names
    ]  # fmt: skip
    (train / "kept.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (world / "curation.json").write_text(json.dumps({"groups": [{"files": ["0.png", "1.png"]}]}))
    metrics = verb(world / "samples", train, manifest="kept.jsonl", groups=world / "curation.json")
    assert metrics["training_images"] == 4
    assert metrics["aggregates"]["share"]["value"] == 0
    assert metrics["ratio"]["duplicate_groups_known"] is True
    (train / "3.png").write_bytes((train / "1.png").read_bytes())
    with pytest.raises(ValueError, match=r"1 of 4 images are gone or changed, such as 3.png; curate again"):
        verb(world / "samples", train, manifest="kept.jsonl")


def test_a_copy_and_no_copy(world):
    train, copy = world / "train" / "1.png", world / "samples" / "p1" / "2.png"
    comparison = compare_pair(copy, train, picture=world / "overlay.png")
    json.dumps(comparison)
    assert comparison["copy"]
    assert comparison["mirrored"]
    assert comparison["kind"] == "verbatim"
    with Image.open(world / "overlay.png") as overlay:
        assert overlay.size == (64, 64)
    other = compare_pair(world / "samples" / "p1" / "0.png", train)
    assert not other["copy"]
    assert not other["tiled_l2_copy"]
    assert other["kind"] == "none"


def test_the_same_file_is_the_same_image(world):
    comparison = compare_pair(world / "train" / "0.png", world / "train" / "0.png")
    assert comparison["similarity"] == pytest.approx(1, abs=1e-5)
    assert comparison["tiled_l2"] == 0.0
    assert comparison["tiled_l2_copy"]


def test_no_file_is_ever_overwritten(world):
    train = world / "train" / "0.png"
    before = train.read_bytes()
    with pytest.raises(ValueError, match="already exists"):
        compare_pair(train, train, picture=train)
    assert train.read_bytes() == before
    with pytest.raises(ValueError, match=r"end the name in \.png"):
        compare_pair(train, train, picture=world / "overlay.jpg")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        compare_pair(train, train, picture=world / "no" / "overlay.png")


def test_empty_folders_and_tiny_pictures_are_refused(world):
    (world / "empty").mkdir()
    with pytest.raises(ValueError, match="no picture in it"):
        folder_metrics(world / "samples", world / "empty")
    Image.new("RGB", (1, 1)).save(world / "dot.png")
    with pytest.raises(ValueError, match="1x1 pixels"):
        compare_pair(world / "dot.png", world / "train" / "0.png")


def test_sizes_and_modes_may_differ(world):
    with Image.open(world / "train" / "0.png") as first:
        first.resize((150, 130)).convert("RGBA").save(world / "large.png")
    assert compare_pair(world / "large.png", world / "train" / "0.png")["copy"]


def test_base_samples_are_the_floor(world):
    shutil.copytree(world / "samples", world / "base")
    draw_scene(CAPTIONS[17], 102).save(world / "base" / "p1" / "2.png")
    metrics = folder_metrics(world / "samples", world / "train", base=world / "base")
    copied = metrics["nearest"][-1]["similarity"]
    assert 0 < metrics["above_floor"]["value"] < copied / 6
    assert metrics["null_base_samples"]["share"]["value"] >= 1 / 6
    (world / "base" / "p1" / "2.png").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of 6 samples, such as 2\.png"):
        folder_metrics(world / "samples", world / "train", base=world / "base")


def test_what_cannot_be_measured_says_why(world):
    for i in range(1, 5):
        (world / "train" / f"{i}.png").unlink()
    metrics = folder_metrics(world / "samples" / "p0", world / "train")
    assert metrics["ratio"].startswith("not measured: 1 training images")
    assert "at least 2 samples" in metrics["diversity"]
    assert metrics["null_train"].startswith("not measured")
    assert metrics["aggregates"]["share"]["n"] == 3


def test_each_threshold_is_shown_beside_the_published_one(world):
    metrics = folder_metrics(world / "samples", world / "train", heldout=world / "heldout")
    for part in ("null_train", "null_heldout"):
        advised = metrics[part]["advised"]
        assert advised["metric"]["threshold"] == 0.69  # five images are too few to go below it
        assert "because 5 images are few" in advised["metric"]["source"]
        assert advised["share"]["value"] == pytest.approx(1 / 6)


def test_samples_among_the_training_images_are_refused(world):
    with pytest.raises(ValueError, match=r"3 of 3 samples.*are in the training folder too"):
        folder_metrics(world / "samples" / "p0", world)


def test_a_training_image_among_the_heldout_ones_is_refused(world):
    shutil.copy(world / "train" / "1.png", world / "heldout" / "another name.png")
    with pytest.raises(ValueError, match=r"1 of 6 held-out images, such as .*another name\.png, are training images"):
        folder_metrics(world / "samples", world / "train", heldout=world / "heldout")


def test_equal_files_are_one_group_and_near_ones_must_be_named(world):
    train = world / "train"
    shutil.copy(train / "0.png", train / "again.png")
    assert "null train-train" in folder_metrics(world / "samples", train)["null_train"]["metric"]["source"]
    with Image.open(train / "1.png") as one:
        one.save(train / "near.jpg", quality=90)
    ungrouped = folder_metrics(world / "samples", train)
    assert ungrouped["null_train"].startswith("not measured: two training images")
    curation = world / "curation.json"
    curation.write_text(json.dumps({"groups": [{"files": ["1.png", "near.jpg"], "reason": "copies"}]}))
    grouped = folder_metrics(world / "samples", train, groups=duplicate_groups(train, curation))
    assert "null train-train" in grouped["null_train"]["metric"]["source"]
    assert grouped["ratio"]["duplicate_groups_known"] is True
    assert grouped["ratio"]["share"]["value"] >= ungrouped["ratio"]["share"]["value"]


def test_groups_of_another_folder_are_refused(world, tmp_path):
    other = tmp_path / "curation.json"
    other.write_text(json.dumps({"groups": [{"files": ["strange.png"]}]}))
    with pytest.raises(ValueError, match=r"names 'strange\.png', which is not in"):
        duplicate_groups(world / "train", other)
    other.write_text("[]")
    with pytest.raises(ValueError, match=r"not a curation\.json"):
        duplicate_groups(world / "train", other)
    with pytest.raises(FileNotFoundError, match="basinguard curate"):
        duplicate_groups(world / "train", tmp_path / "no.json")


def test_groups_are_joined_by_content(world):
    files = [world / "train" / f"{i}.png" for i in (0, 1, 2)]
    shutil.copy(files[0], files[2])
    assert merge_groups([0, 1, 2], files) == [0, 1, 0]
    assert merge_groups([0, 1, 1], files) == [0, 0, 0]
    with pytest.raises(ValueError, match="2 groups given for 3 training images"):
        merge_groups([0, 1], files)


def test_awkward_names_and_hidden_files(world, capsys):
    odd = world / "sämples, 100% [new]" / "a red ball, 'quoted'"
    odd.mkdir(parents=True)
    draw_scene(CAPTIONS[0], 7).save(odd / "#1 ü.PNG")
    draw_scene(CAPTIONS[0], 8).save(odd / "-x.png")
    (odd / "._#1 ü.PNG").write_bytes(b"what macOS leaves beside a file on a foreign disk")
    main(["metrics", str(odd.parent), str(world / "train")])
    printed = capsys.readouterr()
    metrics = json.loads(printed.out)
    assert "structure-colour-v1 at 0.69 (published)" in printed.err
    assert "(null_train)" in printed.err
    assert metrics["aggregates"]["share_any"]["n"] == 1
    assert {entry["sample"] for entry in metrics["nearest"]} == {str(odd / "#1 ü.PNG"), str(odd / "-x.png")}
    main(["compare-images", str(odd / "#1 ü.PNG"), str(world / "train" / "0.png"), "--embedder", "structure"])
    assert json.loads(capsys.readouterr().out)["metric"]["threshold"] == 0.69
    with pytest.raises(SystemExit):
        main(["compare-images", str(odd / "#1 ü.PNG"), str(world / "train" / "0.png"), "--embedder", "dino"])
    assert "expected one of structure" in capsys.readouterr().err


def test_a_shifted_figure_on_an_empty_ground_is_found_by_a_second_eye(world, capsys):
    stickers, copies = world / "stickers", world / "copies"
    for folder in (stickers, copies):
        folder.mkdir()
    for i in range(4):
        figure = draw_scene(CAPTIONS[i * 17], i).crop((16, 16, 48, 48))
        for folder, corner in ((stickers, (16, 16)), (copies, (4, 24))):
            ground = Image.new("RGB", (64, 64), "white")
            ground.paste(figure, corner)
            ground.save(folder / f"{i}.png")
    main(["metrics", str(copies), str(stickers)])
    printed = capsys.readouterr()
    metrics = json.loads(printed.out)
    assert metrics["metric"]["embedder"] == "structure-colour-v1"
    assert metrics["aggregates"]["share"]["value"] < metrics["figure"]["share"]["value"] == 1
    assert "structure-figure-v1 at 0.92 (published)" in printed.err
    assert "figure" not in folder_metrics(world / "samples", world / "train")


def test_the_picture_that_cannot_be_used_is_named(world):
    Image.new("RGB", (1, 1)).save(world / "train" / "dot.png")
    with pytest.raises(ValueError, match=r"dot\.png: images of 1x1 pixels given"):
        folder_metrics(world / "samples", world / "train")
    values = np.full((32, 32), 0.5, np.float32)
    values[3, 3] = np.nan
    Image.fromarray(values).save(world / "nan.tif")
    with pytest.raises(ValueError, match=r"nan\.tif: holds pixels that are not finite"):
        compare_pair(world / "nan.tif", world / "train" / "0.png")
