"""Data flows one way: a module imports only what stands above it, and frameworks stay in `adapters`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "plugin" / "basinguard"
ORDER = (
    ("records", "guidance", "solvers", "batching"),
    ("sampling", "stats", "schedules"),
    ("toy", "basin", "triage", "budget"),
    ("plan", "scope"),
    ("scales", "verdict", "choice", "twins"),
    ("forecast",),
    ("standing",),
    ("calibrate", "tinyworld", "plots", "words"),
    ("dashboard",),
    ("similarity",),
    ("curation",),
    ("eye",),
    ("look",),
    ("guard",),
    ("certify", "export"),
    ("strength",),
    ("tradeoff", "audit"),
    ("adapters",),
    ("rivals",),
    ("demo",),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
FRAMEWORKS = {"diffusers", "lightning", "pytorch_lightning", "accelerate", "transformers", "peft", "datasets"}
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py" and "assets" not in p.parts)


def imports(source: str, package: str) -> set[str]:
    """Absolute names of everything a module imports, at any depth."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module))
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            stem = ".".join([*base, node.module] if node.module else base)
            found |= {stem} if node.module else {f"{stem}.{alias.name}" for alias in node.names}
    return found


def package_of(path: Path) -> str:
    return ".".join(("basinguard", *path.relative_to(PACKAGE).parts[:-1]))


def noun(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_from_above(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert own in RANK, f"{own} has no place in the order; add it to ORDER"
    for name in imports(path.read_text(), package_of(path)):
        if name.startswith("basinguard.") and noun(name) != own and noun(name) in RANK:
            assert RANK[noun(name)] < RANK[own], f"{path.name} imports {name}, which does not stand above it"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_frameworks_only_in_adapters(path):
    if path.relative_to(PACKAGE).parts[0] in ("adapters", "demo.py", "rivals"):
        return
    used = {name.split(".")[0] for name in imports(path.read_text(), package_of(path))} & FRAMEWORKS
    assert not used, f"{path.name} imports {used}; only adapters may"


def test_the_guidance_file_needs_torch_alone():
    used = {name.split(".")[0] for name in imports((PACKAGE / "guidance.py").read_text(), "basinguard")}
    assert used <= {"torch", *sys.stdlib_module_names}


def test_importing_the_package_loads_no_framework():
    code = f"import sys, basinguard; print(sorted(set(sys.modules) & {FRAMEWORKS | {'torch'}!r}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_the_import_reader_sees_relative_imports():
    assert imports("from ..guard import Guard\nfrom . import stats", "basinguard.adapters") == {
        "basinguard.guard",
        "basinguard.adapters.stats",
    }
