"""The whole command on small folders: what is found, what is written, and that the sources stay as they were."""

import hashlib
import json
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from basinguard.cli import main
from basinguard.core import files
from basinguard.core.files import write_bytes
from basinguard.curation import analysis, output_files, scan, thumbnail_cache
from basinguard.curation.curate import curate_images
from basinguard.curation.manifest import MANIFEST, Curation
from basinguard.curation.trainer_settings import TrainerSettings
from support.messy_folder import write_messy_folder


def tree(directory: Path) -> dict[str, tuple]:
    entries = {}
    for parent, folders, names in os.walk(directory):
        for name in [*folders, *names]:
            path = Path(parent, name)
            status = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else ""
            entries[str(path.relative_to(directory))] = (status.st_mode, status.st_size, status.st_mtime_ns, content)
    return entries


@pytest.fixture
def photos(folder_of, pictures):
    images = {f"{n:02d}.png": (picture, f"a picture, number {n}") for n, picture in enumerate(pictures[:6])}
    images["sub/mirrored {x}.jpg"] = (ImageOps.mirror(pictures[0]), 'the "first" one')
    images["same.png"] = (pictures[1], "")
    return folder_of(images)


def test_copies_are_dropped_and_the_sources_stay(photos, tmp_path):
    before = tree(photos)
    outcome = curate_images(photos, workers=1)
    assert tree(photos) == before
    dropped = {d.file_name for d in outcome.curation.decisions if d.action == "drop"}
    assert dropped == {"sub/mirrored {x}.jpg", "same.png"}
    out = tmp_path / "photos-curation"
    assert {path.name for path in outcome.written} == {
        "curation.json", MANIFEST, "kohya.toml", "onetrainer.json", "simpletuner.json", "ai-toolkit.yaml",
        "report.html"}  # fmt: skip
    assert Curation.model_validate_json((out / "curation.json").read_bytes()) == outcome.curation
    assert "2 drop" in str(outcome)


def test_two_runs_agree_to_the_byte(photos, tmp_path):
    texts = []
    for name in ("one", "two"):
        curate_images(photos, out=tmp_path / name, workers=1)
        texts.append((tmp_path / name / "curation.json").read_bytes())
    assert texts[0] == texts[1]
    assert str(tmp_path).encode() not in texts[0]


def test_the_manifest_loads_in_datasets(photos, tmp_path):
    from datasets import load_dataset

    before = tree(photos)
    outcome = curate_images(photos, apply=True, workers=1)
    after = tree(photos)
    assert set(after) - set(before) == {MANIFEST}
    assert {name: after[name] for name in before} == before
    (photos / "sub/mirrored {x}.jpg").unlink()  # a copy that was left out; nothing may look for it
    loaded = load_dataset(
        "imagefolder",
        data_dir=str(photos),
        metadata_filenames=[MANIFEST],
        split="train",
        cache_dir=str(tmp_path / "hf"),
    )
    used_decisions = [d for d in outcome.curation.decisions if d.action != "drop"]
    assert len(loaded) == len(used_decisions) == 6
    assert sorted(loaded["text"]) == sorted(d.captions[0] for d in used_decisions)
    assert set(loaded["repeats"]) == {1}
    assert ["a picture, number 0", 'the "first" one'] in list(loaded["captions"])
    rows = map(json.loads, (photos / MANIFEST).read_text().splitlines())
    sources = [source["dropped"] for row in rows for source in row["captions_from"]]
    assert sources == ["sub/mirrored {x}.jpg"]
    assert loaded[0]["image"].size == (192, 192)


def test_a_leak_into_the_held_out_set_is_named(photos, pictures, folder_of, tmp_path):
    heldout = folder_of({"h.png": (pictures[3].resize((150, 150)), ""), "i.png": (pictures[9], "")}, tmp_path / "held")
    outcome = curate_images(photos, heldout=heldout, trainer=TrainerSettings(repeats=10), workers=1)
    curation, again = outcome.curation, f"--heldout {heldout} --trainer.repeats 10"
    assert outcome.command == f"basinguard curate {photos} {again} --apply"
    assert f"{again} --allow-list allow-list.json --apply" in (outcome.written[-1]).read_text()
    assert [(leak.file_name, leak.heldout) for leak in curation.leaks] == [("03.png", "h.png")]
    assert {d.file_name for d in curation.decisions}.isdisjoint({"h.png", "i.png"})


def test_a_refused_proposal_does_not_come_back(photos, tmp_path):
    first = curate_images(photos, workers=1).curation
    copy = next(d for d in first.decisions if d.file_name == "same.png")
    allow = {"schema_version": 1, "allowed": [{"sha256": copy.sha256, "action": "drop", "file_name": "same.png"}]}
    (tmp_path / "allow.json").write_text(json.dumps(allow))
    second = curate_images(photos, allow_list=tmp_path / "allow.json", workers=1).curation
    assert next(d for d in second.decisions if d.file_name == "same.png").action != "drop"


