"""The callback on a tiny random pipeline: it measures, can be monitored, resumes, and never touches training."""

import csv
import warnings
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image

from basinguard.core.metric import Metric
from basinguard.guard.budget import Budget
from basinguard.guard.guard import Guard
from basinguard.guard.plan import ProbePlan
from basinguard.guard.training_set import TrainingSet
from basinguard.pipelines.loading import load_pipeline
from basinguard.similarity.copy_detector_settings import CopyDetectorSettings
from basinguard.similarity.detector_loading import require_threshold
from basinguard.similarity.embedder import WithThreshold
from basinguard.similarity.structure import Structure
from basinguard.similarity.thresholds import NO_COPY
from basinguard.training.data import ImageFolder
from basinguard.training.finetune import FineTune
from basinguard.training.finetune_options import OptimizerOptions
from basinguard.training.guard_options import BreachResponse, ControlGroup
from basinguard.training.guarded_run import GuardedRun
from basinguard.training.protocols import PipelineInTraining
from basinguard.training.requirements import require_parts
from support.guarded_runs import make_guard as small_guard


def blocks(directory, name, captions, seed):
    """A folder with a picture of random blocks for each caption."""
    directory.mkdir()
    generator = torch.Generator().manual_seed(seed)
    for k, caption in enumerate(captions):
        pixels = (torch.rand(8, 8, 3, generator=generator) * 255).byte().numpy()
        Image.fromarray(pixels).resize((64, 64), Image.Resampling.NEAREST).save(directory / f"{name} {k}.png")
        (directory / f"{name} {k}.txt").write_text(caption)
    return directory


@pytest.fixture
def folder(tmp_path):
    captions = ["a red ball", *(f"a red ball {k}" for k in range(1, 4))]
    return blocks(tmp_path / "art works", "image", captions, seed=0)


def make_guard(plan=None, **settings):
    return small_guard(plan={"timesteps": 3, **(plan or {})}, **settings)


def fit(base, folder, root, *callbacks, epochs=2, ckpt=None, logger=False, **limits):
    pl.seed_everything(1, workers=True, verbose=False)
    model = FineTune(str(base), method="full", optimizer=OptimizerOptions(learning_rate=1e-3))
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", default_root_dir=root, callbacks=list(callbacks), logger=logger,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks), **limits,
    )  # fmt: skip
    trainer.fit(model, datamodule=ImageFolder(str(folder), resolution=32, batch_size=2), ckpt_path=ckpt)
    return trainer, model


@pytest.mark.long  # the tests of a run that changes or goes on have it too
def test_base_and_every_epoch_are_in_the_history(tiny_pipeline_dir, folder, tmp_path):
    guard = make_guard()
    fit(tiny_pipeline_dir, folder, tmp_path, guard)
    assert [report.epoch for report in guard.history] == [-1, 0, 1]
    assert [report.train_step for report in guard.history] == [0, 2, 4]
    assert guard.history[0].gaps.train.value != guard.history[2].gaps.train.value
    assert all(report.unet_evals > 0 for report in guard.history)


@pytest.mark.long  # the default tier has it in test_status.py: Lightning's own callbacks
def test_a_metric_can_be_monitored_in_the_epoch_it_is_logged(tiny_pipeline_dir, folder, tmp_path):
    stop = EarlyStopping("guard/gap", patience=0, mode="min", check_on_train_epoch_end=True, min_delta=1e9)
    keep = ModelCheckpoint(tmp_path / "kept", monitor="guard/gap", save_on_train_epoch_end=True, filename="best")
    trainer, _ = fit(tiny_pipeline_dir, folder, tmp_path, stop, keep, make_guard(), epochs=5)
    assert trainer.current_epoch == 2, "EarlyStopping saw no improvement of 1e9 in the second epoch"
    assert float(keep.best_model_score) == pytest.approx(float(stop.best_score), rel=1)
    assert keep.best_model_path


@pytest.mark.long  # the default tier has the same in test_resume.py
def test_resuming_gives_the_history_of_an_uninterrupted_run(tiny_pipeline_dir, folder, tmp_path):
    whole = make_guard()
    fit(tiny_pipeline_dir, folder, tmp_path / "whole", whole, epochs=3)
    first, second = make_guard(), make_guard()
    keep = ModelCheckpoint(tmp_path / "kept", save_last=True)
    fit(tiny_pipeline_dir, folder, tmp_path / "first", first, keep, epochs=2)
    fit(tiny_pipeline_dir, folder, tmp_path / "second", second, epochs=3, ckpt=tmp_path / "kept" / "last.ckpt")
    untimed = [[r.model_copy(update={"seconds": 0.0}) for r in guard.history] for guard in (whole, second)]
    assert untimed[0] == untimed[1]


