"""Tests mirror the package, import no other test, patch no private name, and silence warnings by what they say.

Variables of the package, the recipes and the tests say what they hold.
"""

import ast
import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
PACKAGE = ROOT / "plugin" / "basinguard"
OWN = {"support", "reliability", "recipes"}  # folders that are no part of the package
VAGUE = {"found", "told", "known", "kept", "seen", "begun"}  # say that something was done, not what came of it
MODULES = sorted(path for path in TESTS.rglob("*.py"))
parsed = cache(ast.parse)  # several tests read the same modules


def imported(tree):
    """Dotted names of everything that is imported anywhere in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)


def patched_by_string(tree):
    """First arguments of `setattr`, `delattr` and `patch` calls that are dotted names in a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("setattr", "delattr", "patch") and str(node.args[0].value).startswith("basinguard"):
                yield node.args[0].value


def patched_privately(tree):
    """Private names in a string behind an object: in a call such as `setattr(obj, "_x", f)`, or as a pair for one."""
    for node in ast.walk(tree):
        parts = node.args if isinstance(node, ast.Call) else node.elts if isinstance(node, ast.Tuple) else []
        if len(parts) > 1 and isinstance(parts[0], ast.Name | ast.Attribute) and isinstance(parts[1], ast.Constant):
            name = str(parts[1].value)
            if name.startswith("_") and not name.startswith("__"):
                yield name


def vague_names(tree):
    """Variables, parameters and attributes that are given one of `VAGUE`, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            name = node.attr
        else:
            continue
        if name in VAGUE:
            yield node.lineno, name


def offenders(read, modules=MODULES):
    """Module -> what `read` makes of its source, where that is anything."""
    results = {path.relative_to(ROOT).as_posix(): list(read(path.read_text(encoding="utf-8"))) for path in modules}
    return {name: result for name, result in results.items() if result}


def test_folders_mirror_the_package():
    folders = {path.name for path in TESTS.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders == OWN | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def test_no_test_module_is_imported():
    test = re.compile(r"(^|\.)(test_\w+|conftest|tests)(\.|$)")
    assert offenders(lambda text: filter(test.search, imported(parsed(text)))) == {}


def test_objects_are_patched_rather_than_names_in_strings():
    assert offenders(lambda text: patched_by_string(parsed(text))) == {}


def test_no_private_name_is_patched():
    assert offenders(lambda text: patched_privately(parsed(text))) == {}


def test_variables_say_what_they_hold():
    modules = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "recipes").rglob("*.py"), *MODULES])
    assert offenders(lambda text: vague_names(parsed(text)), modules) == {}


def test_no_warning_is_silenced_for_a_whole_module_or_whatever_it_says():
    everything = re.compile(
        r"^pytestmark\b.*filterwarnings|(?:filterwarnings|simplefilter)\(\"ignore\"\)", re.MULTILINE
    )
    assert offenders(everything.findall) == {}


def test_the_readers_see_what_they_look_for():
    text = "from support.x import y\nfrom tests.test_a import b\nimport test_c\n"
    assert list(imported(parsed(text))) == ["support.x.y", "tests.test_a.b", "test_c"]
    code = "monkeypatch.setattr('basinguard.guard.guard.Guard', 1)\nmonkeypatch.setattr(guard, 'x', 1)"
    assert list(patched_by_string(ast.parse(code))) == ["basinguard.guard.guard.Guard"]
    code = "setattr(files, '_a', f)\n(files.os, '_b')\n('scan', '_c')\npatch.object(a, '_d')\nsetattr(a, '__e__', f)"
    assert set(patched_privately(ast.parse(code))) == {"_a", "_b", "_d"}
    code = "def f(told):\n  self.kept = [seen for seen in told]\n  with a as (found, b): ...\n  print(known.begun)"
    assert sorted(name for _, name in vague_names(ast.parse(code))) == ["found", "kept", "seen", "told"]
