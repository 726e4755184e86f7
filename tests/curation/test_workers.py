"""Processes that end while they read, and scripts that forgot what spawned processes ask for."""

import subprocess
import sys

from basinguard.core.images import BadImage
from basinguard.curation.workers import worker_pool
from support.ending_reads import read_or_end


def test_a_path_that_ends_its_process_costs_that_path_alone():
    paths = ["a", "ends 1", "b", "c", "ends 2", "d"]
    with worker_pool(2) as mapped:
        results = list(mapped(read_or_end, paths))
    assert [result for result in results if isinstance(result, str)] == ["A", "B", "C", "D"]
    assert [isinstance(result, BadImage) for result in results] == [path.startswith("ends") for path in paths]


def test_a_script_without_a_main_guard_runs_once(pictures, tmp_path):
    (tmp_path / "set").mkdir()
    for number in range(3):
        pictures[number].save(tmp_path / "set" / f"{number}.png")
    script = tmp_path / "script.py"
    script.write_text(
        "from basinguard.curation.folder import read_folder\n"
        "from basinguard.curation.scan import scan_images\n"
        "from pathlib import Path\n"
        f"print(len(scan_images(read_folder(Path({str(tmp_path / 'set')!r})).items, workers=2).items), __file__)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == (f"3 {script}", 0), done.stderr
