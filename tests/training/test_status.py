"""What a guarded run says of itself, keeps for shipping, and when it stops; reports are made up, training is not."""

import json
import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from basinguard.core.report import Report
from basinguard.guard.guard import Guard
from basinguard.guard.status import GuardFile, read_history
from basinguard.training import guarded_run
from basinguard.training.guard_options import BreachResponse, ControlGroup
from basinguard.training.guarded_run import GuardedRun
from support.guarded_runs import digest, fit, make_guard, picture_folder
from support.scripted_probes import BREACH, COPYING, FAILED, FORMING, LATE, QUIET, scripted


@pytest.fixture
def folder(tmp_path):
    return picture_folder(tmp_path / "pictures")


def fitted(base, folder, root, guard, *callbacks, epochs, **options):
    return fit(base, folder, root, guard, *callbacks, epochs=epochs, **options)


@BREACH
def test_guard_json_holds_verdict_forecast_choices_and_every_report(tiny_pipeline_dir, folder, tmp_path, monkeypatch):
    scripted(monkeypatch, QUIET, FORMING, COPYING)
    fitted(tiny_pipeline_dir, folder, tmp_path, make_guard(plan={"alpha": 0.15}), epochs=2)
    text = (tmp_path / "guard.json").read_text()
    guard_file = GuardFile.from_json(text)
    assert guard_file.status.verdict.state == "memorizing"
    assert guard_file.status.forecast.state == "passed"
    assert (guard_file.status.plain.epoch, guard_file.status.guarded.epoch) == (0, 1)
    assert [r.epoch for r in read_history(tmp_path / "guard.json")] == [-1, 0, 1]
    old = tmp_path / "older.json"
    old.write_text(json.dumps(json.loads(text)["history"]))
    assert read_history(old) == list(guard_file.history)


@pytest.mark.parametrize("text", ["nothing", "3", '{"history": 3}', "[1]"])
def test_a_guard_json_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "guard.json").write_text(text)
    with pytest.raises(ValueError, match=r"guard\.json|not a valid Report"):
        read_history(tmp_path / "guard.json")


@pytest.mark.usefixtures("drawn_figures")
def test_tensorboard_gets_the_dashboard_and_words_and_the_bar_the_verdict(
    tiny_pipeline_dir, folder, tmp_path, monkeypatch
):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scripted(monkeypatch, QUIET, FORMING)
    monkeypatch.setattr(Guard, "show", lambda self, *a, **k: ({"plain CFG": torch.zeros(1, 3, 8, 8)}, ["a"], {}))
    shown = []

    class Bar(pl.callbacks.TQDMProgressBar):
        def on_train_end(self, trainer, pl_module):
            shown.append(self.get_metrics(trainer, pl_module))

    logger = TensorBoardLogger(tmp_path, name="run", version="v")
    fitted(
        tiny_pipeline_dir, folder, tmp_path, make_guard(), Bar(), epochs=1, logger=logger,
        trainer={"enable_progress_bar": True},
    )  # fmt: skip
    assert shown[0]["guard"] == "basin forming"
    events = EventAccumulator(str(tmp_path / "run" / "v"))
    events.Reload()
    assert "guard_details/dashboard" in events.Tags()["images"]
    assert "guard/status/text_summary" in events.Tags()["tensors"]
    assert events.Scalars("guard/verdict")[-1].value == 1


