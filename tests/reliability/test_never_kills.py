"""Whatever a probe, a logger or the export meets: said once, a gap in the history, and training goes on."""

import warnings

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger

from basinguard.core.report import Report
from basinguard.exports import directory
from basinguard.guard.guard import Guard
from basinguard.guard.probe import Probe
from basinguard.plots.basin import curve_figure, history_figure
from support.guarded_runs import TERMS, Spy, fit, make_guard, picture_folder

NO_SPACE = OSError(28, "No space left on device")


def failing(error):
    def fail(*args, **kwargs):
        raise error

    return fail


def failing_denoiser(error):
    """A model that fails in the middle of sampling."""
    return lambda self, prompts: failing(error)


def nan_denoiser(self, prompts):
    return lambda x, timestep, prompt: torch.full_like(x, float("nan"))


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


MODEL = "basinguard.pipelines.latent_model.LatentModel"
PROBES = {
    "an exception": (
        f"{MODEL}.denoiser",
        failing(ZeroDivisionError("in the model")),
        "ZeroDivisionError: in the model",
    ),
    "NaN": (f"{MODEL}.denoiser", nan_denoiser, "not finite"),
    "out of memory": (
        f"{MODEL}.denoiser",
        failing_denoiser(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")),
        "OutOfMemoryError: CUDA out of memory",
    ),
    "no memory on the host": (f"{MODEL}.decode", failing(MemoryError("cannot allocate")), "MemoryError"),
    "a decoder's error": (f"{MODEL}.decode", failing(RuntimeError("shape mismatch")), "shape mismatch"),
}


def guarded_run(base, tmp_path, *callbacks, logger=None, **changes):
    """A run that must reach its end; with the warnings that it gave."""
    guard = make_guard(**{"on_error": "warn", **changes})
    spy, folder = Spy(), picture_folder(tmp_path / "pictures")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer, _ = fit(base, folder, tmp_path, spy, guard, *callbacks, logger=logger or CSVLogger(tmp_path))
    assert trainer.current_epoch == 2, "training did not reach its end"
    assert len(spy.losses) == 4
    return guard, [str(w.message) for w in caught if "training goes on" in str(w.message)]


QUICK = ("NaN",)


@pytest.mark.parametrize("kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.long) for k in PROBES])
def test_a_failing_probe_is_one_warning_and_gaps(tiny_pipeline_dir, tmp_path, monkeypatch, kind):
    where, replacement, problem = PROBES[kind]
    monkeypatch.setattr(where, replacement)
    guard, said = guarded_run(tiny_pipeline_dir, tmp_path)
    assert len(said) == 1
    assert problem in said[0]
    assert [(r.epoch, r.samples.risk, problem in r.problem) for r in guard.history] == [
        (e, None, True) for e in (-1, 0, 1)
    ]
    assert [Report.from_json(r.to_json()) for r in guard.history] == guard.history


def test_one_gap_between_two_measurements(tiny_pipeline_dir, tmp_path, monkeypatch):
    measure = Probe.report

    def sometimes(self, epoch, *rest):
        report = measure(self, epoch, *rest)
        if epoch == 0:
            raise RuntimeError("only in epoch 0")
        return report

    monkeypatch.setattr(Probe, "report", sometimes)
    guard, said = guarded_run(tiny_pipeline_dir, tmp_path)
    assert [report.problem for report in guard.history] == ["", "RuntimeError: only in epoch 0", ""]
    assert len(said) == 1
    line = history_figure(guard.history).axes[0].lines[0].get_ydata()
    assert [bool(torch.tensor(float(y)).isnan()) for y in line] == [False, True, False]
    assert len(curve_figure(guard.history).axes[0].lines) == 2


def test_early_stopping_waits_for_the_first_measurement(tiny_pipeline_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(Guard, "measure", failing(RuntimeError("never")))
    stop = EarlyStopping("guard/gap", check_on_train_epoch_end=True)
    keep = ModelCheckpoint(tmp_path / "kept", monitor="guard/gap", save_on_train_epoch_end=True)
    guarded_run(tiny_pipeline_dir, tmp_path, stop, keep)


class Board:
    add_image = add_figure = staticmethod(failing(NO_SPACE))


class FullBoard(Logger):
    """Takes scalars; its disk has no space for pictures."""

    name = version = "full"
    experiment = Board()

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params):
        pass


class FullAlbum(FullBoard):
    experiment = None
    log_image = staticmethod(failing(NO_SPACE))


@pytest.mark.parametrize("logger", [pytest.param(kind, marks=pytest.mark.long) for kind in (FullBoard, FullAlbum)])
def test_a_full_disk_while_logging_costs_the_pictures_only(tiny_pipeline_dir, tmp_path, logger):
    guard, said = guarded_run(tiny_pipeline_dir, tmp_path, logger=logger())
    assert [report.problem for report in guard.history] == ["", "", ""]
    assert len(said) == 1
    assert "No space left on device" in said[0]


@pytest.mark.long
def test_a_full_disk_while_exporting_leaves_nothing_and_raises_nothing(tiny_pipeline_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(directory, "write_card", failing(NO_SPACE))
    guard, said = guarded_run(tiny_pipeline_dir, tmp_path, export_to=str(tmp_path / "out" / "shipped"), terms=TERMS)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["shipped-epochs"], "what the search chose among"
    assert "nothing was exported" in said[0]
    assert "resume the last checkpoint" in said[0]
    assert guard.run.record is None


def test_raise_stops_at_the_first_problem(tiny_pipeline_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(Guard, "measure", failing(ZeroDivisionError("asked for")))
    with pytest.raises(ZeroDivisionError, match="asked for"):
        fit(tiny_pipeline_dir, picture_folder(tmp_path / "pictures"), tmp_path, make_guard(on_error="raise"))


def test_ctrl_c_in_a_probe_is_no_failed_probe(tiny_pipeline_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(Guard, "measure", interrupt)
    guard = make_guard(on_error="warn")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tiny_pipeline_dir, picture_folder(tmp_path / "pictures"), tmp_path, guard)
    assert guard.history == []
