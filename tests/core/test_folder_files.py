"""What people's disks and trainers leave beside images is no picture of the set: for every reader the same files."""

import logging

import pytest
from PIL import Image

from basinguard.core.folder_files import FolderFiles, list_files
from basinguard.curation.folder import read_folder
from basinguard.similarity.image_files import image_paths
from basinguard.training.data_sources import ImageSource

PICTURES = ("a.png", "b.jpg", "sub/c.png")
LITTER = {
    "@eaDir": ("@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg", "sub/@eaDir/c.png/SYNOPHOTO_THUMB_XL.jpg"),
    "__MACOSX": ("__MACOSX/._a.png", "__MACOSX/sub/._c.png"),
    "._*": ("._a.png", "sub/._c.txt"),
    ".DS_Store": (".DS_Store", "sub/.DS_Store"),
    "Thumbs.db": ("Thumbs.db",),
    "masks": ("a-masklabel.png", "b_mask.png", "sub/c.mask.jpg"),
    "hidden images": (".thumbnails/a.png",),
}
SILENT = (".gitattributes", ".cache/index.json")  # hidden, and never a picture


@pytest.fixture
def folder(tmp_path):
    for name in (*PICTURES, *SILENT, *(name for names in LITTER.values() for name in names)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no picture at all")
    for name in PICTURES:
        Image.new("RGB", (64, 64), "red").save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text("a ball")
    return tmp_path


NOTE = (
    "13 files of no picture left out: .DS_Store 2, ._* 2, @eaDir 2, Thumbs.db 1, __MACOSX 2, hidden images 1, masks 3"
)


def test_curation_training_and_metrics_see_the_same_pictures(folder, caplog):
    read = read_folder(folder)
    assert [item.file_name for item in read.items] == list(PICTURES)
    assert [problem.message for problem in read.problems] == [NOTE]
    source = ImageSource.of_folder(folder)
    assert [name for name, _ in source.items] == [str(folder / name) for name in PICTURES]
    assert source.problems == ()
    assert len(source.oddities) == 1
    with caplog.at_level(logging.INFO, "basinguard"):
        assert image_paths(folder) == [folder / name for name in PICTURES]
    assert caplog.messages == [f"{folder}: {NOTE}"]


def names_of(tmp_path, *names):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    return list_files(tmp_path).names


def test_a_mask_without_its_image_is_a_picture(tmp_path):
    assert names_of(tmp_path, "carnival_mask.png", "_mask.png") == ("_mask.png", "carnival_mask.png")


def test_a_mask_with_a_caption_is_a_picture_but_no_label_is(tmp_path):
    names = ("a.png", "a_mask.png", "a_mask.txt", "a-masklabel.png", "a-masklabel.txt", "a-condlabel.PNG")
    assert names_of(tmp_path, *names) == ("a-masklabel.txt", "a.png", "a_mask.png", "a_mask.txt")


def test_a_clean_folder_says_nothing(tmp_path):
    assert names_of(tmp_path, "a.png", "a.txt") == ("a.png", "a.txt")
    assert list_files(tmp_path).note == ""
    assert FolderFiles((), left_out=(("masks", 1),)).note == "1 file of no picture left out: masks 1"
