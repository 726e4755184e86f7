"""The manual: every link leads somewhere, every command and block of code is one that works, every tag is explained."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

import basinguard
from basinguard.commands import VERBS
from basinguard.commands.completion import options_of_verb
from basinguard.guard.status import run_status
from basinguard.training.logging import MEASURED, scalars, tag
from support.reports import base, changed, near, report

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
LINKED = [*PAGES, ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md"]
LOCAL = re.compile(r"(?!https?:|mailto:)")
DOTTED = re.compile(r"--(model|data|trainer)\.")  # options of `fit`
ENDS = ("_low", "_high", "_since_base")


def tokens(path):
    for token in MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8")):
        yield from (token, *(token.children or ()))


def links(path):
    for token in tokens(path):
        target = token.attrGet("href") or token.attrGet("src")
        if target and LOCAL.match(str(target)):
            yield str(target)


def anchors(path):
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def blocks(path, *languages):
    return [token.content for token in tokens(path) if token.type == "fence" and token.info in languages]


def commands(path):
    """Command lines of basinguard, from blocks of shell and from code between backticks."""
    indented = [token.content for token in tokens(path) if token.type == "code_block"]
    for block in [*blocks(path, "bash", "sh"), *indented]:
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["basinguard"]:
                yield words


def names(paths):
    return [path.relative_to(ROOT).as_posix() for path in paths]


@pytest.mark.parametrize("page", names(LINKED))
def test_every_link_leads_somewhere(page):
    for target in links(ROOT / page):
        file, _, anchor = target.partition("#")
        reached = ((ROOT / page).parent / file).resolve() if file else ROOT / page
        assert reached.exists(), target
        assert not anchor or anchor in anchors(reached), target


@pytest.mark.parametrize("page", names([*PAGES, ROOT / "README.md"]))
def test_every_block_of_python_is_python_with_public_names(page):
    for block in blocks(ROOT / page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "basinguard":
                assert {alias.name for alias in node.names} <= set(basinguard.__all__)
            assert not isinstance(node, ast.ImportFrom) or not str(node.module).startswith("basinguard.")


@pytest.mark.parametrize("page", names([*PAGES, ROOT / "README.md"]))
def test_every_command_has_a_verb_and_options_that_exist(page):
    for _, verb, *words in commands(ROOT / page):
        assert verb in (*VERBS, "--version")
        asked = [word.partition("=")[0] for word in words if word.startswith("--")]
        names_of_verb = {"--help", "--help-all", "--config", *(options_of_verb(verb) if verb in VERBS else ())}
        accepted = {name.replace("-", "_") for name in names_of_verb}  # as the command line reads them
        assert [word for word in asked if word.replace("-", "_") not in accepted and not DOTTED.match(word)] == []


def test_every_page_is_reached_from_the_contents():
    contents = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    from_trainers = set(links(DOCS / "trainers" / "index.md"))
    for page in PAGES:
        relative = page.relative_to(DOCS).as_posix()
        assert relative in contents or page.name in from_trainers, f"{relative}: linked from nowhere"


def test_the_page_of_curves_explains_every_tag_and_no_other():
    full = changed(report(0, 1, transition=600.0), **{name: near(0.1, 0.1) for name in MEASURED})
    history = [base(taught=near(0.0, 0.1)), full]
    logged = {tag(name) for name in scalars(history, run_status(history, 0.15))}
    source = (ROOT / "plugin" / "basinguard" / "training" / "logging.py").read_text(encoding="utf-8")
    pictures = set(re.findall(r'add_(?:figure|image)\("(guard[\w/]+)"', source))
    texts = set(re.findall(r'add_text\("(guard[\w/]+)"', source))
    page = (DOCS / "curves.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| `(guard[\w/]+)` \|", page, re.MULTILINE))
    assert explained == {name for name in logged if not name.endswith(ENDS)} | pictures
    assert texts
    assert texts <= set(re.findall(r"`(guard[\w/]+)`", page))


def test_the_readers_of_pages_see_what_they_look_for(tmp_path):
    (tmp_path / "a.md").write_text(
        "# One, two\n\n[x](b.md#c) [y](https://d)\n\n```bash\nbasinguard fit --config x # y\n```\n\n"
        "    basinguard demo\n"
    )
    assert list(links(tmp_path / "a.md")) == ["b.md#c"]
    assert anchors(tmp_path / "a.md") == {"one-two"}
    assert list(commands(tmp_path / "a.md")) == [["basinguard", "fit", "--config", "x"], ["basinguard", "demo"]]


@pytest.mark.long
def test_the_first_hour_is_walked_as_it_is_written(tmp_path):
    """Every command and every block of Python of that page, in order, in a folder with 25 messy pictures."""
    from support.messy_folder import write_messy_folder

    write_messy_folder(tmp_path / "photos")
    for token in tokens(DOCS / "first_hour.md"):
        if token.type != "fence":
            continue
        if token.info == "python":
            subprocess.run([sys.executable, "-c", token.content], cwd=tmp_path, check=True)
        for line in token.content.splitlines() if token.info == "bash" else ():
            words = shlex.split(line)
            subprocess.run([sys.executable, "-m", "basinguard", *words[1:]], cwd=tmp_path, check=True)
    assert (tmp_path / "runs/tinyworld_lora/export/README.md").is_file()


@pytest.mark.long
def test_the_manual_is_built(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    subprocess.run(command, cwd=ROOT, check=True)
    assert "MemorizationGuard" in (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
