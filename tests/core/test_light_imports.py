"""What the command line needs before it starts to work loads neither torch nor scipy."""

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


@pytest.mark.parametrize("module", LIGHT)
def test_neither_torch_nor_scipy(module):
    code = f"import sys, basinguard.{module}; print(sorted({{'torch', 'scipy'}} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
