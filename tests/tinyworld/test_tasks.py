"""What TinyWorld can be taught: the same again for the same seed, and truth that was never trained on."""

import json

import pytest
import torch
from PIL import Image

from basinguard.tinyworld.creature import POSES
from basinguard.tinyworld.tasks import SUBJECT_DETAILS, TASKS, Task, TaskImages, few_among_many, write_folder
from basinguard.training.data import ImageFolder


@pytest.mark.parametrize("name", TASKS)
def test_same_seed_same_pixels_and_another_seed_others(name):
    task = TASKS[name]
    first, again, other = task.train(3, seed=1), task.train(3, seed=1), task.train(3, seed=2)
    assert torch.equal(first.pixels, again.pixels)
    assert first.captions == again.captions
    assert not torch.equal(first.pixels, other.pixels)


@pytest.mark.parametrize("name", sorted(set(TASKS) - {"dreambooth"}))
def test_truth_has_no_caption_that_is_trained_on(name):
    task = TASKS[name]
    assert not set(task.captions) & set(task.heldout)
    assert set(task.truth(4).captions) <= set(task.heldout)
    assert set(task.train(4).captions) <= set(task.captions)


def test_training_and_truth_and_class_draw_from_seeds_of_their_own():
    drawn = []

    def note(text, seed):
        drawn.append(seed)
        return Image.new("RGB", (64, 64))

    task = Task("noted", ("a",), ("a",), note, class_caption="b")
    for seed in (0, 1, 999):
        task.train(4, seed), task.truth(4, seed), task.class_images(4, seed)
    assert len(set(drawn)) == len(drawn) == 36


def test_truth_shows_each_caption_as_often_as_any_other():
    captions = TASKS["subject"].truth(15).captions
    assert {captions.count(c) for c in captions} == {3}


def test_every_pose_and_every_detail_of_the_subject_is_trained_on():
    captions = TASKS["subject"].captions
    assert all(any(pose in c for c in captions) for pose in POSES)
    assert all(any(c.endswith(detail) for c in captions) for detail in SUBJECT_DETAILS)


def test_ink_is_two_colours_and_the_scene_is_not():
    """Most of a page is bare paper, and nothing on it is as colourful as a scene."""
    ink, scenes = TASKS["ink"].train(8).pixels, TASKS["scenes"].train(8).pixels
    assert TASKS["ink"].train(8).captions == TASKS["scenes"].train(8).captions
    saturation = [(p.amax(1) - p.amin(1)).mean() for p in (ink, scenes)]
    assert saturation[0] < 0.6 * saturation[1]
    paper = (ink.movedim(1, -1).reshape(-1, 3) * 255 - torch.tensor([244.0, 236, 214])).abs().amax(1) < 2
    assert 0.3 < paper.float().mean() < 0.95


def test_neon_is_dark_with_bright_lines():
    pixels = TASKS["neon"].train(8).pixels.amax(1)
    assert (pixels < 0.1).float().mean() > 0.4
    assert (pixels > 0.8).float().mean() > 0.05


def test_written_folder_is_read_by_the_trainer(tmp_path):
    train, heldout = TASKS["brick"].write(tmp_path, 5, seed=3, heldout=2)
    images = ImageFolder(str(train), resolution=64)
    images.setup("fit")
    drawn = TASKS["brick"].train(5, seed=3)
    assert [text for _, text in images.items] == list(drawn.captions)
    torch.testing.assert_close(images.all_pixels(), drawn.pixels)
    assert len((heldout / "metadata.jsonl").read_text().splitlines()) == 2


def test_dreambooth_writes_its_class_beside_the_subject(tmp_path):
    train, _ = TASKS["dreambooth"].write(tmp_path, 2, heldout=1)
    rows = [json.loads(line) for line in (tmp_path / "class" / "metadata.jsonl").read_text().splitlines()]
    assert {row["text"] for row in rows} == {"a photo of creature"}
    assert "sks" in (train / "metadata.jsonl").read_text()


def test_folder_that_is_there_stays(tmp_path):
    (tmp_path / "metadata.jsonl").write_text("mine")
    write_folder(tmp_path, TASKS["ink"].train(1))
    assert (tmp_path / "metadata.jsonl").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["metadata.jsonl"]


def test_few_among_many_repeats_only_the_few():
    whole, few = few_among_many(TASKS["scenes"], n=6, few=2, repeats=3)
    pixels = [image.tobytes() for image in whole.images]
    assert (len(pixels), len(set(pixels))) == (6 + 2 * 3, 8)
    assert [pixels.count(image.tobytes()) for image in few.images] == [3, 3]
    assert isinstance(few, TaskImages)


@pytest.mark.parametrize(("n", "seed"), [(0, 0), (100_001, 0), (1, -1), (1, 1000)])
def test_numbers_out_of_range_are_refused(n, seed):
    with pytest.raises(ValueError, match=f"n={n}, seed={seed}; expected n in 1..100000 and seed in 0..999"):
        TASKS["ink"].train(n, seed)


def test_a_task_without_a_class_says_who_has_one():
    with pytest.raises(ValueError, match="'ink' has no class images; 'dreambooth' has"):
        TASKS["ink"].class_images(1)
