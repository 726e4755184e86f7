"""What this version exports is what diffusers reads, here and in an older one; more clients: see the script."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "recipes" / "studies" / "loader_matrix.py"
ENVIRONMENTS = os.environ.get("BASINGUARD_ENVIRONMENTS")  # folder that environments are, or will be, installed in
OLD = "diffusers==0.32.2 transformers==4.54.1 huggingface_hub==0.34.3 tokenizers==0.21.4 peft==0.17.1"
AT_ANOTHER_STRENGTH = "TinyWorld, LoRA, diffusers"  # in 0.31 and 0.32, which do not read alphas from the header


def far_off(versions: str, out: Path, *more: str) -> set[str]:
    """Exports that are not read to the weights that were exported: a layer that is not applied is 0.2 and more away."""
    command = [sys.executable, str(SCRIPT), versions, "--out", str(out), *more]
    ran = subprocess.run(command, text=True, capture_output=True, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    rows = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    assert [row for row in rows if "error" in row] == []
    assert len({row["export"] for row in rows}) == 8
    return {row["export"] for row in rows if row["difference"] > 1e-4}


@pytest.mark.long
def test_every_kind_of_export_is_read_to_the_weights_that_were_exported(tmp_path):
    assert far_off("here", tmp_path) == set()


@pytest.mark.long
@pytest.mark.clients
@pytest.mark.skipif(ENVIRONMENTS is None, reason="BASINGUARD_ENVIRONMENTS names no folder to install older versions in")
def test_an_older_diffusers_in_an_environment_of_its_own_reads_them_as_well(tmp_path):
    assert far_off(OLD, tmp_path, "--environments", str(ENVIRONMENTS)) == {AT_ANOTHER_STRENGTH}
