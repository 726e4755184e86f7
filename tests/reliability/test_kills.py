"""SIGKILL at any moment loses nothing; `support/kill_runs.py` says how it is tried."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from basinguard.core import files


@pytest.mark.long
def test_fifty_kills_lose_nothing(tmp_path):
    out = tmp_path / "kills.json"
    script = Path(__file__).parents[1] / "support" / "kill_runs.py"
    environment = {**os.environ, "PYTHONPATH": str(script.parents[1])}
    subprocess.run([sys.executable, str(script), "--kills", "50", "--out", str(out)], check=True, env=environment)
    result = json.loads(out.read_text())
    assert result["kills"] >= 50
    assert result["lost"] == []
    assert min(result["killed_in"].values()) > 0, "every phase must have been hit"


def test_a_kill_between_the_two_renames_of_an_export_is_healed_by_the_next(tmp_path, monkeypatch):
    """The one moment at which neither export bears its name."""
    out = tmp_path / "shipped"
    for text in ("old", "new"):
        with files.whole_directory(out, overwrite=True) as folder:
            (folder / "a").write_text(text)
            (folder / files.SUMS).write_text(f"{'0' * 64}  a\n")
        if text == "old":
            child = os.fork()
            if child == 0:  # dies like a process that is killed after the first rename
                monkeypatch.setattr(Path, "rename", lambda self, to: (os.rename(self, to), os._exit(9)))
                with files.whole_directory(out, overwrite=True) as folder:
                    (folder / "a").write_text("killed")
            os.waitpid(child, 0)
            assert not out.exists()
            with pytest.raises(FileExistsError), files.whole_directory(out):
                pass
            assert (out / "a").read_text() == "old", "the export that was there is back"
    assert (out / "a").read_text() == "new"