def allow_file(path, **lists):
    path.write_text(json.dumps({"schema_version": 1} | lists))
    return path


@pytest.mark.long  # one refusal is tested beside it
def test_refusals_of_several_runs_add_up(photos, tmp_path):
    """Each page downloads only what was refused on it; what was refused before is remembered beside it."""
    first = curate_images(photos, workers=1).curation
    refused = [d for d in first.decisions if d.action == "drop"]
    assert len(refused) == 2
    for number, decision in enumerate(refused):
        rows = [{"sha256": decision.sha256, "action": "drop"}]
        again = curate_images(photos, allow_list=allow_file(tmp_path / f"{number}.json", allowed=rows), workers=1)
        assert [d.file_name for d in again.curation.decisions if d.action == "drop"] == [
            d.file_name for d in refused[number + 1 :]
        ]
    by_name = {d.file_name: d for d in curate_images(photos, workers=1).curation.decisions}
    assert {by_name[d.file_name].action for d in refused} == {"keep"}
    assert {by_name[d.file_name].reason for d in refused} == {"you decided so: not drop"}
    page = (tmp_path / "photos-curation" / "report.html").read_text()
    assert "All of them stay, as you decided." in page


def test_the_copy_that_was_chosen_stays_and_the_newest_choice_counts(photos, tmp_path):
    first = curate_images(photos, workers=1).curation
    by_name = {d.file_name: d for d in first.decisions}
    best, copy = next(group.files for group in first.groups if "same.png" not in group.files)
    for wanted, other in ((copy, best), (best, copy)):
        rows = [{"sha256": by_name[wanted].sha256, "file_name": wanted}]
        chosen = allow_file(tmp_path / "a.json", preferred=rows)
        again = {d.file_name: d for d in curate_images(photos, allow_list=chosen, workers=1).curation.decisions}
        assert again[wanted].action != "drop"
        assert again[other].action == "drop"
        assert again[other].reason.startswith(f"shows the same picture as {wanted!r}")


def test_the_page_says_what_was_done_and_what_comes_next(photos, tmp_path):
    page = tmp_path / "photos-curation" / "report.html"
    curate_images(photos, workers=1)
    assert "This was a dry run" in page.read_text()
    curate_images(photos, apply=True, workers=1)
    text = page.read_text()
    assert "dry run" not in text
    assert f"{MANIFEST} was written into the folder" in text
    assert "--allow-list allow-list.json --apply" in text


def damaged(cache):
    cache.write_bytes(b"something else" * 100)


def locked(cache):
    other = sqlite3.connect(cache)
    other.execute("CREATE TABLE mine (a)")
    other.execute("BEGIN EXCLUSIVE")
    return other


@pytest.mark.long  # reliability/test_bad_input.py has a row for each
@pytest.mark.parametrize("spoil", [damaged, locked])
def test_a_cache_that_cannot_be_used_costs_a_line(photos, tmp_path, spoil, monkeypatch):
    monkeypatch.setattr(thumbnail_cache, "PATIENCE", 0.05)
    (tmp_path / "photos-curation").mkdir()
    other = spoil(tmp_path / "photos-curation" / "cache.sqlite")
    outcome = curate_images(photos, workers=1)
    assert sum(d.action == "drop" for d in outcome.curation.decisions) == 2
    (line,) = [p for p in outcome.curation.problems if p.code == "cache-not-used"]
    assert "so the next run reads every image again" in str(line)
    assert outcome.ok
    if other:
        other.close()


def test_a_folder_that_cannot_be_written_is_told_by_the_exit_status(photos, monkeypatch, capsys):
    def refuse(path, content):
        if path.parent == photos:
            raise PermissionError(13, "Permission denied")
        write_bytes(path, content)

    monkeypatch.setattr(output_files, "write_bytes", refuse)
    with pytest.raises(SystemExit) as status:
        main(["curate", str(photos), "--apply", "--workers", "1"])
    assert status.value.code == 1
    assert f"NOT written: {photos / MANIFEST}: Permission denied" in capsys.readouterr().out
    assert (photos.parent / "photos-curation" / "report.html").is_file()


def test_damaged_files_cost_one_line_each_and_no_more(photos):
    (photos / "cut.jpg").write_bytes((photos / "sub/mirrored {x}.jpg").read_bytes()[:900])
    (photos / "empty.png").write_bytes(b"")
    (photos / "zip.png").write_bytes(b"PK\x03\x04" + bytes(100))
    os.symlink("loop.png", photos / "loop.png")
    os.symlink(photos, photos / "again")
    before = tree(photos)
    outcome = curate_images(photos, workers=1)
    assert tree(photos) == before
    skipped = [p.file for p in outcome.curation.problems if p.skipped]
    assert skipped == ["again", "empty.png", "loop.png", "zip.png", "cut.jpg"]
    assert len(outcome.curation.decisions) == 8


