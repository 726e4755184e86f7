"""The command line answers at once, lists every verb, and names what was mistyped."""

import importlib
import json
import re
import subprocess
import sys
import warnings
from inspect import getdoc

import pytest

from basinguard.cli import main, parse, plain_warnings
from basinguard.commands import VERBS
from support.exports import build_pipe, build_record

FRAMEWORKS = {"torch", "diffusers", "lightning", "transformers", "peft", "scipy", "matplotlib"}
MEASURE = f"""
import json, re, resource, sys
from pathlib import Path
from basinguard.cli import main
status = 0
try:
    main(sys.argv[1:])
except SystemExit as end:
    status = end.code or 0
used = resource.getrusage(resource.RUSAGE_SELF)
status_file = Path("/proc/self/status")  # this program's own peak; getrusage knows the test runner's as well
peak = int(re.search(r"VmHWM:\\s+(\\d+)", status_file.read_text())[1]) / 2**10 if status_file.exists() else 0.0
print(json.dumps(dict(status=status, loaded=sorted({FRAMEWORKS!r} & set(sys.modules)),
    seconds=used.ru_utime + used.ru_stime, megabytes=peak)))
"""


def measured(*words) -> tuple[str, dict]:
    """What a command prints in a process of its own, and what it took."""
    command = [sys.executable, "-c", MEASURE, *map(str, words)]
    *lines, last = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return "\n".join(lines), json.loads(last)


def refused(capsys, *words) -> str:
    """The one line on stderr of a command that ends with status 2."""
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    from basinguard.exports.directory import export_directory

    pipe = build_pipe()
    return export_directory(pipe, build_record(pipe), tmp_path_factory.mktemp("cli") / "model")


EVERY_HELP = [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)]
HELP = """
import contextlib, io, sys
pages = {}
def ask(words):
    from basinguard.cli import main
    page = io.StringIO()
    with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
        main(words)
    pages[" ".join(words)] = page.getvalue(), sorted(FRAMEWORKS & set(sys.modules))
"""


@pytest.fixture(scope="module")
def helped():
    """Every page of help with the frameworks that were loaded by then, and what all of them took: one process."""
    asked = "\n".join(f"ask({words!r})" for words in EVERY_HELP)
    answer = "import json, resource\nused = resource.getrusage(resource.RUSAGE_SELF)\n"
    answer += "print(json.dumps([pages, used.ru_utime + used.ru_stime]))"
    source = f"FRAMEWORKS = {FRAMEWORKS!r}\n{HELP}\n{asked}\n{answer}"
    return json.loads(subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout)


def assert_at_once(cost):
    assert cost["status"] == 0
    assert cost["loaded"] == []
    assert cost["megabytes"] < 150
    assert cost["seconds"] < 2, "0.1 to 0.6 s on an idle core; a loaded machine takes its time"


def test_a_process_that_helps_answers_at_once():
    page, cost = measured("fit", "--help")
    assert_at_once(cost)
    assert page.startswith("Fine-tunes")


@pytest.mark.parametrize("words", EVERY_HELP, ids=" ".join)
def test_help_answers_at_once(words, helped):
    pages, seconds = helped
    page, loaded = pages[" ".join(words)]
    assert loaded == []
    assert seconds < 4, "all pages together; 0.5 to 1.5 s on an idle core"
    assert page.startswith(("usage: basinguard", "basinguard 0.", "Fine-tunes"))


@pytest.mark.parametrize("verb", ["inspect", "check"])
def test_an_export_is_read_at_once(verb, exported):
    page, cost = measured(verb, exported)
    assert_at_once(cost)
    assert str(exported) in page


def test_every_verb_is_listed_in_the_order_of_the_story_with_a_line_of_its_own(capsys):
    main(["--help"])
    rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [verb for verb, _ in rows] == list(VERBS) == [
        "demo", "curate", "fit", "watch", "calibrate", "audit", "verify", "monitor", "triage", "export", "stamp",
        "inspect", "check", "sample", "compare", "compare-images", "metrics", "judge", "completion",
    ]  # fmt: skip
    for verb, line in rows:
        name = verb.replace("-", "_")
        function = getattr(importlib.import_module(f"basinguard.commands.{name}"), name)
        assert line == getdoc(function).splitlines()[0]


