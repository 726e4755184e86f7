"""When checkpoints are measured, what is told, and what a breach brings about; the measuring itself is scripted."""

import doctest
import json
import sys
from contextlib import nullcontext

import pytest
from filelock import FileLock

from basinguard.watching import probe_process, reaction
from basinguard.watching import watcher as module
from basinguard.watching.checkpoints import Checkpoint, OutputScan
from basinguard.watching.probe_process import ProbeBrokeDown, ProbeProcess
from basinguard.watching.reaction import BreachAction, WatchPace, WatchReaction
from basinguard.watching.request import EVENTS, LOCK, WatchRequest, add_event, events_of
from basinguard.watching.watcher import Watcher, checkpoint_to_ship
from support.checkpoint_files import KOHYA, UP, saved

ONCE = WatchPace(once=True)


class Script:
    """Writes an event for the base model and each checkpoint, as probes do; from a given call on, they breach."""

    def __init__(self, breach=99):
        self.asked, self.breach = [], breach

    def __call__(self, request, pending, news):
        self.asked.append([c.path.name for c in pending])
        base = [("the base model", None)] * (not events_of(request.folder))
        with (request.folder / EVENTS).open("a") as file:
            for name, key in [*base, *((c.path.name, c.key) for c in pending)]:
                event = {"event": "measured", "checkpoint": name, "key": key, "verdict": "safe", "taught": None}
                event |= {
                    "risk": [0.5, 0.4, 0.6, 32],
                    "ship": 1,
                    "seconds": 4.2,
                    "breach": len(self.asked) > self.breach,
                }
                file.write(json.dumps(event) + "\n")
        news()


@pytest.fixture
def request_(tmp_path):
    return WatchRequest(tmp_path / "out", tmp_path / "data", "tinyworld")


def watched(request, script, lines, *, pace=ONCE, **reaction):
    watcher = Watcher(request, pace, WatchReaction(**reaction), lines.append, script)
    watcher.run()
    return watcher


def test_example():
    assert doctest.testmod(reaction).failed == 0


def test_each_checkpoint_is_measured_once_also_by_a_later_watch(request_):
    first, second = Script(), Script()
    saved(request_.output / "a-000001.safetensors", KOHYA)
    lines = []
    watched(request_, first, lines)
    assert lines == [
        f"{name}: safe, risk 0.50 [0.40, 0.60] (n = 32), to ship epoch 2, 4 s"
        for name in ("the base model", "a-000001.safetensors")
    ]
    saved(request_.output / "a-000002.safetensors", KOHYA)
    watched(request_, second, lines)
    assert (first.asked, second.asked) == ([["a-000001.safetensors"]], [["a-000002.safetensors"]])
    watched(request_, second, lines)
    assert len(lines) == 3
    assert len(second.asked) == 1


def test_the_base_model_is_measured_before_training_begins(request_):
    script = Script()
    watched(request_, script, [])
    assert script.asked == [[]]


def test_a_file_that_grows_waits_until_it_rests(request_, monkeypatch):
    """There at the first look, larger at the second, the same at the third, when it is measured; then nothing new."""
    script, looks, clock = Script(), [], iter(range(0, 10_000, 30))
    path = request_.output / "a-000001.safetensors"
    sizes = {1: KOHYA, 2: {**KOHYA, "lora_unet_y.lora_up.weight": UP}}

    def sleep(seconds):
        looks.append((seconds, len(script.asked)))
        if len(looks) in sizes:
            saved(path, sizes[len(looks)])

    monkeypatch.setattr(module.time, "sleep", sleep)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    watched(request_, script, [], pace=WatchPace(interval=5, idle_minutes=2))
    assert script.asked == [[], ["a-000001.safetensors"]]
    assert looks[:4] == [(5, 1), (3, 1), (3, 1), (5, 2)]


def test_a_half_written_file_is_told_of_and_not_measured(request_):
    half = saved(request_.output / "a-000001.safetensors", KOHYA)
    half.write_bytes(half.read_bytes()[:-8])
    script, lines = Script(), []
    watched(request_, script, lines)
    assert script.asked == [[]]
    assert lines[-1].startswith("a-000001.safetensors: not read, ")


