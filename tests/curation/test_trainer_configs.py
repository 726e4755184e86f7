"""What trainers are given: folders of what stays, and configs by their documented keys that our watch reads back."""

import json
import os
import tomllib
from pathlib import Path

import pytest
import yaml

from basinguard.core.files import file_sha256
from basinguard.core.folder_files import list_files
from basinguard.curation.curate import curate_images
from basinguard.curation.folder import read_folder
from basinguard.curation.trainer_settings import TrainerSettings
from basinguard.watching.trainer_data import image_subsets

# docs/config_README-en.md of sd-scripts, options of DreamBooth subsets that are used here
KOHYA = {"image_dir", "num_repeats", "class_tokens", "enable_wildcard", "is_reg"}
# modules/util/config/ConceptConfig.py of OneTrainer; `type` since its version 2
ONETRAINER = {"__version", "name", "path", "enabled", "type", "include_subdirectories", "balancing",
              "balancing_strategy", "text"}  # fmt: skip
# documentation/DATALOADER.md of SimpleTuner
SIMPLETUNER = {"id", "type", "instance_data_dir", "caption_strategy", "instance_prompt", "is_regularisation_data",
               "resolution", "resolution_type", "cache_dir_vae", "repeats"}  # fmt: skip
# toolkit/config_modules.py of ai-toolkit, DatasetConfig
AI_TOOLKIT = {"folder_path", "caption_ext", "default_caption", "num_repeats", "is_reg", "resolution"}
NAMES = ("kohya.toml", "onetrainer.json", "simpletuner.json", "ai-toolkit.yaml")


@pytest.fixture(scope="module")
def curated(tmp_path_factory, pictures):
    """A folder as sd-scripts has them, with a copy under another caption, and what its curation wrote."""
    root = tmp_path_factory.mktemp("trainers")
    places = {"img/10_ohwx man/a.png": 0, "img/10_ohwx man/b.png": 1, "img/3_ohwx man outdoor/a.png": 2,
              "img/3_ohwx man outdoor/copy.png": 1, "reg/1_man/d.png": 3}  # fmt: skip
    for name, number in places.items():
        path = root / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures[number].save(path)
    (root / "set/img/10_ohwx man/b.txt").write_text("ohwx man, a {hat|cap}, outdoors")
    (root / "set/img/3_ohwx man outdoor/copy.txt").write_text("ohwx man, a {hat|cap}")
    curate_images(root / "set", out=root / "out", trainer=TrainerSettings(repeats=2, resolution=512), workers=1)
    return root


def values(root: Path) -> list:
    texts = [(root / "out" / name).read_text() for name in NAMES]
    return [tomllib.loads(texts[0]), json.loads(texts[1]), json.loads(texts[2]), yaml.safe_load(texts[3])]


def below(root: Path) -> list[str]:
    """The folders that are made, in the order in which every config names them."""
    names = ("20_ohwx man", "20_ohwx man, several captions", "6_ohwx man outdoor")
    return [*(str(root / "out/basinguard-images" / name) for name in names), str(root / "set/reg/1_man")]


def test_the_folders_hold_what_stays_under_its_captions(curated):
    made = curated / "out/basinguard-images"
    texts = {path.relative_to(made).as_posix(): path.read_text() for path in made.rglob("*.txt")}
    images = {path.relative_to(made).as_posix(): path for path in made.rglob("*.png")}
    assert set(images) == {
        "20_ohwx man/img-10_ohwx man-a.png",
        "20_ohwx man, several captions/img-10_ohwx man-b.png",
        "6_ohwx man outdoor/img-3_ohwx man outdoor-a.png",
    }
    assert texts == {
        "20_ohwx man/img-10_ohwx man-a.txt": "ohwx man\n",
        "20_ohwx man, several captions/img-10_ohwx man-b.txt": (
            "ohwx man, a {hat|cap}, outdoors\nohwx man, a {hat|cap}\n"
        ),
        "6_ohwx man outdoor/img-3_ohwx man outdoor-a.txt": "ohwx man outdoor\n",
        "1_man.words.txt": "man\n",
    }
    first = curated / "set/img/10_ohwx man/a.png"
    assert images["20_ohwx man/img-10_ohwx man-a.png"].samefile(first)
    assert list_files(curated).note == "9 files of no picture left out: basinguard-images 9"


