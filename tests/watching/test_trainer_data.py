"""Trainers' own descriptions of their images, by the keys that they document; regularization is nobody's secret."""

import doctest
import json

import pyarrow
import pytest
from pyarrow import parquet

from basinguard.watching import trainer_data
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
        ("a.yaml", "config:", "not laid out as any of those that are read"),
        ("a.toml", "datasets = 3", "not laid out as any of those that are read"),
        ("a.toml", "[[datasets]]\nsubsets = 'x'", "not laid out as any of those that are read"),
        ("a.toml", "dataset_config = 'missing.toml'", "a.toml names missing.toml, which is no file here"),
        ("a.toml", "[[datasets]]\n[[datasets.subsets]]\nmetadata_file='m.json'", "a.toml: .* No such file .*m.json"),
        ("a.json", json.dumps([{"instance_data_dir": "A", "caption_strategy": "parquet"}]), "not laid out as any"),
        ("a.json", json.dumps([{"instance_data_dir": "A", "caption_strategy": "csv"}]), "'csv' are not read"),
        ("a.json", json.dumps([{"path": "A", "text": {"prompt_source": "concept"}}]), "where there is none"),
    ],
)
def test_what_cannot_be_used_is_one_line(here, name, text, message):
    (here / name).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        image_subsets(here / name)
    assert "\n" not in str(error.value)


def test_no_text_at_all_is_one_line(here):
    (here / "a.json").write_bytes("[]".encode("utf-16"))
    with pytest.raises(ValueError, match=r"a.json: 'utf-8' codec can't decode"):
        image_subsets(here / "a.json")


CONCEPT = {"prompt_source": "concept", "prompt_path": "prompts.txt"}
NAMED = [
    ([{"path": "A", "text": {"prompt_source": "filename"}}], "red_ball 1"),
    ([{"path": "A", "text": CONCEPT}], "a sks dog"),
    ([{"instance_data_dir": "A", "caption_strategy": "filename"}], "red ball 1"),
    ([{"instance_data_dir": "A", "caption_strategy": "textfile", "instance_prompt": "x"}], "own"),
    ([{"instance_data_dir": "A", **INSTANCE}], "sks dog"),
    ([{"instance_data_dir": "A", **INSTANCE, "caption_strategy": "filename", "prepend_instance_prompt": True}],
     "sks dog red ball 1"),
]  # fmt: skip


@pytest.mark.parametrize(("entries", "caption"), NAMED, ids=[caption for _, caption in NAMED])
def test_captions_are_what_the_trainer_makes_of_them(here, entries, caption):
    """Names of files, one text for all, a prompt before them: as OneTrainer and SimpleTuner document it."""
    (here / "prompts.txt").write_text("\na sks dog\na dog\n")
    (here / "a.json").write_text(json.dumps(entries))
    (subset,) = image_subsets(here / "a.json")
    assert subset.trained("A/red_ball 1.png", "own") == caption


def test_a_trigger_stands_where_the_caption_says_or_before_it(here):
    assert doctest.testmod(trainer_data).failed == 0
    (here / "a.yaml").write_text(AI_TOOLKIT)
    (subset,) = image_subsets(here / "a.yaml")
    assert [subset.trained("", c) for c in ("sit", "a [trigger]", "the sks dog")] == [
        "sks dog sit", "a sks dog", "the sks dog"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train.toml", "[dataset_arguments]\ndataset_config = 'dataset.toml'"),
        ("train.toml", "[general]\ntrain_data_dir = 'A'"),
        ("config.json", '{"concept_file_name": "concepts.json", "concepts": null}'),
        ("config.json", '{"--data_backend_config": "concepts.json"}'),
    ],
)
def test_a_main_configuration_is_followed_to_its_images(here, name, text):
    (here / "dataset.toml").write_text(SD_SCRIPTS)
    (here / "concepts.json").write_text(json.dumps(ONE_TRAINER))
    (here / name).write_text(text)
    (subset,) = image_subsets(here / name)
    assert subset.folder.resolve() == here / "A"


META = {"1.png": {"caption": "a red ball", "tags": "toy, round"}, "2": {"caption": "a box"}, "3.png": {"tags": "cube"}}
META_TOML = """
[[datasets]]
caption_separator = "; "
  [[datasets.subsets]]
  image_dir = "A"
  metadata_file = "meta.json"
"""


def test_the_captions_of_sd_scripts_metadata_are_those_that_it_trains_with(here):
    """As its FineTuningDataset joins them, by whole names and by names without an ending; others are not trained on."""
    (here / "meta.json").write_text(json.dumps(META))
    (here / "a.toml").write_text(META_TOML)
    (subset,) = image_subsets(here / "a.toml")
    assert subset.folder == here / "A"
    trained = {name: subset.trained(f"A/{name}", "") for name in ("1.png", "2.jpg", "3.png")}
    assert trained == {"1.png": "a red ball; toy, round", "2.jpg": "a box", "3.png": "cube"}
    assert [subset.includes(f"A/{name}") for name in ("1.png", "2.jpg", "4.png")] == [True, True, False]


def test_relative_paths_of_metadata_need_a_folder(here):
    (here / "meta.json").write_text(json.dumps(META))
    (here / "a.toml").write_text(META_TOML.replace('image_dir = "A"', ""))
    with pytest.raises(ValueError, match="no image_dir says to what"):
        image_subsets(here / "a.toml")


def test_variants_of_sd_scripts_captions_are_lines_of_which_the_first_is_taken(here):
    """Metadata as lines of JSON; with `enable_wildcard` braces are doubled, as config_README-en.md says."""
    row = {"image_path": str(here / "A" / "1.png"), "caption": "a {{red}} ball\na ball"}
    (here / "meta.jsonl").write_text(json.dumps(row) + "\n")
    text = META_TOML.replace("meta.json", "meta.jsonl").replace('image_dir = "A"', "enable_wildcard = true")
    (here / "a.toml").write_text(text)
    (subset,) = image_subsets(here / "a.toml")
    assert (subset.folder, subset.trained("A/1.png", "")) == (here / "A", "a {red} ball")


def test_lines_of_a_text_are_captions_where_the_trainer_takes_them_so(here):
    """sd-scripts takes the first one (`read_caption` in its train_util.py), ai-toolkit joins them."""
    (here / "a.toml").write_text(SD_SCRIPTS)
    (here / "a.yaml").write_text(AI_TOOLKIT)
    for name, lines in (("a.toml", True), ("a.yaml", False)):
        assert [subset.lines for subset in image_subsets(here / name)] == [lines]
    assert not image_subsets(here / "A")[0].lines


def test_captions_of_simpletuner_in_a_parquet_file(here):
    """Of several for an image the first; names with their endings or without, as its DATALOADER.md has them."""
    columns = {"file": ["1.png", "2"], "words": [["a ball", "a red ball"], ["a box"]]}
    parquet.write_table(pyarrow.table(columns), here / "t.parquet")
    table = {"path": "t.parquet", "filename_column": "file", "caption_column": "words"}
    backend = {"instance_data_dir": "A", "caption_strategy": "parquet", "parquet": table}
    (here / "a.json").write_text(json.dumps([backend]))
    (subset,) = image_subsets(here / "a.json")
    assert [subset.trained(f"A/{name}", "") for name in ("1.png", "2.png")] == ["a ball", "a box"]
    table["caption_column"] = "missing"
    (here / "a.json").write_text(json.dumps([backend]))
    with pytest.raises(ValueError, match="has columns file, words, not 'file' and 'missing'"):
        image_subsets(here / "a.json")
