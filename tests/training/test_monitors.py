"""What a training says of itself where no terminal shows its bar."""

from types import SimpleNamespace

from lightning.pytorch.callbacks import RichProgressBar

from basinguard.training.monitors import Monitors, show_on_progress_bar, training_line


def trainer(**changes):
    numbers = {"global_step": 30, "estimated_stepping_batches": 120, "max_epochs": 40, "current_epoch": 9}
    quiet = {"early_stopping_callbacks": [], "checkpoint_callbacks": [], "progress_bar_callback": None}
    return SimpleNamespace(**{**numbers, **quiet, "is_global_zero": True, **changes})


def run(*seconds, status=None):
    return SimpleNamespace(status=status, history=[SimpleNamespace(seconds=each) for each in seconds])


def test_a_line_says_epoch_update_what_is_left_and_the_last_verdict():
    assert training_line(trainer(), 180, "safe") == "training: epoch 10 of 40, update 30, about 3 min left; last: safe"
    assert training_line(trainer(max_epochs=-1), None, "") == "training: epoch 10, update 30"


def test_what_is_left_is_of_updates_and_of_probes_to_come():
    monitors = Monitors(trainer(global_step=0), taken_up := run(), lambda epoch, of: (epoch + 1) % 10 == 0)
    taken_up.history += run(40.0, 80.0).history  # two probes of a minute on average, four to come
    monitors.trainer = trainer()
    assert monitors._left(150.0) == (150 - 120) / 30 * 90 + 4 * 60
    monitors.trainer = trainer(global_step=0)
    assert monitors._left(150.0) is None
    monitors.trainer = trainer(estimated_stepping_batches=float("inf"), max_epochs=-1)
    assert monitors._left(150.0) is None


def test_a_run_that_is_taken_up_counts_from_where_it_stopped():
    monitors = Monitors(trainer(), run(500.0), lambda epoch, of: False)
    monitors.trainer = trainer(global_step=60)
    assert monitors._left(30.0) == 30 / 30 * 60


def test_it_is_said_every_half_minute(capsys, monkeypatch):
    monitors = Monitors(trainer(), run(), lambda epoch, of: False)
    monitors.beat()
    assert capsys.readouterr().err == ""
    monitors._told -= 31
    monitors.beat()
    monitors.beat()
    assert capsys.readouterr().err.count("training: epoch 10 of 40") == 1


def test_the_bar_counts_epochs_as_people_do():
    bar = RichProgressBar()
    show_on_progress_bar(trainer(progress_bar_callback=bar, max_epochs=200), lambda: "safe")
    assert bar._get_train_description(199).strip() == "Epoch 200/200"
    show_on_progress_bar(trainer(progress_bar_callback=bar, max_epochs=-1), lambda: "safe")
    assert bar._get_train_description(0).strip() == "Epoch 1"