@pytest.mark.parametrize(
    ("action", "what"), [("touch {}", "made "), ("run {python} -c pass", "exit status 0"), ("exit", "ends")]
)
def test_a_breach_is_answered_once(request_, tmp_path, action, what):
    flag = tmp_path / "stop"
    action = action.replace("{python}", sys.executable).replace("{}", str(flag))
    saved(request_.output / "a-000001.safetensors", KOHYA)
    lines = []
    watcher = watched(request_, Script(breach=0), lines, on_breach=action)
    assert watcher.breached
    (done,) = (line for line in lines if ": breach, " in line)
    assert what in done
    assert flag.exists() == action.startswith("touch")


def test_a_probe_that_breaks_down_is_tried_three_times_and_ends_no_watch(request_, monkeypatch):
    """The disk is full from the second probe on; the watch says so, and ends for want of anything new."""
    script, lines, clock = Script(), [], iter(range(0, 10_000, 30))

    def measure(request, pending, news):
        if pending:
            script.asked.append([c.path.name for c in pending])
            raise ValueError("[Errno 28] No space left on device")
        script(request, pending, news)

    monkeypatch.setattr(module.time, "sleep", lambda _: saved(request_.output / "a-000001.safetensors", KOHYA))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(module, "scan", lambda *_: OutputScan(tuple(settled), {}))
    settled = [Checkpoint(request_.output / "a-000001.safetensors", "lora", 1, 1, 10, 10)]
    watched(request_, measure, lines, pace=WatchPace(idle_minutes=3))
    assert script.asked == [[], *[["a-000001.safetensors"]] * 3]
    assert lines[1:] == ["a-000001.safetensors: failed, [Errno 28] No space left on device"] * 3


def test_what_cannot_be_right_from_the_beginning_ends_it(request_):
    def measure(request, pending, news):
        raise ValueError("data: no such folder of images")

    with pytest.raises(ValueError, match="no such folder of images"):
        watched(request_, measure, [])


def test_machines_read_a_line_of_json_for_each_event(request_):
    lines = []
    watched(request_, Script(), lines, json=True)
    assert json.loads(lines[0])["risk"] == [0.5, 0.4, 0.6, 32]


def test_a_second_watch_on_one_folder_is_refused(request_):
    request_.folder.mkdir(parents=True)
    with FileLock(request_.folder / LOCK), pytest.raises(ValueError, match="is being watched already"):
        watched(request_, Script(), [])


SCRIPT = """import json, sys
sys.stderr.write("ready\\n")
request, checkpoints = json.loads(sys.stdin.readline()), json.loads(sys.stdin.readline())
sys.stderr.write("data: no such folder\\n")
raise SystemExit({})
"""


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (0, None, ""),
        (2, ValueError, "data: no such folder"),
        (1, ProbeBrokeDown, "the probe ended with status 1: data: no such folder"),
    ],
)
def test_a_process_that_was_started_ahead_measures_and_is_gone(request_, monkeypatch, status, kind, message):
    monkeypatch.setattr(probe_process, "COMMAND", [sys.executable, "-c", SCRIPT.format(status)])
    process, news = ProbeProcess(), []
    process.start(request_)
    started = process._process
    process.start(request_)
    assert process._process is started
    with nullcontext() if kind is None else pytest.raises(kind, match=message):
        process.measure(request_, [], lambda: news.append(started.poll()))
    assert started.returncode == status
    assert len(news) == 2
    assert process._process is None


def test_a_process_that_was_not_needed_is_ended(request_, monkeypatch):
    monkeypatch.setattr(probe_process, "COMMAND", [sys.executable, "-c", SCRIPT])
    process = ProbeProcess()
    process.end()
    process.start(request_)
    started = process._process
    process.end()
    assert started.returncode == -9


@pytest.mark.parametrize("text", ["", "touch", "exit now", "stop"])
def test_an_unsettled_answer_to_a_breach_is_refused_at_once(text):
    with pytest.raises(ValueError, match="expected none, exit, 'touch FILE' or 'run COMMAND'"):
        WatchReaction(text)
    assert BreachAction.parse("run echo hello").argument == "echo hello"


