"""`basinguard fit`: every shipped config parses and fits its classes, and one command trains."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from basinguard.adapters.finetune import FineTune
from basinguard.adapters.finetune_cli import QUIET, FineTuneCLI, fit_cli
from basinguard.adapters.images import ImageFolder

pytestmark = [pytest.mark.filterwarnings(f"ignore:{message}") for message in QUIET]
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.fixture(autouse=True)
def restored_filters(monkeypatch):
    """`fit_cli` owns its process; a test does not."""
    monkeypatch.setattr("basinguard.adapters.finetune_cli.quiet_lightning", lambda: None)


def parse(monkeypatch, config, *more):
    """Parses as `basinguard fit` does, and stops before anything is built."""
    parsed = {}

    def stop(self):
        parsed["fit"] = self.config["fit"]
        raise SystemExit(0)

    monkeypatch.setattr(FineTuneCLI, "before_instantiate_classes", stop)
    with pytest.raises(SystemExit):
        fit_cli(["--config", str(config), *more])
    return parsed["fit"]


def test_all_configs_are_there():
    expected = {"tinyworld_lora", "tinyworld_full", "sd21_lora", "sd21_full", "sd21_base_lora", "sd21_768_lora"}
    assert expected <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_parses_and_its_header_is_true(path, monkeypatch):
    config = parse(monkeypatch, path, "--data.init_args.directory", "photos")
    assert config.data.init_args.directory == "photos"
    assert config.model.class_path.endswith("finetune.FineTune")
    text = path.read_text(encoding="utf-8")
    assert all(re.search(rf"^# .*{word}: ", text, re.MULTILINE) for word in ("Purpose", "Launch", "Expect", "Memory"))
    assert f"basinguard fit --config configs/{path.name} --data.init_args.directory DIR" in text
    assert config.trainer.default_root_dir == f"runs/{path.stem}"
    images = ImageFolder(**config.data.init_args.as_dict())
    assert not (config.model.init_args.cache and images.augments)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_builds_on_a_small_model(path, tiny_pipeline_dir):
    options = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["init_args"]
    assert FineTune(**{**options, "base": str(tiny_pipeline_dir)}).trained()


def test_one_command_trains(tiny_pipeline_dir, scene_folder, tmp_path):
    config = next(path for path in CONFIGS if path.stem == "tinyworld_lora")
    cli = fit_cli(
        [
            "--config", str(config), "--data.init_args.directory", str(scene_folder), "--data.init_args.resolution=32",
            f"--model.init_args.base={tiny_pipeline_dir}", "--trainer.max_epochs=2", "--trainer.accelerator=cpu",
            f"--trainer.default_root_dir={tmp_path}", "--trainer.enable_progress_bar=false",
        ]
    )  # fmt: skip
    assert cli.trainer.global_step == 2
    last = next(tmp_path.rglob("last.ckpt"))
    assert torch.load(last, weights_only=True)["global_step"] == 2
    assert next(tmp_path.rglob("config.yaml")).is_file()


def test_a_bad_plan_is_refused_before_weights_are_loaded(tiny_pipeline_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "basinguard.adapters.finetune.load_pipeline", lambda *_, **__: pytest.fail("weights were loaded")
    )
    with pytest.raises(ValueError, match=r"(?s)nothing was trained; 1 problem.*nowhere: no such folder"):
        fit_cli([
            "--model", "FineTune", f"--model.init_args.base={tiny_pipeline_dir}", "--data", "ImageFolder",
            f"--data.init_args.directory={tmp_path / 'nowhere'}", "--data.init_args.resolution=32",
        ])  # fmt: skip


def test_a_misspelt_option_is_named(capsys):
    with pytest.raises(SystemExit):
        fit_cli(["--config", str(CONFIGS[0]), "--model.init_args.rnak=4"])
    assert "rnak" in capsys.readouterr().err


def test_help_explains_every_argument(capsys):
    with pytest.raises(SystemExit):
        fit_cli(["--model.help=FineTune"])
    said = capsys.readouterr().out
    assert "unconditional" in said  # from the docstring of caption_dropout
    assert "--model.min_snr_gamma" in said
