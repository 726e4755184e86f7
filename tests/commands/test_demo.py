"""The demo: its folder, its table, and (long) the story itself."""

import json
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from basinguard.cli import main
from basinguard.tinyworld.demo_folder import DUPLICATES, HELDOUT, UNIQUE, write_demo_folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_demo_folder(tmp_path_factory.mktemp("demo"))


def test_folder_has_planted_duplicates_and_twins_kept_aside(folders):
    train, heldout = folders
    rows = [json.loads(line) for line in (train / "metadata.jsonl").read_text().splitlines()]
    twins = [json.loads(line) for line in (heldout / "metadata.jsonl").read_text().splitlines()]
    assert (len(rows), len(twins)) == (UNIQUE + DUPLICATES, HELDOUT)
    pixels = {row["file_name"]: Image.open(train / row["file_name"]).tobytes() for row in rows}
    assert len(set(pixels.values())) == UNIQUE
    assert not {row["text"] for row in rows} & {row["text"] for row in twins}


def test_folder_keeps_what_is_there(folders, tmp_path):
    train = shutil.copytree(folders[0].parent, tmp_path / "again") / folders[0].name
    (train / "metadata.jsonl").write_text("mine")
    write_demo_folder(tmp_path / "again")
    assert (train / "metadata.jsonl").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "no such export", "."], "no such export"),
        (["inspect", "no such file"], "no such file"),
        (
            ["demo", "--base", "no such world"],
            "no packaged model 'no such world'; there are tinyworld, tinyworld-xl, tinyworld-flow",
        ),
        (["fit", "--config", "no such config.yaml"], "no such config.yaml"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.long
@pytest.mark.parametrize("base", ["tinyworld", "tinyworld-xl"])
def test_the_story(tmp_path, base):
    """What the README promises of `basinguard demo`, on fresh seeds, through the exported files."""
    subprocess.run([sys.executable, "-m", "basinguard", "demo", "--base", base, "--out", str(tmp_path)], check=True)
    summary = json.loads((tmp_path / "summary.json").read_text())
    product, plain = summary["guarded"], summary["plain_risk"]
    assert summary["promise"].startswith("the risk is at most 10%")
    assert plain["value"] >= 0.5, "without a guard the last epoch would ship, and it copies"
    assert product["risk"]["value"] <= 0.10
    assert product["risk"]["high"] < 0.2
    assert summary["base"]["risk"]["value"] <= 0.05
    assert summary["taught"]["low"] > 0
    assert summary["taught"]["value"] >= summary["plain_taught"]["value"] - 0.1
    base, *epochs = summary["history"]
    assert base["taught"]["value"] == pytest.approx(0, abs=0.05)
    assert max(e["taught"]["value"] for e in epochs) > 0.3
    assert Image.open(tmp_path / "contact_sheet.png").width > 500
