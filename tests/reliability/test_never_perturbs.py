"""With and without the guard, training is the same to the last bit, in every mode and with every kind of probe."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from basinguard.guard.guard import Guard
from basinguard.training.callback import GuardHooks
from basinguard.training.guard_options import ControlGroup
from basinguard.training.lightning import MemorizationGuard
from support.guarded_runs import TERMS, Spy, digest, fit, make_guard, picture_folder, state_of

TRAINING = {
    "lora": {},
    "full": {"model": {"method": "full"}},
    "text encoder, dropout": {"model": {"train_text_encoder": True, "dropout": 0.2, "caption_dropout": 0.3}},
    "average": {"model": {"method": "full", "ema_decay": 0.9}},
    "accumulated": {"trainer": {"accumulate_grad_batches": 3}, "epochs": 3},
    "average, accumulated": {"model": {"ema_decay": 0.9}, "trainer": {"accumulate_grad_batches": 2}},
    "bf16 weights": {"model": {"method": "full", "weights": "bfloat16"}},
    "bf16 mixed": {"model": {"method": "full"}, "trainer": {"precision": "bf16-mixed"}},
    "keep unconditional, full": {"model": {"method": "full", "keep_unconditional": 1.0}},
    "keep unconditional, lora": {"model": {"keep_unconditional": 1.0, "schedule": "cosine"}},
    "activation checkpoints": {"model": {"method": "full", "gradient_checkpointing": True}},
    "cached": {"model": {"cache": True}},
    "clipped": {"trainer": {"gradient_clip_val": 0.1}},
}
PROBES = {
    "default": {},
    "bf16": {"plan": {"autocast": "bfloat16"}},
    "every second epoch": {"every_n_epochs": 2},
    "many seeds and steps": {"plan": {"seeds": 3, "timesteps": 5, "captions": 4}},
    "no control group": {"control": ControlGroup()},
    "little guidance": {"plan": {"scale": 1.25}},
    "tight budget": {"plan": {"budget": 12}},
    "share of the time": {"plan": {"budget": "50%"}},
    "ships": {"export_to": "shipped", "terms": TERMS},
    "pictures": {"pictures": True},
    "fails": {"on_error": "warn", "fails": True},
}
FAILED = pytest.mark.filterwarnings("ignore:the probe of .* training goes on. RuntimeError. in the middle of a probe$")
QUICK = [("full", "default"), ("average, accumulated", "fails")]  # the others, and more, in the long tier
EVERY = [(mode, "default") for mode in TRAINING] + [("full", probe) for probe in PROBES]
PAIRS = [
    pytest.param(*pair, marks=[FAILED] * (pair[1] == "fails") + [pytest.mark.long] * (pair not in QUICK))
    for pair in [*QUICK, *(pair for pair in EVERY if pair not in QUICK)]
]
BARE = {}


def harmful(self, model, **kwargs):
    """A probe that draws, trains and then fails."""
    torch.rand(3)
    model.pipe.unet.train()
    raise RuntimeError("in the middle of a probe")


def trace(base, folder, root, mode, *callbacks, **options):
    spy = Spy()
    settings = TRAINING[mode]
    fit(base, folder, root, spy, *callbacks, **{"epochs": 2, **settings, **options})
    return spy, digest(torch.rand(2))


@pytest.mark.parametrize(("mode", "probe"), PAIRS)
def test_training_is_the_same_to_the_bit(tiny_pipeline_dir, tmp_path, monkeypatch, mode, probe):
    folder = picture_folder(tmp_path / "pictures")
    settings = dict(PROBES[probe])
    logger = TensorBoardLogger(tmp_path / "board") if settings.pop("pictures", False) else False
    if settings.pop("fails", False):
        monkeypatch.setattr(Guard, "measure", harmful)
    if "export_to" in settings:
        settings["export_to"] = str(tmp_path / "shipped")
    if mode not in BARE:
        BARE[mode] = trace(tiny_pipeline_dir, folder, tmp_path / "bare", mode)
    bare, after_bare = BARE[mode]
    guard = make_guard(**settings)
    guarded, after = trace(tiny_pipeline_dir, folder, tmp_path / "guarded", mode, guard, logger=logger)
    assert len(guard.history) >= 2, "nothing was probed, so nothing was proven"
    assert guarded.batches == bare.batches, "data order or a random stream differs"
    assert guarded.losses == bare.losses
    assert guarded.end == bare.end
    assert after == after_bare, "a random stream differs after training"


class Watched(MemorizationGuard):
    """Compares the whole state of training around every hook."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.trained_with, self.called = None, set()


def _watched(name):
    def hook(self, *args, **kwargs):
        if len(args) > 1 and isinstance(args[0], pl.Trainer):
            self.trained_with = args[:2]
        before = {k: digest(v) for k, v in state_of(*self.trained_with).items()} if self.trained_with else None
        result = getattr(MemorizationGuard, name)(self, *args, **kwargs)
        if before is not None:
            after = {k: digest(v) for k, v in state_of(*self.trained_with).items()}
            assert after == before, f"{name} changed {[k for k in before if before[k] != after[k]]}"
        self.called.add(name)
        return result

    return hook


HOOKS = {n for n in vars(GuardHooks) if callable(getattr(pl.Callback, n, None)) and not n.startswith("_")}
for _name in HOOKS:
    setattr(Watched, _name, _watched(_name))


@pytest.mark.long  # that runs are the same to the bit is the same seen from their end
def test_every_hook_leaves_weights_optimizer_gradients_modes_and_streams(tiny_pipeline_dir, tmp_path):
    folder, keep = picture_folder(tmp_path / "pictures"), ModelCheckpoint(tmp_path / "kept", save_last=True)
    settings = {"model": {"ema_decay": 0.5}, "trainer": {"accumulate_grad_batches": 2}}
    first = make_guard(Watched)
    fit(tiny_pipeline_dir, folder, tmp_path, first, keep, epochs=1, **settings)
    second = make_guard(Watched, export_to=str(tmp_path / "shipped"), terms=TERMS)
    fit(tiny_pipeline_dir, folder, tmp_path, second, epochs=2, ckpt=tmp_path / "kept" / "last.ckpt", **settings)
    assert first.called | second.called == HOOKS
    assert (tmp_path / "shipped" / "basinguard.json").is_file()


@pytest.mark.long
def test_the_comparison_sees_one_flipped_bit(tiny_pipeline_dir, tmp_path):
    class Clumsy(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            parameter = next(p for p in pl_module.parameters() if p.requires_grad)
            parameter.data.view(-1)[0] = torch.nextafter(parameter.data.view(-1)[0], torch.tensor(9.0))

    folder = picture_folder(tmp_path / "pictures")
    bare, _ = trace(tiny_pipeline_dir, folder, tmp_path, "lora", epochs=1)
    clumsy, _ = trace(tiny_pipeline_dir, folder, tmp_path, "lora", Clumsy(), epochs=1)
    assert {key for key in bare.end if bare.end[key] != clumsy.end[key]} == {"weights"}