def test_the_checkpoint_to_ship_is_the_one_that_the_newest_verdict_names():
    events = [{"event": "measured", "epoch": k, "ship": ship} for k, ship in ((-1, -1), (0, 0), (1, 0))]
    failed = {"event": "failed", "problem": "damaged"}
    assert checkpoint_to_ship([*events, failed]) is events[1]
    for none in ([], events[:1], [{"event": "measured", "epoch": 0, "ship": None}]):
        with pytest.raises(ValueError, match="none was calibrated"):
            checkpoint_to_ship(none)


def test_a_pace_without_time_is_refused():
    with pytest.raises(ValueError, match="interval=0"):
        WatchPace(interval=0)


def killed_at(name, script, message="signal 9"):
    """A probe that ends before this checkpoint, every time."""

    def measure(request, pending, news):
        names = [c.path.name for c in pending]
        before = pending[: names.index(name)] if name in names else pending
        script(request, before, news)
        if name in names:
            raise ProbeBrokeDown(message)

    return measure


def test_one_checkpoint_that_kills_every_probe_costs_no_other_its_turn(request_):
    for epoch in (1, 2, 3):
        saved(request_.output / f"a-00000{epoch}.safetensors", KOHYA)
    lines = []
    watched(request_, killed_at("a-000002.safetensors", Script()), lines)
    measured = [event["checkpoint"] for event in events_of(request_.folder) if event["event"] == "measured"]
    assert measured == ["the base model", "a-000001.safetensors", "a-000003.safetensors"]
    assert lines.count("a-000002.safetensors: failed, signal 9") == 3


def test_a_base_model_whose_probe_is_killed_is_tried_three_times(request_):
    tries, lines = [], []

    def measure(request, pending, news):
        tries.append(len(pending))
        raise ProbeBrokeDown("signal 9")

    with pytest.raises(ValueError, match="the base model: signal 9"):
        watched(request_, measure, lines)
    assert (len(tries), lines) == (3, ["the base model: failed, signal 9"] * 2)


def test_a_base_model_that_is_never_measured_ends_the_watch(request_):
    with pytest.raises(ValueError, match="the base model: could not be measured"):
        watched(request_, lambda *_: None, [])


@pytest.mark.parametrize("action", ["touch {}/nowhere/flag", "run {}/nowhere/command", "run 'unclosed"])
def test_an_answer_that_fails_is_told_and_the_watch_goes_on(request_, tmp_path, action):
    saved(request_.output / "a-000001.safetensors", KOHYA)
    lines = []
    watched(request_, Script(breach=0), lines, on_breach=action.replace("{}", str(tmp_path)))
    (done,) = (line for line in lines if ": breach, " in line)
    assert " failed: " in done


def test_a_breach_that_an_ended_watch_left_unanswered_is_answered_by_the_next(request_, tmp_path):
    request_.folder.mkdir(parents=True)
    saved(request_.output / "a-000001.safetensors", KOHYA)
    Script(breach=0)(request_, [], lambda: None)
    flag = tmp_path / "stop"
    for _ in range(2):
        watched(request_, Script(), [], on_breach=f"touch {flag}")
        assert [event["event"] for event in events_of(request_.folder)].count("breach") == 1
    assert flag.exists()


def test_a_line_that_was_cut_off_costs_no_other(tmp_path):
    event = {"event": "failed", "checkpoint": "a\u2028b", "problem": "ü"}
    add_event(tmp_path, event)
    with (tmp_path / EVENTS).open("a") as file:
        file.write('{"event": "meas')
    assert events_of(tmp_path) == [event]
    add_event(tmp_path, event)
    assert events_of(tmp_path) == [event, event]


def test_a_file_that_stays_half_written_is_told_of_once(request_, monkeypatch):
    half = saved(request_.output / "a-000001.safetensors", KOHYA)
    half.write_bytes(half.read_bytes()[:-8])
    lines, clock = [], iter(range(0, 10_000, 30))
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    watched(request_, Script(), lines, pace=WatchPace(idle_minutes=10))
    (line,) = lines[1:]
    assert line.startswith("a-000001.safetensors: not read, ")