def test_documented_keys_keep_repeats_tokens_and_regularization(curated):
    kohya, onetrainer, simpletuner, ai_toolkit = values(curated)
    (dataset,) = kohya["datasets"]
    assert (kohya["general"], dataset["resolution"]) == ({"caption_extension": ".txt"}, 512)
    backends, embeds = simpletuner[:-1], simpletuner[-1]
    assert (embeds["dataset_type"], embeds["default"]) == ("text_embeds", True)
    datasets = ai_toolkit["config"]["process"][0]["datasets"]
    for rows, keys, folder in (
        (dataset["subsets"], KOHYA, "image_dir"),
        (onetrainer, ONETRAINER, "path"),
        (backends, SIMPLETUNER, "instance_data_dir"),
        (datasets, AI_TOOLKIT, "folder_path"),
    ):
        assert set().union(*rows) == keys
        assert [row[folder] for row in rows] == below(curated)
    assert [row["num_repeats"] for row in dataset["subsets"]] == [20, 20, 6, 1]
    assert [row["balancing"] for row in onetrainer] == [20, 20, 6, 1]
    assert [row["repeats"] for row in backends] == [19, 19, 5, 0]
    assert [row["num_repeats"] for row in datasets] == [20, 20, 6, 1]
    words = ["ohwx man", "ohwx man", "ohwx man outdoor", "man"]
    assert [row.get("class_tokens") for row in dataset["subsets"]] == words
    assert [row["type"] for row in onetrainer] == ["STANDARD"] * 3 + ["PRIOR_PREDICTION"]
    assert Path(onetrainer[-1]["text"]["prompt_path"]).read_text() == "man\n"
    for rows, key in ((dataset["subsets"], "is_reg"), (backends, "is_regularisation_data"), (datasets, "is_reg")):
        assert [row.get(key, False) for row in rows] == [False, False, False, True]
    assert [row["caption_ext"] for row in datasets] == ["txt", "first", "txt", "txt"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_read_back_by_a_watch(curated, name):
    subsets = image_subsets(curated / "out" / name)
    assert [str(subset.folder) for subset in subsets] == below(curated)[:3]
    trained = {
        file_sha256(item.path): subset.trained(str(item.path), item.caption)
        for subset in subsets
        for item in read_folder(subset.folder, lines=True).items
    }
    originals = [curated / "set/img" / place for place in ("10_ohwx man/a.png", "10_ohwx man/b.png")]
    assert [trained[file_sha256(path)] for path in originals] == ["ohwx man", "ohwx man, a {hat|cap}, outdoors"]
    assert len(trained) == 3


def test_a_second_curation_takes_away_what_the_first_put_there_and_nothing_else(folder_of, pictures, tmp_path):
    photos = folder_of({name: (pictures[k], "zxq") for k, name in enumerate(("a.png", "a.jpg", "b/c.png"))})
    curate_images(photos, out=tmp_path / "out", workers=1)
    made = tmp_path / "out/basinguard-images/1_images"
    (made / "mine.npz").write_bytes(b"a cache of a trainer")
    assert {path.name for path in made.iterdir()} == {
        "a.jpg", "a.txt", "a-2.png", "a-2.txt", "b-c.png", "b-c.txt", "mine.npz"}  # fmt: skip
    (photos / "b/c.png").unlink()
    (photos / "b/c.txt").unlink()
    curate_images(photos, out=tmp_path / "out", workers=1)
    assert {path.name for path in made.iterdir()} == {"a.jpg", "a.txt", "a-2.png", "a-2.txt", "mine.npz"}


def test_a_disk_without_hard_links_gets_links_and_one_without_any_gets_copies(
    folder_of, pictures, tmp_path, monkeypatch
):
    photos = folder_of({"a.png": (pictures[0], "zxq")})

    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    curate_images(photos, out=tmp_path / "links", workers=1)
    monkeypatch.setattr(Path, "symlink_to", refuse)
    curate_images(photos, out=tmp_path / "copies", workers=1)
    link, copy = (tmp_path / name / "basinguard-images/1_images/a.png" for name in ("links", "copies"))
    assert link.is_symlink()
    assert link.samefile(photos / "a.png")
    assert copy.read_bytes() == (photos / "a.png").read_bytes()
    assert not copy.samefile(photos / "a.png")
