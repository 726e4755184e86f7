"""Two processes share the work of a probe, get what one gets, and never wait for one that failed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from basinguard.training.accelerate import LoopGuard
from basinguard.training.distributed import Sharded, Team
from basinguard.training.requirements import require_whole_weights
from support.guarded_runs import fit, make_guard, picture_folder, untimed

FAILED = "process 1 of 2: RuntimeError: only in process 1"
WAIT = 400  # seconds after which a deadlock is one


def two_processes(base, root, *what):
    """What both processes of `ddp_runs.py` saw, by rank."""
    pictures = picture_folder(root / "pictures")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = Path(__file__).parents[1] / "support" / "ddp_runs.py"
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, *command, str(script), str(base), str(pictures), str(root), *what],
        env=environment, capture_output=True, text=True, timeout=WAIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((root / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def both(tiny_pipeline_dir, tmp_path_factory):
    return two_processes(tiny_pipeline_dir, tmp_path_factory.mktemp("both"))


@pytest.mark.long
def test_two_processes_report_what_one_does_to_the_bit(both):
    assert both[0]["alone"] == both[0]["together"] == both[1]["together"] == both[0]["afterwards"]
    assert json.loads(both[0]["alone"])["problem"] == ""


@pytest.mark.long
def test_both_do_their_share(both):
    rows = [result["rows"] for result in both]
    assert min(rows) > 0.3 * sum(rows), f"the network saw {rows} rows"
    assert both[0]["few rows"] == both[1]["few rows"] == [[n, 3, 32, 32] for n in (1, 32, 33)]


@pytest.mark.long
@pytest.mark.parametrize(
    ("case", "problem"),
    [
        ("out of memory once in 1", ""),  # all of them go on with fewer rows
        ("network fails in 1", "TeamFailure: process 1 of 2: RuntimeError: in the network"),
        ("something else fails in 0", "TeamFailure: process 0 of 2: ValueError: only here"),
        ("both fail", "TeamFailure: process 0 of 2: ValueError: only here; process 1 of 2: ValueError: only here"),
    ],
)
def test_a_failure_anywhere_is_the_same_gap_everywhere(both, case, problem):
    assert both[0][case] == both[1][case] == problem
    assert both[0]["history"] == both[1]["history"]


@pytest.mark.long
def test_processes_that_measure_different_things_stop(both):
    assert both[0]["other rows"] == both[1]["other rows"] == "the processes measured different things"


@pytest.mark.long
def test_processes_with_different_clocks_buy_the_same(both):
    assert both[0]["on a budget"] == both[1]["on a budget"]
    reports = [json.loads(text) for text in both[0]["on a budget"]]
    assert [report["problem"] for report in reports] == [""] * len(reports)
    assert reports[-1]["epoch"] == 2
    assert reports[-1]["precision"]


@pytest.mark.long
def test_lightning_with_ddp(tiny_pipeline_dir, tmp_path):
    first, second = two_processes(tiny_pipeline_dir, tmp_path, "fit")
    assert first["history"] == second["history"]
    assert first["weights"] == second["weights"]
    assert first["logged"] == second["logged"] != {}
    rows = [json.loads(text) for text in first["history"]]
    assert [row["epoch"] for row in rows] == [-1, 0, 1, 2]
    assert [row["problem"] for row in rows] == [
        "",
        "",
        "TeamFailure: process 1 of 2: RuntimeError: only in process 1",
        "",
    ]
    assert (len(first["said"]), len(second["said"])) == (1, 0), "the main process alone reports"
    guard = make_guard(plan={"captions": 4, "seeds": 3})
    fit(tiny_pipeline_dir, tmp_path / "pictures", tmp_path, guard, epochs=1)
    assert untimed(guard.history)[0].to_json() == first["history"][0], "the base row does not depend on devices"


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy", "SomethingNew"])
def test_split_weights_are_refused_with_a_sentence(name):
    with pytest.raises(ValueError, match=f'cannot probe under {name}.*use strategy="ddp"'):
        require_whole_weights(type(name, (), {})())


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_accelerate_with_split_weights_is_refused_with_a_sentence(kind):
    with pytest.raises(ValueError, match=f"cannot probe under {kind}.*plain data parallelism"):
        LoopGuard(None, SimpleNamespace(distributed_type=kind))


@pytest.mark.parametrize(("latent_shape", "rows"), [((4, 16, 16), 32), ((4, 64, 64), 8)])
def test_one_process_goes_through_the_same_groups(latent_shape, rows):
    sizes = []
    model = SimpleNamespace(schedule=None, latent_shape=latent_shape, decode=lambda x: sizes.append(len(x)) or x)
    given = torch.arange(2 * rows + 3.0)[:, None]
    assert torch.equal(Sharded(model, Team()).decode(given), given)
    assert sizes == [rows, rows, 3]
