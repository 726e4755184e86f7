"""What this version exports is what this environment's diffusers reads; other versions and clients: see the script."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "recipes" / "studies" / "loader_matrix.py"


@pytest.mark.long
def test_every_kind_of_export_is_read_to_the_weights_that_were_exported(tmp_path):
    """float32; a layer that is not applied, or at another strength, is 0.2 and more away."""
    command = [sys.executable, str(SCRIPT), "here", "--out", str(tmp_path)]
    ran = subprocess.run(command, text=True, capture_output=True, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    rows = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    assert [row for row in rows if "error" in row] == []
    assert len({row["export"] for row in rows}) == 8
    assert {row["export"]: row["difference"] for row in rows if row["difference"] > 1e-4} == {}
