"""CONTRIBUTING.md is the map: it lists every folder of the package, and every path that it names exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "plugin" / "basinguard"
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PATHS = sorted({name for name in re.findall(r"`([\w./-]+)`", TEXT) if "/" in name or name.endswith((".py", ".md"))})


def test_the_map_lists_every_folder_once():
    listed = re.findall(r"^\| `(\w+)/` \|", TEXT, re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file())


@pytest.mark.parametrize("name", PATHS)
def test_a_path_that_is_named_exists(name):
    assert any((base / name).exists() for base in (ROOT, PACKAGE)), f"CONTRIBUTING.md names {name}"


def test_every_command_is_a_target():
    targets = re.findall(r"^([a-z -]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    listed = re.findall(r"^    make ([a-z-]+)", TEXT, re.MULTILINE)
    assert listed
    assert set(listed) <= {name for line in targets for name in line.split()}