MISSED, UNSURE = RuntimeError("no memory"), {"hits": 4, "transition": 500.0}
RUNS = [
    pytest.param([QUIET, COPYING, COPYING, COPYING], {}, 1, id="a breach", marks=BREACH),
    pytest.param(
        [QUIET, COPYING, LATE, LATE],
        {"watches": "guarded"},
        2,
        id="not while guarded sampling keeps it",
        marks=[BREACH, pytest.mark.long],
    ),
    pytest.param([QUIET, UNSURE, COPYING, QUIET], {}, 2, id="not before it is sure", marks=[BREACH, pytest.mark.long]),
    pytest.param([QUIET, MISSED, MISSED, QUIET], {}, 3, id="not on a failed probe", marks=FAILED),
    pytest.param([MISSED, LATE, LATE, LATE], {}, 3, id="not without a base", marks=[FAILED, pytest.mark.long]),
    pytest.param([QUIET, FORMING, FORMING, FORMING], {}, 3, id="not on alarms", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("plan", "changes", "epochs"), RUNS)
def test_a_run_stops_at_a_sure_breach_and_on_nothing_less(
    tiny_pipeline_dir, folder, tmp_path, monkeypatch, plan, changes, epochs
):
    scripted(monkeypatch, *plan)
    guard = make_guard(respond=BreachResponse("stop", **changes), on_error="warn", plan={"alpha": 0.15})
    trainer, _ = fitted(tiny_pipeline_dir, folder, tmp_path, guard, epochs=3)
    assert trainer.current_epoch == epochs


def test_warning_is_all_that_happens_unless_asked(tiny_pipeline_dir, folder, tmp_path, monkeypatch):
    scripted(monkeypatch, QUIET, LATE, LATE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer, _ = fitted(tiny_pipeline_dir, folder, tmp_path, make_guard(), epochs=2)
    messages = [str(w.message) for w in caught if "too late for delayed guidance" in str(w.message)]
    assert len(messages) == 1, "once, not at every epoch"
    assert "training goes on" in messages[0]
    assert "dropout could be 0.1" in messages[0]
    assert trainer.current_epoch == 2


@BREACH
@FAILED
def test_lightnings_own_callbacks_act_on_the_same_numbers(tiny_pipeline_dir, folder, tmp_path, monkeypatch):
    scripted(monkeypatch, QUIET, FORMING, QUIET, RuntimeError("no memory"), COPYING, QUIET)
    stop = EarlyStopping("guard/verdict", divergence_threshold=1.5, patience=1000, check_on_train_epoch_end=True)
    keep = ModelCheckpoint(
        tmp_path / "kept", monitor="guard/ship_plain", mode="max", filename="{epoch}", save_on_train_epoch_end=True
    )
    trainer, _ = fitted(
        tiny_pipeline_dir, folder, tmp_path, make_guard(on_error="warn", plan={"alpha": 0.15}), stop, keep, epochs=5
    )
    assert trainer.current_epoch == 4, "the gap at epoch 2 ends nothing, the copies at epoch 3 do"
    assert keep.best_model_path.endswith("epoch=1.ckpt")


@BREACH
def test_every_probed_epoch_can_be_exported_across_a_resume(tiny_pipeline_dir, folder, tmp_path, monkeypatch):
    probed_digests, exported_digests = {}, {}

    def export(guard, series, *args, **options):
        for epoch in series.epochs:
            with series.at(epoch, 1.0):
                exported_digests[epoch] = digest(
                    {n: p for n, p in series.module.unet.named_parameters() if p.requires_grad}
                )

    scripted(monkeypatch, QUIET, FORMING, COPYING, LATE, digests=probed_digests)
    monkeypatch.setattr(guarded_run, "export_calibrated", export)
    settings = {"plan": {"alpha": 0.15}, "export_to": str(tmp_path / "shipped")}
    keep = ModelCheckpoint(tmp_path / "kept", every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    fitted(tiny_pipeline_dir, folder, tmp_path, make_guard(**settings), keep, epochs=2)
    late = tmp_path / "shipped-epochs" / "epoch-00009-update-00000090.safetensors"
    late.write_bytes(b"of a run that was taken up before this came")
    (late.parent / "notes.txt").write_text("the user's own")
    resumed = tmp_path / "kept" / "epoch=1.ckpt"
    fitted(tiny_pipeline_dir, folder, tmp_path, make_guard(**settings), epochs=3, ckpt=resumed)
    assert exported_digests == {0: probed_digests[0], 1: probed_digests[1], 2: probed_digests[2]}
    assert len(set(probed_digests.values())) == 4
    assert not late.exists()
    assert (late.parent / "notes.txt").exists()


def test_a_run_resumed_with_another_data_set_is_unknown_and_goes_on(tiny_pipeline_dir, folder, tmp_path, monkeypatch):
    keep = ModelCheckpoint(tmp_path / "kept", every_n_epochs=1)
    scripted(monkeypatch, QUIET, QUIET, LATE, LATE)
    fitted(tiny_pipeline_dir, folder, tmp_path, make_guard(), keep, epochs=1)
    other = picture_folder(tmp_path / "others", count=4)
    (other / "0.txt").write_text("a kite")
    guard = make_guard(on_error="warn", respond=BreachResponse("stop"))
    with pytest.warns(UserWarning, match="resumed with another training set"):
        trainer, _ = fitted(tiny_pipeline_dir, other, tmp_path, guard, epochs=3, ckpt=keep.best_model_path)
    assert trainer.current_epoch == 3, "nothing is known of these images, so nothing stops the run"
    assert guard.run.status.verdict.state == "unknown"
    assert "resumed with another training set" in guard.run.status.verdict.evidence[0]
    assert [r.epoch for r in guard.history] == [-1, 0, 1, 2]
    assert {weights.epoch for weights in guard.run.best_weights.epochs.values()} == {0}, (
        "what was kept of the other images is gone"
    )


@pytest.mark.parametrize("settings", [{"action": "act"}, {"action": "halt"}, {"action": "act", "interventions": None}])
def test_acting_without_saying_how_is_refused(settings):
    with pytest.raises(ValueError, match="expected warn, stop, or act together with an Interventions"):
        BreachResponse(**settings)


def test_five_images_and_no_held_out_one_work_and_say_what_is_not_known(tiny_pipeline_dir, tmp_path):
    folder = picture_folder(tmp_path / "five", count=5)
    guard = make_guard(control=ControlGroup(), plan={"captions": 5, "critical_scales": 1})
    fitted(tiny_pipeline_dir, folder, tmp_path, guard, epochs=1)
    training = guard.run.guard.training
    assert not set(training.heldout) & set(training.captions)
    assert training.heldout_images.shape == (len(training.heldout), 3, 32, 32)
    assert guard.history[-1].gaps.excess is not None
    assert guard.history[-1].critical_scales.excess is not None
    notice = " ".join(guard.run.status.unknowable)
    for words in ("recombined from the training captions", "the base model's own samples", "5 images are the whole"):
        assert words in notice


@FAILED
def test_a_gap_is_written_to_guard_json_as_unknown(tiny_pipeline_dir, folder, tmp_path, monkeypatch):
    scripted(monkeypatch, QUIET, RuntimeError("no memory"))
    fitted(tiny_pipeline_dir, folder, tmp_path, make_guard(on_error="warn"), epochs=1)
    guard_file = GuardFile.from_json((tmp_path / "guard.json").read_text())
    assert guard_file.status.verdict.state == "unknown"
    assert "no memory" in guard_file.status.verdict.evidence[0]
    assert Report.missed(0, 2, "RuntimeError: no memory") in guard_file.history


def test_a_verdict_that_cannot_be_made_harms_nothing(tiny_pipeline_dir, folder, tmp_path, monkeypatch):
    scripted(monkeypatch, QUIET, LATE)
    monkeypatch.setattr(GuardedRun, "judge", lambda self: 1 / 0)
    guard = make_guard(on_error="warn", respond=BreachResponse("stop"))
    with pytest.warns(UserWarning, match="there is no verdict on this epoch; training goes on: ZeroDivisionError"):
        trainer, _ = fitted(tiny_pipeline_dir, folder, tmp_path, guard, epochs=1)
    assert trainer.current_epoch == 1
    assert [r.epoch for r in guard.history] == [-1, 0]