@pytest.mark.parametrize("stage", ["scan", "analyse", "write"])
def test_ctrl_c_changes_nothing(photos, monkeypatch, stage):
    before = tree(photos)
    target = {"scan": (scan, "shrink"), "analyse": (analysis, "analyse"), "write": (files.os, "replace")}[stage]

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(*target, interrupt)
    with pytest.raises(KeyboardInterrupt):
        curate_images(photos, apply=True, workers=1)
    assert tree(photos) == before


def test_a_full_disk_costs_the_outputs_one_line_each(photos, monkeypatch):
    before = tree(photos)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    outcome = curate_images(photos, apply=True, workers=1)
    assert tree(photos) == before
    assert outcome.written == ()
    assert len(outcome.failed) == 8
    assert all("No space left on device" in str(problem) for problem in outcome.failed)
    assert "NOT written" in str(outcome)


def test_an_unwritable_place_is_one_clear_line(photos, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be made"):
        curate_images(photos, out=tmp_path / "file" / "out", workers=1)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_bytes(path, b"old")
    monkeypatch.setattr(files.os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_dataset_is_curated_like_a_folder(photos, tmp_path):
    from datasets import load_dataset

    rows = [{"file_name": f"{n:02d}.png", "text": f"picture {n}"} for n in range(6)] + [
        {"file_name": "same.png", "text": ""}
    ]
    (photos / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = load_dataset("imagefolder", data_dir=str(photos), split="train", cache_dir=str(tmp_path / "hf"))
    outcome = curate_images(dataset, out=tmp_path / "out", workers=1)
    assert sum(d.action == "drop" for d in outcome.curation.decisions) == 1
    assert {d.captions[0] for d in outcome.curation.decisions if d.captions} == {f"picture {n}" for n in range(6)}
    with pytest.raises(ValueError, match="out="):
        curate_images(dataset)
    with pytest.raises(ValueError, match="splits"):
        curate_images({"train": dataset}, out=tmp_path / "out2")
    with pytest.raises(ValueError, match="no image column"):
        curate_images(dataset.remove_columns("image"), out=tmp_path / "out2")


def test_nothing_to_curate_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        curate_images(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image that can be used"):
        curate_images(tmp_path / "empty")


def test_one_image_is_a_set_too(folder_of, pictures):
    outcome = curate_images(folder_of({"a.png": (pictures[0], "a")}))
    assert [d.action for d in outcome.curation.decisions] == ["keep"]


def test_names_cannot_write_on_the_terminal(folder_of, pictures):
    outcome = curate_images(folder_of({"\x1b[31mred.png": (pictures[0], ""), "b\n.png": (pictures[0], "")}))
    assert "\x1b" not in str(outcome)
    assert outcome.curation.groups


class BrightnessScore:
    """Agrees with the caption "bright" by brightness: a scorer whose answer is known."""

    name = "brightness"

    def score(self, images, captions):
        assert images.shape[1:] == (3, 336, 336)
        assert set(captions) == {"bright"}
        return images.mean((1, 2, 3))


def test_a_caption_that_disagrees_is_named(folder_of, pictures):
    images = {f"{n:02d}.png": (picture, "bright") for n, picture in enumerate(pictures[:22])}
    images["dark.png"] = (pictures[22].point(lambda v: v // 12), "bright")
    images["none.png"] = (pictures[23], "")
    decisions = curate_images(folder_of(images), scorer=BrightnessScore(), workers=1).curation.decisions
    disagreeing_files = [d.file_name for d in decisions for f in d.findings if f.code == "caption-disagrees"]
    assert "dark.png" in disagreeing_files
    assert len(disagreeing_files) < 4


def test_pictures_of_any_size_and_colour_go_through(folder_of):
    rng = np.random.default_rng(0)
    images = {
        f"{w}x{h}.png": (Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)), "") for w, h in
        [(1, 1), (1, 300), (300, 1), (7, 5), (64, 64), (1000, 40)]
    }  # fmt: skip
    images["flat.png"] = (Image.new("RGB", (50, 50), "red"), "")
    outcome = curate_images(folder_of(images))
    assert len(outcome.curation.decisions) == 7
    assert outcome.curation.groups == ()


def test_the_command_says_how_to_train_on_what_stays_and_what_training_will_refuse(capsys, tmp_path):
    write_messy_folder(tmp_path / "my photos", without_captions=(3,), scenes=5)
    main(["curate", str(tmp_path / "my photos"), "--workers", "1"])
    page = capsys.readouterr().out
    assert "without a caption, which training refuses, 1 that stay: IMG_1003.JPEG;" in page
    assert f"basinguard curate '{tmp_path}/my photos' --apply" in page
    assert page.rstrip().endswith("--data.init_args.manifest metadata.curated.jsonl")