def test_options_that_travel_together_are_flat_and_explained_by_their_object(capsys):
    with pytest.raises(SystemExit):
        main(["calibrate", "--help"])
    page = " ".join(capsys.readouterr().out.split())
    assert "--alpha ALPHA risk that " in page
    assert "--pairs PAIRS (caption, seed) pairs the promise rests on" in page
    assert "--terms" not in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["calibrat"], "no verb 'calibrat': did you mean calibrate?"),
        (["--versoin"], "no verb '--versoin': did you mean --version?"),
        (["xyzzy"], "no verb 'xyzzy'; basinguard --help lists them all"),
        (["calibrate", "model", "--data", "d", "--alhpa", "0.1"], "no option '--alhpa': did you mean --alpha?"),
        (["calibrate", "model", "--data", "d", "--alhpa=0.1"], "no option '--alhpa': did you mean --alpha?"),
        (["calibrate", "model", "--data", "d", "--alph", "0.1"], "no option '--alph': did you mean --alpha?"),
        (["calibrate", "model", "--dat", "d"], "no option '--dat': did you mean --data?"),
        (["curate", "d", "--helduot", "x"], "no option '--helduot': did you mean --heldout?"),
        (["calibrate", "model", "--data", "d", "--alpha", "much"], "--alpha: Expected a float. Got value: much"),
        (["calibrate", "model"], "calibrate: needs --data DIR: folder of the captioned images"),
        (["calibrate"], "calibrate: needs MODEL: a directory or hub id"),
        (["inspect", "x", "--json=perhaps"], "--json: Expected a bool. Got value: perhaps"),
        (["inspect", "x", "--json", "perhaps"], "no option 'perhaps'"),
    ],
)
def test_a_mistyped_word_is_named_with_the_nearest_right_one(capsys, words, message):
    assert message in refused(capsys, *words)


@pytest.mark.parametrize(
    "words",
    [
        ("photos", "--apply", "--from-run", "run"),
        ("--apply", "photos", "--from_run=run"),
        ("--from-run=run", "--apply", "true", "photos"),
        ("--from-run", "run", "photos", "--apply=yes"),
    ],
    ids=" ".join,
)
def test_flags_take_no_value_and_options_may_be_hyphened(words):
    values = parse("curate", words)
    assert (str(values["source"]), values["apply"], str(values["from_run"])) == ("photos", True, "run")
    assert parse("curate", ("photos", "--apply", "false"))["apply"] is False


def test_an_unknown_key_of_a_config_is_named_with_the_nearest_right_one(capsys, tmp_path):
    (tmp_path / "terms.yaml").write_text("alhpa: 0.1\n")
    line = refused(capsys, "calibrate", "model", "--data", "d", "--config", str(tmp_path / "terms.yaml"))
    assert "no option '--alhpa': did you mean --alpha?" in line


def test_ctrl_c_is_130(monkeypatch):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("basinguard.exports.inspect"), "inspect_file", interrupted)
    with pytest.raises(SystemExit) as end:
        main(["inspect", "x"])
    assert end.value.code == 130


def test_bash_completes_verbs_and_options_of_the_verb(tmp_path):
    from basinguard.commands.completion import completion

    (tmp_path / "completion.sh").write_text(completion("bash"))
    script = 'source "$1"; shift; COMP_WORDS=(basinguard "$@"); COMP_CWORD=$#; _basinguard; echo "${COMPREPLY[*]}"'

    def completed(*words: str) -> str:
        command = ["bash", "-c", script, "bash", str(tmp_path / "completion.sh"), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert completed("calib") == "calibrate"
    assert completed("calibrate", "--al") == "--alignment --alpha"
    assert completed("fit", "--dry") == "--dry-run"
    assert completed("calibrate", "mod") == "", "files, by the shell itself"


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "fit"])
def test_completion_names_the_options_of_the_parser(verb, capsys):
    from basinguard.commands.completion import options_of_verb

    with pytest.raises(SystemExit):
        main([verb, "--help"])
    page = capsys.readouterr().out
    assert [name for name in options_of_verb(verb) if name not in page] == []


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_every_verb(shell):
    from basinguard.commands.completion import completion

    assert [verb for verb in VERBS if verb not in completion(shell)] == []


def test_a_configuration_that_ships_is_found_by_its_name(tmp_path, monkeypatch):
    from basinguard.training.shipped_configs import located

    monkeypatch.chdir(tmp_path)
    name, path = located(["--config", "sd21_lora"])
    assert (name, path.endswith("configs/sd21_lora.yaml")) == ("--config", True)
    (tmp_path / "sd21_lora").write_text("seed_everything: 1\n")
    assert located(["--config=sd21_lora"]) == ["--config", "sd21_lora"], "a file of the user's goes first"
    with pytest.raises(FileNotFoundError, match="configurations that ship are sd21_768_lora"):
        located(["--config", "sd12_lora"])


@pytest.mark.filterwarnings("always::UserWarning")
def test_a_warning_is_one_line_of_words_and_said_once(capsys):
    with plain_warnings():
        for _ in range(2):
            warnings.warn("photos: 2 files\nleft out", UserWarning, stacklevel=1)
            warnings.showwarning("for programmers", DeprecationWarning, "x.py", 1)
    assert capsys.readouterr().err == "basinguard: photos: 2 files left out\n"


def test_fit_of_nothing_says_at_once_what_to_type(capsys):
    assert "basinguard fit --config sd21_lora --data.init_args.directory photos" in refused(capsys, "fit")
    assert "what is to be trained?" in refused(capsys, "fit", "--dry-run")


def test_completion_knows_what_the_help_of_fit_lists(capsys):
    from basinguard.commands.completion import options_of_verb

    main(["fit", "--help"])
    listed = set(re.findall(r"^  (--[\w-]+)(?= )", capsys.readouterr().out, re.MULTILINE))
    assert listed <= {*options_of_verb("fit")}
    assert len(listed) > 8
