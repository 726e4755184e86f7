"""Trainers' own descriptions of their images, by the keys that they document; regularization is nobody's secret."""

import json

import pytest

from basinguard.watching.trainer_data import ImageSubset, image_subsets

SD_SCRIPTS = """
[general]
caption_extension = ".txt"
[[datasets]]
resolution = 512
  [[datasets.subsets]]
  image_dir = "A"
  class_tokens = "sks dog"
  num_repeats = 10
  [[datasets.subsets]]
  is_reg = true
  image_dir = "B"
  class_tokens = "dog"
"""
ONE_TRAINER = [
    {"path": "A", "text": {"prompt_source": "sample"}, "enabled": True},
    {"path": "B", "enabled": False},
    {"path": "B", "type": "PRIOR_PREDICTION"},
]
INSTANCE = {"caption_strategy": "instanceprompt", "instance_prompt": "sks dog"}
SIMPLE_TUNER = [
    {"id": "dog", "type": "local", "instance_data_dir": "A", **INSTANCE},
    {"id": "reg", "type": "local", "instance_data_dir": "B", "is_regularisation_data": True},
    {"id": "text", "dataset_type": "text_embeds", "type": "local", "cache_dir": "B"},
]
AI_TOOLKIT = """
job: extension
config:
  name: dog
  process:
    - type: sd_trainer
      trigger_word: sks dog
      datasets:
        - folder_path: A
          caption_ext: txt
        - folder_path: B
          is_reg: true
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "AB":
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text", "caption"),
    [
        ("dataset.toml", SD_SCRIPTS, "sks dog"),
        ("concepts.json", json.dumps(ONE_TRAINER), ""),
        ("config.json", json.dumps({"concepts": ONE_TRAINER}), ""),
        ("multidatabackend.json", json.dumps(SIMPLE_TUNER), "sks dog"),
        ("train.yaml", AI_TOOLKIT, "sks dog"),
    ],
)
def test_folders_and_captions_are_those_that_are_trained_on(here, name, text, caption):
    (here / name).write_text(text)
    (subset,) = image_subsets(here / name)
    assert (subset.folder.resolve(), subset.caption) == (here / "A", caption)


def test_a_folder_is_itself_and_one_beside_the_file_is_found_from_elsewhere(here, monkeypatch):
    assert image_subsets(here / "A", "sks dog") == [ImageSubset(here / "A", "sks dog")]
    (here / "dataset.toml").write_text(SD_SCRIPTS)
    monkeypatch.chdir(here / "B")
    assert image_subsets(here / "dataset.toml")[0].folder == here / "A"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "[[datasets]\n", "a.toml: "),
        ("a.json", "{}", "names no folder of images; what is read: sd-scripts"),
        ("a.json", json.dumps([{"path": "missing"}]), "which is no folder here"),
        ("a.yaml", "config: {process: []}", "names no folder"),
    ],
)
def test_what_cannot_be_used_is_one_line(here, name, text, message):
    (here / name).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        image_subsets(here / name)
    assert "\n" not in str(error.value)