@pytest.mark.long  # the default tier has the board in test_status.py
def test_loggers_get_the_scalars_and_tensorboard_the_pictures(tiny_pipeline_dir, folder, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board, table = TensorBoardLogger(tmp_path, "board", "v"), CSVLogger(tmp_path, "table", "v")
    fit(tiny_pipeline_dir, folder, tmp_path, make_guard(), logger=[board, table], epochs=1)
    assert "guard_details/width" in (tmp_path / "table" / "v" / "metrics.csv").read_text().splitlines()[0]
    events = EventAccumulator(str(tmp_path / "board" / "v"))
    events.Reload()
    assert {"guard/risk", "guard_details/width", "guard_details/gap", "guard_details/gap_since_base"} <= set(
        events.Tags()["scalars"]
    )
    assert {"guard_details/curve", "guard/contact_sheet"} <= set(events.Tags()["images"])


@pytest.mark.long  # reliability/test_never_kills.py has it
def test_a_failing_probe_is_reported_and_training_goes_on(tiny_pipeline_dir, folder, tmp_path, monkeypatch):
    guard = make_guard(on_error="warn")
    monkeypatch.setattr(Guard, "measure", lambda *a, **k: 1 / 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer, _ = fit(tiny_pipeline_dir, folder, tmp_path, guard)
    assert trainer.current_epoch == 2
    messages = [str(w.message) for w in caught if "probe of " in str(w.message)]
    assert len(messages) == 1, "the same problem is reported once"
    assert "the probe of the base model failed and is missing; training goes on: ZeroDivisionError" in messages[0]
    assert [report.problem[:17] for report in guard.history] == ["ZeroDivisionError"] * 3


@pytest.mark.long  # the next test has one of its runs
def test_a_budget_buys_gaps_first_and_a_report_without_samples_is_read_as_one(tiny_pipeline_dir, folder, tmp_path):
    """Nothing, gaps alone, samples, exits; what only the base measured can be monitored and is not logged again."""
    nothing, gaps, exits = (make_guard({"budget": evals}) for evals in (2, 11, 200))
    stop = EarlyStopping("guard/risk", check_on_train_epoch_end=True, patience=9)
    fit(tiny_pipeline_dir, folder, tmp_path / "nothing", nothing, stop, epochs=3)
    assert [report.epoch for report in nothing.history] == [-1]
    assert stop.wait_count == 2, "the base model's risk could be monitored in every epoch"
    logger = CSVLogger(tmp_path / "gaps", name="", version="")
    keep = ModelCheckpoint(tmp_path / "kept", monitor="guard/risk", save_on_train_epoch_end=True)
    fit(tiny_pipeline_dir, folder, tmp_path / "gaps", gaps, keep, EarlyStopping("guard/risk"), logger=logger)
    assert [(r.epoch, r.samples.risk is None, r.gaps.since_base is None) for r in gaps.history[1:]] == [
        (0, True, False),
        (1, True, False),
    ]
    assert "gap of 4 of 4 captions; no samples; exits take" in gaps.history[-1].precision
    assert gaps.run.best_weights.epochs["guarded"].epoch == 1, "no samples do not say that no transition protects"
    rows = list(csv.DictReader((tmp_path / "gaps" / "metrics.csv").read_text().splitlines()))
    steps = {name: [row["step"] for row in rows if row.get(name)] for name in ("guard_details/gap", "guard/risk")}
    assert len(steps["guard_details/gap"]) == 3
    assert len(steps["guard/risk"]) == 1, "the base model's"
    fit(tiny_pipeline_dir, folder, tmp_path / "exits", exits)
    assert all(report.searched and report.unet_evals <= 200 for report in exits.history[1:])


def test_what_was_measured_may_change_from_probe_to_probe(tiny_pipeline_dir, folder, tmp_path, monkeypatch):
    """Gaps, exits, gaps, as spans and prices would have it: all of it stays monitored, loggers get what is new."""
    guard, measure = make_guard({"budget": 11}), Guard.measure

    def in_turns(self, model, *, epoch, **options):
        self.spending.budget = Budget(evals=200 if epoch == 1 else 11)
        return measure(self, model, epoch=epoch, **options)

    monkeypatch.setattr(Guard, "measure", in_turns)
    keep = ModelCheckpoint(tmp_path / "kept", monitor="guard/width", save_on_train_epoch_end=True)
    logger = CSVLogger(tmp_path / "table", name="", version="")
    trainer, _ = fit(tiny_pipeline_dir, folder, tmp_path, guard, keep, epochs=3, logger=logger)
    assert [report.searched for report in guard.history] == [True, False, True, False]
    rows = list(csv.DictReader((tmp_path / "table" / "metrics.csv").read_text().splitlines()))
    logged_epochs = {
        name: [row["epoch"] for row in rows if row.get(name)] for name in ("guard_details/gap", "guard_details/width")
    }
    assert logged_epochs == {"guard_details/gap": ["", "0", "1", "2"], "guard_details/width": ["", "1"]}
    assert float(trainer.callback_metrics["guard/width"]) == pytest.approx(guard.history[2].basin.width.value)


def test_what_only_an_interrupted_run_measured_can_still_be_monitored(tiny_pipeline_dir, folder, tmp_path):
    """Resumed after a probe without samples: `guard/risk` is the base model's, as it would be without interruption."""
    save = ModelCheckpoint(tmp_path / "kept", save_last=True)
    fit(tiny_pipeline_dir, folder, tmp_path, make_guard({"budget": 12}), save, epochs=1)
    stop = EarlyStopping("guard/risk", check_on_train_epoch_end=True, patience=9)
    last = tmp_path / "kept" / "last.ckpt"
    trainer, _ = fit(tiny_pipeline_dir, folder, tmp_path, make_guard({"budget": 12}), stop, epochs=2, ckpt=last)
    assert "guard/risk" in trainer.callback_metrics


def test_every_n_epochs():
    guard = make_guard(every_n_epochs=3)
    assert [epoch for epoch in range(9) if guard.should_probe(epoch)] == [2, 5, 8]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"plan": {"captions": 9}}, "asks for 9 captions, but the training set has 4"),
        ({"control": ControlGroup(["a red ball"])}, "held-out prompts must not be training captions"),
    ],
)
def test_what_cannot_be_measured_is_said_before_training(tiny_pipeline_dir, folder, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        fit(tiny_pipeline_dir, folder, tmp_path, make_guard(**settings))


WRONG_PLANS = ({"seeds": 0}, {"alpha": 0.0}, {"budget": 0.1})


@pytest.mark.parametrize("settings", [{"every_n_epochs": 0}, *({"plan": plan} for plan in WRONG_PLANS)])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="expected"):
        make_guard(**settings)


