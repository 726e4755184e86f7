"""What a training says of itself where no terminal shows its bar."""

from types import SimpleNamespace

from basinguard.training.monitors import Monitors, training_line


def trainer(**changes):
    numbers = {"global_step": 30, "estimated_stepping_batches": 120, "max_epochs": 40, "current_epoch": 9}
    quiet = {"early_stopping_callbacks": [], "checkpoint_callbacks": [], "progress_bar_callback": None}
    return SimpleNamespace(**{**numbers, **quiet, "is_global_zero": True, **changes})


def test_a_line_says_epoch_update_what_is_left_and_the_last_verdict():
    assert training_line(trainer(), 60.0, "safe") == "training: epoch 10 of 40, update 30, about 3 min left; last: safe"
    endless = trainer(estimated_stepping_batches=float("inf"), max_epochs=-1)
    assert training_line(endless, 60.0, "") == "training: epoch 10, update 30"
    assert training_line(trainer(global_step=0), 1.0, "") == "training: epoch 10 of 40, update 0"


def test_it_is_said_every_half_minute(capsys, monkeypatch):
    run = SimpleNamespace(status=None)
    monitors = Monitors(trainer(), run)
    monitors.beat()
    assert capsys.readouterr().err == ""
    monitors._told -= 31
    monitors.beat()
    monitors.beat()
    assert capsys.readouterr().err.count("training: epoch 10 of 40") == 1
