"""The wheel works without the source tree: built, installed into an environment of its own, and used from elsewhere."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USE = """
import basinguard
from pathlib import Path
from basinguard import FineTune
from basinguard.pipelines.loading import load_pipeline
from basinguard.tinyworld import MODELS
assert all([load_pipeline(name) for name in MODELS])
assert Path(basinguard.__file__).is_relative_to(Path(__import__("sys").prefix)), basinguard.__file__
pipe = FineTune("tinyworld").pipe
image = pipe("a red ball on a green floor", num_inference_steps=2, output_type="pil").images[0]
print(image.size)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The Python of an environment that holds the wheel; what it depends on is borrowed from this one's packages."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(build, check=True, capture_output=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel]
    subprocess.run(install, check=True, capture_output=True)
    (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "borrowed.pth").write_text("\n".join(borrowed))  # .pth files in those are not read: no source tree
    return python


def run(python, *words, cwd):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([python, *words], cwd=cwd, env=environment, check=True, capture_output=True, text=True).stdout


@pytest.mark.long
def test_a_small_world_is_sampled_from_the_wheel(installed, tmp_path):
    assert run(installed, "-c", USE, cwd=tmp_path).splitlines()[-1] == "(64, 64)"


@pytest.mark.long
def test_its_command_knows_verbs_and_configurations(installed, tmp_path):
    command = installed.parent / "basinguard"
    assert run(command, "--version", cwd=tmp_path).startswith("basinguard 0.")
    run(installed, "-c", "from basinguard.tinyworld.demo_folder import write_demo_folder\n"
        "from pathlib import Path; write_demo_folder(Path('data'))", cwd=tmp_path)  # fmt: skip
    page = run(command, "fit", "--config", "tinyworld_lora", "--data.init_args.directory", "data/train", "--dry-run",
               cwd=tmp_path)  # fmt: skip
    assert "nothing was trained" in page


@pytest.mark.long
def test_the_comfyui_node_comes_with_it(installed, tmp_path):
    code = "import importlib.util as u; print(u.find_spec('comfyui_basinguard').origin)"
    assert run(installed, "-c", code, cwd=tmp_path).strip().startswith(str(installed.parents[1]))
