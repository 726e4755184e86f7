"""A run that was stopped anywhere and resumed has the history, the baseline and the export of one that was not."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from basinguard.calibration.trial import Trial
from basinguard.guard.guard import Guard
from basinguard.training import guarded_export, guarded_run
from basinguard.training.guard_options import ControlGroup
from basinguard.training.guarded_run import GuardedRun
from support.guarded_runs import TERMS, digest, fit, make_guard, picture_folder, untimed
from support.reports import changed

EPOCHS = 2  # of two batches each


def saver(directory, **when):
    return ModelCheckpoint(directory, filename="{step}", save_top_k=-1, **when)


@pytest.fixture
def folder(tmp_path):
    return picture_folder(tmp_path / "pictures")


@pytest.fixture(scope="module")
def whole(tiny_pipeline_dir, tmp_path_factory):
    """An uninterrupted run with a checkpoint after every batch, and its guard."""
    root = tmp_path_factory.mktemp("whole")
    guard = make_guard(export_to=str(root / "shipped"), terms=TERMS)
    keep = saver(root / "kept", every_n_train_steps=1)
    _, module = fit(tiny_pipeline_dir, picture_folder(root / "pictures"), root, guard, keep, epochs=EPOCHS)
    return root, guard, digest(dict(module.named_parameters()))


STEPS = [
    pytest.param(1, id="within an epoch", marks=pytest.mark.long),
    pytest.param(2, id="before an epoch's probe"),
    pytest.param(4, id="before the last probe", marks=pytest.mark.long),
]


@pytest.mark.parametrize("step", STEPS)
def test_a_resumed_run_equals_the_whole_one(tiny_pipeline_dir, folder, tmp_path, whole, step):
    root, guard, weights = whole
    again = make_guard(export_to=str(tmp_path / "shipped"), terms=TERMS)
    checkpoint = root / "kept" / f"step={step}.ckpt"
    _, module = fit(tiny_pipeline_dir, folder, tmp_path, again, epochs=EPOCHS, ckpt=checkpoint)
    assert untimed(again.history) == untimed(guard.history)
    assert digest(dict(module.named_parameters())) == weights
    bare = [g.run.record.model_copy(update={"history": ()}) for g in (guard, again)]
    assert bare[0] == bare[1]


def test_checkpoints_load_without_pickle_and_hold_kept_weights_once(whole):
    root, *_ = whole
    states = [
        torch.load(root / "kept" / f"step={step}.ckpt", weights_only=True)["basinguard"]
        for step in range(1, 2 * EPOCHS)
    ]
    assert [[part[how]["train_step"] for how in ("guarded", "plain")] for part in states] == [[0, 0], [0, 0], [2, 2]]
    assert all(part[how]["weights"] for part in states for how in part), "weights older than the checkpoint's own"


def fit_without_export(base, folder, root, monkeypatch, owner, broken_step):
    """An epoch whose export ends at a step of its own; its guard, and the checkpoint to go on from."""
    keep = saver(root / "kept", every_n_epochs=1)
    guard = make_guard(export_to=str(root / "shipped"), on_error="warn", terms=TERMS)
    with monkeypatch.context() as broken:
        broken.setattr(owner, broken_step, lambda *args, **kwargs: 1 / 0)
        with pytest.warns(UserWarning, match="nothing was exported to .*ZeroDivisionError"):
            fit(base, folder, root, guard, keep, epochs=1)
    return guard, keep.best_model_path


@pytest.mark.long
def test_a_finished_run_is_exported_when_it_is_resumed(tiny_pipeline_dir, folder, tmp_path, monkeypatch):
    step = guarded_run, "export_calibrated"
    first, checkpoint = fit_without_export(tiny_pipeline_dir, folder, tmp_path, monkeypatch, *step)
    assert not (tmp_path / "shipped").exists()
    second = make_guard(export_to=str(tmp_path / "shipped"), terms=TERMS)
    fit(tiny_pipeline_dir, folder, tmp_path, second, epochs=1, ckpt=checkpoint)
    assert (tmp_path / "shipped" / "basinguard.json").is_file()
    assert untimed(second.history) == untimed(first.history)


@pytest.mark.long  # calibration/test_record_builder.py has it without a run
def test_a_calibration_that_was_stopped_at_the_end_of_a_run_goes_on(tiny_pipeline_dir, folder, tmp_path, monkeypatch):
    """All is drawn, then the directory cannot be written: once more, only the card's three columns are drawn again."""
    drawn, sample = [], Trial.sample

    def counted(self, rule):
        drawn.append(len(self.pairs))
        return sample(self, rule)

    monkeypatch.setattr(Trial, "sample", counted)
    step = guarded_export, "export_directory"
    _, checkpoint = fit_without_export(tiny_pipeline_dir, folder, tmp_path, monkeypatch, *step)
    assert len(drawn) > 3
    drawn.clear()
    second = make_guard(export_to=str(tmp_path / "shipped"), terms=TERMS)
    fit(tiny_pipeline_dir, folder, tmp_path, second, epochs=1, ckpt=checkpoint)
    assert (tmp_path / "shipped" / "basinguard.json").is_file()
    assert drawn == [1, 1, 1]
    assert not (tmp_path / "shipped-samples").exists(), "nothing is left behind"


