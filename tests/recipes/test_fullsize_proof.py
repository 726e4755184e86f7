"""The whole path on random weights, at full size and small: trained, guarded, shipped, reloaded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"
MOST_GB = 14  # a machine of 16 GB should do


@pytest.mark.long
@pytest.mark.parametrize(("size", "parameters"), [("small", None), ("sd21", [865_910_724, 340_387_840, 83_653_863])])
def test_a_model_of_random_numbers_goes_all_the_way(tmp_path, size, parameters):
    subprocess.run(
        [sys.executable, RECIPES / "studies" / "fullsize_proof.py", "--size", size, "--out", tmp_path],
        check=True,
        timeout=7200,
    )
    stages = json.loads((tmp_path / "fullsize_proof.json").read_text())["stages"]
    assert parameters in (None, stages["build and save"]["parameters"])
    assert all(stage["peak_gb"] < MOST_GB for stage in stages.values())
    assert stages["two LoRA updates"]["largest_change"] > 0
    assert stages["one full fine-tuning update"]["trained"] == stages["build and save"]["parameters"][0]
    estimated_stages = [stage for stage in stages.values() if "estimate_gb" in stage]
    assert len(estimated_stages) == 4
    assert all(0.7 < stage["peak_gb"] / stage["estimate_gb"] < 1.5 for stage in estimated_stages)
    sampled = stages["guarded sampling, 5 steps"]
    assert sampled["scales"] == sorted(sampled["scales"])
    assert {sampled["scales"][0], sampled["scales"][-1]} == {0.0, 7.5}
    assert sampled["unet_evals"] == 5 + sampled["scales"].count(7.5)
    assert (tmp_path / "sample.png").is_file()


@pytest.mark.long
def test_what_ships_of_an_xl_goes_all_the_way(tmp_path):
    command = [sys.executable, RECIPES / "studies" / "fullsize_xl.py", "--size", "small", "--out", tmp_path]
    subprocess.run(command, check=True, timeout=1800)
    stages = json.loads((tmp_path / "fullsize_xl.json").read_text())["stages"]
    assert stages["LoRA file of kohya's names"]["check"]
    sampled = stages["guarded sampling, 3 steps"]
    assert (sampled["scales"][0], sampled["scales"][-1]) == (0.0, 5.0)
    assert sampled["unet_evals"] == 3 + sampled["scales"].count(5.0)
    assert sampled["image"] == [256, 256]
    assert stages["one LoRA update"]["trained"] > 0


@pytest.mark.long
def test_the_gpu_bench_runs_on_a_cpu(tmp_path):
    out = tmp_path / "bench.json"
    command = [sys.executable, RECIPES / "benchmarks" / "gpu.py", "--model", "tinyworld", "--smoke", "--out", out]
    subprocess.run(command, check=True, timeout=1800)
    rows = json.loads(out.read_text())["rows"]
    assert {row["what"] for row in rows} == {"LoRA update", "probe", "sampling"}
    assert not [row for row in rows if "failed" in row]
    assert all(row["updates_per_second"] > 0 for row in rows if row["what"] == "LoRA update")
    assert all(0.3 < row["evals_ratio"] < 1 for row in rows if row["what"] == "sampling")
