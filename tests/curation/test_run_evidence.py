"""What a run left behind is written here by hand, so that how often each image came back is known."""

import hashlib
import json

import pytest

from basinguard.core.files import joined_sha256
from basinguard.core.report_parts import Exit
from basinguard.core.stats import clopper_pearson
from basinguard.curation.curate import curate_images
from basinguard.curation.folder import read_folder
from basinguard.curation.manifest import MANIFEST
from basinguard.curation.run_evidence import read_run
from support.curation_records import record_with, report_with


def exits(copied: dict[int, tuple[int, int]]) -> list[Exit]:
    """{caption: (copies, samples)} as exits of a probe."""
    return [
        Exit(caption=caption, seed=seed, timestep=500.0 if seed < copies else None, sigma=1.0, lower=None)
        for caption, (copies, samples) in copied.items()
        for seed in range(samples)
    ]


@pytest.fixture
def photos(folder_of, pictures):
    images = {f"{n:02d}.png": (picture, f"a picture, number {n}") for n, picture in enumerate(pictures[:6])}
    images["same.png"] = (pictures[0], "a picture, number 0")
    images["untold.png"] = (pictures[7], "")
    return folder_of(images)


NAMES = ("00.png", "01.png", "02.png", "03.png", "04.png", "05.png", "same.png", "untold.png")
CAPTIONED = NAMES[:-1]


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hashes(photos, names=CAPTIONED):
    return tuple(sha256(photos / name) for name in names)


def evidence_of(run, photos):
    items = read_folder(photos, decode=False).items
    here = [sha256(item.path) for item in items]
    orders = [hashes(photos, [item.file_name for item in items if item.caption]), here]
    return read_run(run, items, here, orders)


def write_record(place, photos, history):
    record = record_with(history).model_copy(update={"files_sha256": joined_sha256(hashes(photos))})
    place.write_text(record.to_json())


def write_guard(run, history, image_sha256):
    rows = [json.loads(report.to_json()) for report in history]
    run.mkdir(exist_ok=True)
    (run / "guard.json").write_text(json.dumps({"history": rows, "image_sha256": list(image_sha256)}))
    return run


@pytest.fixture
def run(tmp_path, photos):
    """A probe of captions 0, 2 and 4: the first always came back, the second never, the third once in two.

    The first was seen otherwise by an earlier probe, and every one by that of the base model.
    """
    late_exits = exits({0: (16, 16), 1: (0, 200), 2: (1, 2)})
    early = report_with(epoch=3, exits=exits({0: (0, 16)}), probed=(0,))
    base = report_with(epoch=-1, exits=exits({0: (0, 16), 1: (0, 16)}), probed=(1, 3))
    late = report_with(epoch=9, exits=late_exits, probed=(0, 2, 4))
    (tmp_path / "run" / "export").mkdir(parents=True)
    write_record(tmp_path / "run" / "export" / "basinguard.json", photos, (base, early, late))
    return tmp_path / "run"


def test_the_last_probe_counts(photos, run):
    for place in (run, run / "export"):
        evidence = evidence_of(place, photos)
        assert evidence.risks == {
            "00.png": clopper_pearson(16, 16),
            "same.png": clopper_pearson(16, 16),
            "02.png": clopper_pearson(0, 200),
            "04.png": clopper_pearson(1, 2),
        }
        assert "epoch 10" in evidence.source


def test_captions_that_a_budget_took_in_turns_count_from_their_newest_probe(photos, run):
    turns = [report_with(epoch=k, exits=exits({0: (k, 4), 1: (0, 4)}), probed=(k, 3)) for k in range(3)]
    gap_only = report_with(epoch=3, exits=[], probed=())
    write_record(run / "export" / "basinguard.json", photos, (*turns, gap_only))
    evidence = evidence_of(run, photos)
    assert {name: (risk.value, risk.n) for name, risk in evidence.risks.items()} == {
        "00.png": (0, 4),
        "same.png": (0, 4),
        "01.png": (0.25, 4),
        "02.png": (0.5, 4),
        "03.png": (0, 4),
    }
    assert "probes of epochs 1 to 3, the newest of each caption: 4 captions sampled" in evidence.source


def test_images_are_found_by_what_they_are_whatever_they_are_called(photos, tmp_path):
    """Trained on four of them in an order of the run's own; since then one was renamed to the front, one deleted."""
    trained = hashes(photos, ("04.png", "01.png", "03.png", "05.png"))
    probed_exits = exits({0: (8, 8), 1: (0, 8), 2: (4, 8)})
    run = write_guard(tmp_path / "log", [report_with(epoch=2, exits=probed_exits, probed=(0, 2, 3))], trained)
    (photos / "04.png").rename(photos / "000.png")
    (photos / "05.png").unlink()
    evidence = evidence_of(run, photos)
    assert evidence.risks == {"000.png": clopper_pearson(8, 8), "03.png": clopper_pearson(0, 8)}
    assert evidence.source.endswith("3 captions sampled, images of 1 not here")


def test_an_export_speaks_only_of_the_very_set_that_it_was_trained_on(photos, run):
    (photos / "00.png").rename(photos / "zz.png")
    (photos / "00.txt").rename(photos / "zz.txt")
    with pytest.raises(ValueError, match=r"its numbers belong to none of them; give the run's own folder"):
        evidence_of(run, photos)


def test_a_run_without_hashes_blames_nobody(photos, tmp_path):
    report = report_with(epoch=2, exits=exits({0: (8, 8)}), probed=(0,))
    with pytest.raises(ValueError, match="does not say which images its numbers are about"):
        evidence_of(write_guard(tmp_path / "log", [report], ()), photos)
    with pytest.raises(ValueError, match="none of its 1 images is here"):
        evidence_of(write_guard(tmp_path / "log", [report], ("0" * 64,)), photos)