@pytest.mark.long  # training/test_status.py has it without averaging
def test_what_can_be_exported_are_averaged_weights_of_every_epoch(tiny_pipeline_dir, folder, tmp_path, monkeypatch):
    """The epoch to ship from before a resume comes from the checkpoint, the newer one from disk."""
    measure, probed_digests, exported_digests = Guard.measure, {}, {}

    def hopeless_at_the_end(self, model, *, epoch, **options):
        report = measure(self, model, epoch=epoch, **options)
        probed_digests[epoch] = digest({n: p for n, p in model.pipe.unet.named_parameters() if p.requires_grad})
        if epoch == 1:
            self.history[-1] = changed(report, transition=None)
        return self.history[-1]

    def shipped(guard, series, *args, **kwargs):
        for epoch in series.epochs:
            with series.at(epoch, 1.0):
                assert series.module.ema is None, "averaging would replace the kept weights"
                parameters = series.module.unet.named_parameters()
                exported_digests[epoch] = digest({n: p for n, p in parameters if p.requires_grad})

    monkeypatch.setattr(Guard, "measure", hopeless_at_the_end)
    monkeypatch.setattr(guarded_run, "export_calibrated", shipped)
    keep = saver(tmp_path / "kept", every_n_epochs=1)
    settings = {"model": {"ema_decay": 0.5}}
    fit(tiny_pipeline_dir, folder, tmp_path, make_guard(), keep, epochs=1, **settings)
    guard = make_guard(export_to=str(tmp_path / "shipped"))
    _, module = fit(tiny_pipeline_dir, folder, tmp_path, guard, epochs=2, ckpt=keep.best_model_path, **settings)
    assert exported_digests == {0: probed_digests[0], 1: probed_digests[1]}
    assert probed_digests[0] != probed_digests[1]
    assert module.ema is not None


@pytest.mark.long
def test_a_run_that_began_without_a_guard_has_no_baseline_and_says_so(tiny_pipeline_dir, folder, tmp_path):
    keep = saver(tmp_path / "kept", every_n_epochs=1)
    fit(tiny_pipeline_dir, folder, tmp_path, keep, epochs=1)
    guard = make_guard(on_error="warn")
    with pytest.warns(UserWarning, match="resumed at train step 2 without a history: the base model was not measured"):
        fit(tiny_pipeline_dir, folder, tmp_path, guard, epochs=2, ckpt=keep.best_model_path)
    assert [(report.epoch, report.samples.risk is None) for report in guard.history] == [(-1, True), (1, False)]


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        pytest.param({"plan": {"seeds": 2}}, "seeds was 1, is 2", marks=pytest.mark.long),
        pytest.param({"plan": {"scale": 4.0}}, "scale was 3.0, is 4.0", marks=pytest.mark.long),
        ({"control": ControlGroup(["a green cone"])}, "heldout was ['a blue box'], is ['a green cone']"),
    ],
)
def test_other_settings_do_not_continue_a_history(tiny_pipeline_dir, folder, tmp_path, whole, changes, difference):
    with pytest.raises(ValueError, match="resume with the settings of that run") as caught:
        fit(tiny_pipeline_dir, folder, tmp_path, make_guard(**changes), ckpt=whole[0] / "kept" / "step=1.ckpt")
    assert difference in str(caught.value)


def test_a_state_of_something_else_is_refused():
    with pytest.raises(ValueError, match=r"keys \['history'\]; expected guard and settings"):
        GuardedRun.load_state_dict(SimpleNamespace(), {"history": []})
