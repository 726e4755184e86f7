"""What the command line needs before it starts to work loads neither torch nor scipy."""

import json
import subprocess
import sys

import pytest

LIGHT = [
    "core.record",
    "core.files",
    "core.images",
    "core.html",
    "core.text",
    "core.safetensors_header",
    "curation.curate",
]
IMPORT_ALL = """
import json, sys
from importlib import import_module
heavy = {}
for module in sys.argv[1:]:
    import_module(f"basinguard.{module}")
    heavy[module] = sorted({"torch", "scipy"} & set(sys.modules))
print(json.dumps(heavy))
"""


@pytest.fixture(scope="module")
def heavy():
    """What is loaded after each of them, in one process: what loads nothing does not spoil the next answer."""
    command = [sys.executable, "-c", IMPORT_ALL, *LIGHT]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("module", LIGHT)
def test_neither_torch_nor_scipy(module, heavy):
    assert heavy[module] == []