def test_a_run_on_a_manifest_is_followed_through_it(photos, tmp_path):
    """Position 1 of the manifest is not position 1 of the folder."""
    curate_images(photos, apply=True, workers=1)
    names = [json.loads(line)["file_name"] for line in (photos / MANIFEST).read_text().splitlines()]
    order = hashes(photos, names)
    assert names[0] == "00.png"
    assert "same.png" not in names
    probed_exits = exits({0: (16, 16)})
    record = record_with((report_with(epoch=1, exits=probed_exits, probed=(len(names) - 1,)),))
    (tmp_path / "basinguard.json").write_text(
        record.model_copy(update={"files_sha256": joined_sha256(order)}).to_json()
    )
    curation = curate_images(photos, from_run=tmp_path, workers=1).curation
    assert [r.file_name for r in curation.remedies] == [names[-1]]


def audit(directory, photos, **changed):
    rows = [
        {"index": 4, "file_name": "04.png", "own": clopper_pearson(3, 4).model_dump()},
        {"index": 1, "file_name": "01.png", "own": None},
    ]
    directory.mkdir()
    whole = {"images_total": 7, "samples": 28, "images": rows, "image_sha256": hashes(photos)}
    (directory / "audit.json").write_text(json.dumps(whole | changed))
    return directory


def test_an_audit_speaks_of_every_image(photos, tmp_path):
    risks = evidence_of(audit(tmp_path / "audit", photos), photos).risks
    assert risks["04.png"] == clopper_pearson(3, 4)
    assert {name for name, risk in risks.items() if risk.value == 0} == {f"0{n}.png" for n in (0, 1, 2, 3, 5)} | {
        "same.png"
    }


@pytest.mark.parametrize("changed", [
    {"images_total": 8}, {"samples": 3}, {"images": [{"index": 7, "file_name": "x.png", "own": None}]},
    {"images": [{}]}, {"images": 3}, {"samples": "many"}, {"image_sha256": []}, {"image_sha256": 3},
    {"image_sha256": ["0" * 64] * 7},
])  # fmt: skip
def test_an_audit_of_something_else_is_refused(photos, tmp_path, changed):
    with pytest.raises(ValueError, match=r"audit\.json"):
        evidence_of(audit(tmp_path / "audit", photos, **changed), photos)


def test_a_run_without_evidence_is_one_clear_line(photos, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds none of"):
        evidence_of(tmp_path, photos)
    write_record(tmp_path / "basinguard.json", photos, ())
    with pytest.raises(ValueError, match="no probe with samples"):
        evidence_of(tmp_path, photos)
    elsewhere = report_with(epoch=0, exits=exits({0: (1, 2)}), probed=(40,))
    write_record(tmp_path / "basinguard.json", photos, (elsewhere,))
    with pytest.raises(ValueError, match="trained on"):
        evidence_of(tmp_path, photos)


@pytest.mark.parametrize("text", ["{", "[]", '{"history": 3}', '{"history": [{"epoch": "x"}]}'])
def test_a_damaged_guard_file_is_one_clear_line(photos, tmp_path, text):
    (tmp_path / "guard.json").write_text(text)
    with pytest.raises(ValueError, match=r"not a guard\.json") as caught:
        evidence_of(tmp_path, photos)
    assert "\n" not in str(caught.value)


def test_the_evidence_becomes_actions(photos, run):
    """Always copied: left out, copies and all; once in two says too little; never copied stays as it is."""
    outcome = curate_images(photos, from_run=run, workers=1)
    by_name = {d.file_name: d for d in outcome.curation.decisions}
    assert by_name["00.png"].action == "drop"
    assert by_name["same.png"].action == "drop"
    assert by_name["02.png"].action == "keep"
    assert [r.file_name for r in outcome.curation.remedies][:2] == ["00.png", "same.png"]
    assert {r.file_name: r.verdict for r in outcome.curation.remedies}["04.png"] == "undecided"
    assert "memorized" in {f.code for f in by_name["00.png"].findings}
    assert "the run memorized 2 of 4 images" in str(outcome)
    page = (photos.parent / "photos-curation" / "report.html").read_text()
    assert "Memorized by the run" in page
    assert "None is proposed to stay; if one should, 00.png has " in page


def test_a_picture_whose_copies_go_is_shown_less_by_that(photos, tmp_path):
    report = report_with(epoch=1, exits=exits({0: (8, 20)}), probed=(0,))
    write_record(tmp_path / "basinguard.json", photos, (report,))
    curation = curate_images(photos, from_run=tmp_path, workers=1).curation
    by_name = {d.file_name: d for d in curation.decisions}
    assert (by_name["00.png"].repeats, by_name["same.png"].repeats) == (1, 0)
    assert {r.action for r in curation.remedies} == {"fewer-repeats"}


def test_a_refused_remedy_does_not_come_back(photos, run, tmp_path):
    first = curate_images(photos, from_run=run, workers=1).curation
    refused = [{"sha256": d.sha256, "action": "drop"} for d in first.decisions if d.file_name == "00.png"]
    (tmp_path / "allow.json").write_text(json.dumps({"schema_version": 1, "allowed": refused}))
    again = curate_images(photos, from_run=run, allow_list=tmp_path / "allow.json", workers=1).curation
    assert next(d for d in again.decisions if d.file_name == "00.png").action != "drop"
