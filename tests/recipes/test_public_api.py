"""What users copy imports nothing deeper than the public API: `from basinguard import ...`."""

import re
from pathlib import Path

import pytest

import basinguard

ROOT = Path(__file__).parents[2]
COPIED = [ROOT / "README.md", *sorted((ROOT / "recipes").glob("*.py"))]


@pytest.mark.parametrize("path", COPIED, ids=lambda path: path.name)
def test_imports_only_public_names(path):
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"^\s*(?:from|import) basinguard\.\S+", text, re.MULTILINE) == []
    for names in re.findall(r"^\s*from basinguard import (.+)$", text, re.MULTILINE):
        assert {name.split(" as ")[0].strip() for name in names.split(",")} <= set(basinguard.__all__)
