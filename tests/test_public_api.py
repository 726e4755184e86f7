"""`from basinguard import ...`: every public name, typed, lazy, and enough for whatever users copy."""

import ast
import importlib
import json
import re
import subprocess
import sys
from dataclasses import is_dataclass
from inspect import signature
from pathlib import Path

import pytest

import basinguard

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "plugin" / "basinguard"
CARDS = sorted(path for path in (PACKAGE / "exports" / "assets").iterdir() if path.suffix in {".md", ".jinja"})
COPIED = [ROOT / "README.md", *sorted((ROOT / "recipes").glob("*.py")), *CARDS]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DESIGN = {
    "protect", "unprotect", "load", "Constant", "SwitchAt", "SwitchAfter", "LocalMinimum", "Drop", "MemorizationGuard",
    "LoopGuard", "FineTune", "ImageFolder", "Interventions", "Guard", "ProbePlan", "TrainingSet", "CalibrationTerms",
    "CopyDetector", "Report", "Record", "Estimate", "ControlGroup", "CopyDetectorSettings", "BreachResponse", "curate",
    "calibrate", "audit", "verify", "export", "compare",
}  # fmt: skip
VERBS = ("curate", "calibrate", "audit", "verify", "export", "compare")


def in_a_fresh_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_names_of_the_design_are_public():
    assert set(basinguard.__all__) >= DESIGN
    assert dir(basinguard) == sorted(basinguard.__all__)


@pytest.mark.parametrize("name", basinguard.__all__)
def test_a_public_name_is_there(name):
    assert getattr(basinguard, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'calibrat'"):
        _ = basinguard.calibrat


def test_type_checkers_see_the_very_same_names():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    at_run_time = {name: f"{module}.{name}" for name, module in basinguard._MODULE_OF.items()}
    assert imported == at_run_time
    assert (PACKAGE / "py.typed").is_file()


def test_no_module_hides_a_public_function():
    imports = "; ".join(f"import basinguard.commands.{verb}" for verb in VERBS)
    folders = "; ".join(f"import basinguard.{path.parent.name}" for path in sorted(PACKAGE.glob("*/__init__.py")))
    code = f"import json, basinguard; {folders}; {imports}; " + (
        f"print(json.dumps([type(getattr(basinguard, name)).__name__ for name in {VERBS}]))"
    )
    assert json.loads(in_a_fresh_process(code)) == ["function"] * len(VERBS)
    assert not {path.stem for path in PACKAGE.iterdir()} & set(basinguard.__all__)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_the_function_of_the_command_line(verb):
    assert getattr(basinguard, verb) is getattr(importlib.import_module(f"basinguard.commands.{verb}"), verb)


def test_whatever_a_public_callable_takes_as_one_object_of_options_is_public():
    callables = [value for name in basinguard.__all__ if callable(value := getattr(basinguard, name))]
    defaults = [parameter.default for call in callables for parameter in signature(call).parameters.values()]
    kinds = {type(default) for default in defaults if is_dataclass(default)}
    assert kinds >= {basinguard.CalibrationTerms, basinguard.WorkflowOptions}
    assert [kind for kind in kinds if getattr(basinguard, kind.__name__, None) is not kind] == []


def test_importing_a_verb_or_its_options_loads_no_framework():
    options = "CalibrationTerms, ComparisonOptions, ProbePlan, StoredOptions, TrainerSettings, WorkflowOptions"
    code = (
        f"import sys; from basinguard import {options}, {', '.join(VERBS)}; "
        "print(sorted({'torch', 'diffusers', 'lightning', 'transformers', 'scipy'} & set(sys.modules)))"
    )
    assert in_a_fresh_process(code).strip() == "[]"


def sources(path: Path) -> str:
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    return "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"])


@pytest.mark.parametrize("path", [*COPIED, *NOTEBOOKS], ids=lambda path: path.name)
def test_what_users_copy_imports_only_public_names(path):
    text = sources(path)
    assert re.findall(r"^\s*(?:from|import) basinguard\.\S+", text, re.MULTILINE) == []
    for names in re.findall(r"^\s*from basinguard import (.+)$", text, re.MULTILINE):
        assert {name.split(" as ")[0].strip() for name in names.split(",")} <= set(basinguard.__all__)


def test_only_commands_print():
    printing = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        if not any(keyword.arg == "file" and ast.unparse(keyword.value) == "sys.stderr" for keyword in node.keywords)
    }
    assert {name for name in printing if not name.startswith("commands/")} <= {"cli.py", "training/fit_cli.py"}