def held_out_folder(root):
    return str(blocks(root / "held out", "other", [f"a green cone {k}" for k in range(3)], seed=9))


@pytest.mark.long  # similarity/test_thresholds.py has it without a run
def test_held_out_images_another_sampler_and_a_measured_threshold(tiny_pipeline_dir, folder, tmp_path):
    guard = make_guard(
        {"solver": "heun", "critical_scales": 2, "order_checks": 1},
        control=ControlGroup(folder=held_out_folder(tmp_path)),
        detector=CopyDetectorSettings(threshold="heldout"),
    )
    fit(tiny_pipeline_dir, folder, tmp_path, guard, epochs=1)
    last = guard.history[-1]
    assert last.critical_scales.sigma_c is not None
    assert last.critical_scales.excess is not None, "held-out images are its control"
    assert next(group for group in last.groups if group.name == "heldout").captions == 3
    assert guard.run.guard.plan.solver == "heun"
    assert guard.run.guard.plan.order_checks == 1
    metric = guard.run.guard.embedder.metric
    assert metric.threshold >= Structure().metric.threshold, "three images are few: no lower than published"
    assert "null held-out" in metric.source


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: make_guard(detector=CopyDetectorSettings("sharp")),
            "embedder 'sharp' given; expected one of structure",
        ),
        (lambda: make_guard(detector=CopyDetectorSettings("sscd_disc_mixup_320=no such file")), "no such file"),
        (lambda: make_guard({"solver": "euler_a"}), "expected one of ddim"),
        (lambda: CopyDetectorSettings(threshold="guess"), "expected one of published, neighbours, heldout"),
        (lambda: make_guard(detector=CopyDetectorSettings(threshold="heldout")), r"give ControlGroup\(folder="),
        (lambda: ControlGroup(["a blue box"], "somewhere"), "give one of them"),
        (lambda: make_guard(control=ControlGroup(folder="nowhere")), "no such folder"),
        (lambda: make_guard({"critical_scales": -1}), "0 or more"),
        (lambda: ControlGroup("a blue box"), "expected a list of prompts"),
        (lambda: BreachResponse(watches="both"), "expected plain or guarded"),
    ],
)
def test_settings_that_contradict_are_refused_when_the_guard_is_made(make, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make()


def test_an_eye_without_a_threshold_needs_one_measured():
    class Unknown:
        name = "unknown"
        metric = Metric(embedder="unknown", threshold=NO_COPY, source="none published")

    with pytest.raises(ValueError, match="no threshold is published for unknown: nothing would ever be a copy"):
        require_threshold(CopyDetectorSettings(), Unknown())
    require_threshold(CopyDetectorSettings(threshold="neighbours"), Unknown())


def test_neighbours_that_are_copies_of_each_other_measure_no_threshold(tiny_pipeline_dir, folder, tmp_path):
    Image.open(folder / "image 1.png").save(folder / "image 2.png")
    with pytest.raises(ValueError, match="threshold='neighbours' cannot be measured: two training images"):
        fit(tiny_pipeline_dir, folder, tmp_path, make_guard(detector=CopyDetectorSettings(threshold="neighbours")))


def test_a_history_seen_with_another_eye_is_not_continued():
    training = TrainingSet(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), ("a", "b"))
    strict = WithThreshold(Structure(), Structure().metric.model_copy(update={"threshold": 0.9}))
    state = GuardedRun(Guard(training, Structure(), ProbePlan(captions=2))).state_dict()
    with pytest.raises(ValueError, match=r"threshold was .*, is 0\.9\. .*resume with the settings of that run"):
        GuardedRun(Guard(training, strict, ProbePlan(captions=2))).load_state_dict(state)


@pytest.mark.parametrize(
    ("epochs", "limits"),
    [
        pytest.param(2, {}, id="last epoch", marks=pytest.mark.long),
        pytest.param(9, {"max_steps": 3}, id="stopped within"),
    ],
)
def test_the_end_of_a_run_is_a_probe(tiny_pipeline_dir, folder, tmp_path, epochs, limits):
    """every_n_epochs=5 in a shorter run: the trained weights are measured and held, never the untouched base alone."""
    guard = make_guard(every_n_epochs=5)
    trainer, _ = fit(tiny_pipeline_dir, folder, tmp_path, guard, epochs=epochs, **limits)
    assert [(report.epoch, report.train_step) for report in guard.history] == [(-1, 0), (1, trainer.global_step)]


def test_each_fit_has_a_history_of_its_own(tiny_pipeline_dir, folder, tmp_path):
    guard, others = make_guard(), blocks(tmp_path / "others", "other", ["a blue kite", "a grey cat"], seed=5)
    fit(tiny_pipeline_dir, folder, tmp_path, guard, epochs=1)
    first = guard.run
    trainer, model = fit(tiny_pipeline_dir, others, tmp_path, guard, epochs=1)
    assert guard.run.guard.training.captions == ("a blue kite", "a grey cat")
    assert first.guard.training.captions[0] == "a red ball"
    assert [report.epoch for report in guard.history] == [-1, 0]
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, datamodule=trainer.datamodule)
    assert [report.epoch for report in guard.history] == [-1, 0, 1], "trained further: the same run"


class Validated(FineTune):
    def validation_step(self, batch, batch_idx):
        return None


class WithValidation(ImageFolder):
    def val_dataloader(self):
        return torch.utils.data.DataLoader([0])


def test_validation_within_the_first_epoch_does_not_end_a_run_that_waits_for_the_guard(
    tiny_pipeline_dir, folder, tmp_path
):
    stop, keep = EarlyStopping("guard/risk", patience=9), ModelCheckpoint(tmp_path / "kept", monitor="guard/risk")
    guard = make_guard()
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        val_check_interval=1, num_sanity_val_steps=0, callbacks=[stop, keep, guard], default_root_dir=tmp_path,
    )  # fmt: skip
    model = Validated(str(tiny_pipeline_dir), method="full", optimizer=OptimizerOptions(learning_rate=1e-3))
    trainer.fit(model, datamodule=WithValidation(str(folder), resolution=32, batch_size=2))
    assert len(guard.history) == 3
    assert keep.best_model_path
    assert stop.strict, "once everything was measured, a misspelt name is an error again"


def test_what_an_export_needs_is_asked_for_before_training():
    data, module = SimpleNamespace(items=1, all_pixels=1), SimpleNamespace(pipe=1, base_id="x")
    require_parts(data, module)
    with pytest.raises(TypeError, match="the LightningModule has no export_pipeline"):
        require_parts(data, module, exported=True)


def test_the_scheduler_that_adds_noise_is_not_exported_as_the_sampler(tiny_pipeline_dir):
    pipe = load_pipeline(tiny_pipeline_dir)
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    exported = PipelineInTraining(pipe).export_pipeline()
    assert type(exported.scheduler) is DDIMScheduler
    assert exported.scheduler.config.prediction_type == pipe.scheduler.config.prediction_type
    assert torch.equal(exported.scheduler.alphas_cumprod, pipe.scheduler.alphas_cumprod)
    assert type(pipe.scheduler) is DDPMScheduler
    assert len(exported.components) == len(pipe.components)
