"""`basinguard fit`: every shipped config parses and fits its classes, and one command trains."""

import re
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from basinguard.guard.guard import Guard
from basinguard.guard.plan import ProbePlan
from basinguard.guard.probe_costs import probe_evals, probe_limit
from basinguard.guard.training_set import TrainingSet
from basinguard.pipelines.architecture import sd21_config, sdxl_config
from basinguard.pipelines.latent_model import LatentModel
from basinguard.pipelines.loading import load_pipeline
from basinguard.similarity.structure import Structure
from basinguard.training import finetune, resources
from basinguard.training import fit_cli as fit_module
from basinguard.training.data import ImageFolder
from basinguard.training.dry_run import dry_run_summary
from basinguard.training.fit_cli import FineTuneCLI, fit_cli
from basinguard.training.lightning import MemorizationGuard
from basinguard.training.memory_footprint import configs_of, footprint
from support.sd35_config import sd35_config

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
# differ from sdxl_lora in base and resolution alone, or are started by other tests of this file
SIBLINGS = {path.stem for path in CONFIGS} - {"sdxl_lora"}


@pytest.fixture(autouse=True)
def restored_filters(monkeypatch):
    """`fit_cli` owns its process; a test does not."""
    monkeypatch.setattr(fit_module, "quiet_lightning", lambda: None)


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
    assert expected | {"sdxl_lora", "sdxl_full", "sd3_lora"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_parses_and_its_header_is_true(path, monkeypatch):
    config = parse(monkeypatch, path, "--data.init_args.directory", "photos")
    assert config.data.init_args.directory == "photos"
    assert config.model.class_path.endswith("FineTune")
    text = path.read_text(encoding="utf-8")
    assert all(re.search(rf"^# .*{word}: ", text, re.MULTILINE) for word in ("Purpose", "Launch", "Expect", "Memory"))
    assert f"basinguard fit --config configs/{path.name} --data.init_args.directory DIR" in text
    assert config.trainer.default_root_dir == f"runs/{path.stem}"
    images = ImageFolder(**config.data.init_args.as_dict())
    assert not (config.model.init_args.memory.cache and images.augments)


DIRECTORIES = {"sdxl": "tiny_xl_dir", "sd3": "tiny_sd3_dir"}
SMALL = {"architecture": "any", "prediction_type": None}  # the tiny pipelines are no Stable Diffusion 2, and no XL
SIZES = ["--data.init_args.resolution=32", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def on_small_model(config, base, folder, *more):
    """What follows `basinguard fit` to run a shipped config on a tiny pipeline."""
    options = [f"--model.init_args.{name}={value or 'null'}" for name, value in SMALL.items()]
    return [
        "--config", str(config), f"--model.init_args.base={base}", f"--data.init_args.directory={folder}", *options,
        "--data.init_args.num_workers=0", *SIZES, *more,
    ]  # fmt: skip


def for_six_images(path, tmp_path, plan=None, **guard):
    """The config as shipped, with a probe that fits a set of six images."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings = config["trainer"]["callbacks"][-1]["init_args"]
    settings["plan"] |= {"captions": 2, **(plan or {})}
    settings |= guard
    (tmp_path / path.name).write_text(yaml.safe_dump(config))
    return tmp_path / path.name


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=p.stem, marks=pytest.mark.long if p.stem in SIBLINGS else ()) for p in CONFIGS],
)
def test_a_config_is_dry_run(path, request, scene_folder, tmp_path):
    base = request.getfixturevalue(DIRECTORIES.get(path.stem.split("_")[0], "tiny_pipeline_dir"))
    cli = fit_cli(["--dry-run", *on_small_model(for_six_images(path, tmp_path), base, scene_folder)])
    output = dry_run_summary(cli)
    assert cli.trainer.global_step == 0
    assert output.startswith("model:  "), "the configuration is asked for by --print_config"
    assert len(output.splitlines()) <= 12
    config = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))
    assert config["model"]["init_args"]["base"] == str(base)
    assert config["trainer"]["callbacks"][-1]["class_path"].endswith("MemorizationGuard")
    updates = -(-6 // config["data"]["init_args"]["batch_size"])
    assert f"6 images, batches of {config['data']['init_args']['batch_size']}: " in output
    assert f"{-(-updates // config['trainer']['accumulate_grad_batches'])} updates an epoch" in output
    assert re.search(r"memory: \d+\.\d GB at most \(weights ", output)
    assert "2 captions x 2 seeds" in output
    pairs = config["trainer"]["callbacks"][-1]["init_args"]["terms"]["pairs"]
    assert f"calibrates on at most {24 * -(-3 * pairs // 48)} pairs" in output  # rounds of 24, half as many again
    assert re.search(r"time:   training about \d[\d.]* (s|min|h), probes at most \d", output)
    assert "nothing was trained" in output.splitlines()[-1]


SLOW = {path.stem for path in CONFIGS} - {"tinyworld_lora"}
REAL = {"sd21": sd21_config, "sdxl": sdxl_config, "sd3": sd35_config}


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=pytest.mark.long if p.stem in SLOW else ()) for p in CONFIGS]
)
def test_the_header_says_the_memory_and_disk_of_the_real_model(path, monkeypatch):
    """Stable Diffusion's from the packaged configuration, as no weights are at hand."""
    config = parse(monkeypatch, path, "--data.init_args.directory", "photos")
    if read := REAL.get(path.stem.split("_")[0]):
        configs = configs_of(read)
        monkeypatch.setattr(
            resources, "footprint_of", lambda base, workload: footprint(configs, replace(workload, gpu=True))
        )
    needs, text = resources.resources_of(config), path.read_text(encoding="utf-8")
    assert re.search(r"Memory: +([\d.]+) GB", text)[1] == f"{needs.footprint.peak / 1e9:.1f}"
    if read:
        sizes = f"{needs.checkpoints} checkpoints of {needs.checkpoint_size / 1e9:.2f} GB"
        assert f"{sizes}, export {needs.footprint.weights / 1e9:.1f} GB." in text


@pytest.mark.long  # training/test_memory.py measures weights and moments
def test_the_checkpoint_size_is_that_of_a_real_one(tiny_pipeline_dir, scene_folder, tmp_path):
    path = for_six_images(next(path for path in CONFIGS if path.stem == "tinyworld_full"), tmp_path)
    cli = fit_cli(["--dry-run", *on_small_model(path, tiny_pipeline_dir, scene_folder)])
    computed = resources.resources_of(cli.config).checkpoint_size
    cli.trainer.strategy.connect(cli.model)
    cli.model.trainer = cli.trainer
    optimizer = torch.optim.AdamW(cli.model.trained().values())
    for parameter in cli.model.trained().values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.save({"weights": cli.model.trained(), "optimizer": optimizer.state_dict()}, tmp_path / "real.pt")
    headers = 1024 * 4 * len(cli.model.trained())  # the file's own record of each weight, step and moment: below 1 kB
    assert computed <= (tmp_path / "real.pt").stat().st_size <= computed + headers


Free = namedtuple("Free", "available")
Disk = namedtuple("Disk", "free")


def test_too_little_memory_or_disk_is_said_before_weights_are_loaded(
    tiny_pipeline_dir, scene_folder, tmp_path, monkeypatch
):
    path = for_six_images(next(path for path in CONFIGS if path.stem == "tinyworld_full"), tmp_path)
    monkeypatch.setattr(finetune, "load_pipeline", lambda *_, **__: pytest.fail("weights were loaded"))
    monkeypatch.setattr(resources.psutil, "virtual_memory", lambda: Free(1e8))
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda _: Disk(1e6))
    with pytest.raises(ValueError, match="this machine is too small for it") as caught:
        fit_cli(on_small_model(path, tiny_pipeline_dir, scene_folder))
    memory, disk = str(caught.value).splitlines()[1:]
    assert re.search(
        r"memory: the fine-tune takes \d\.\d GB, 0\.1 GB are free on the CPU; try memory.gradient_checkpointing", memory
    )
    assert re.search(r"disk: 6 checkpoints of .* keep fewer \(save_top_k\), or set trainer\.default_root_dir", disk)
    with pytest.raises(pytest.fail.Exception, match="weights were loaded"):
        fit_cli([*on_small_model(path, tiny_pipeline_dir, scene_folder), "--anyway"])


def test_a_config_for_stable_diffusion_2_refuses_another_base(tiny_pipeline_dir, scene_folder):
    path = next(path for path in CONFIGS if path.stem == "sd21_lora")
    with pytest.raises(ValueError, match=r"this configuration is for Stable Diffusion 2\.x; give such a base"):
        fit_cli([
            "--dry-run", "--config", str(path), f"--model.init_args.base={tiny_pipeline_dir}",
            f"--data.init_args.directory={scene_folder}", *SIZES,
        ])  # fmt: skip


def test_a_probe_takes_no_more_evaluations_than_the_dry_run_says(tiny_pipeline_dir):
    """With every sample a copy, every exit is searched for; with none, none is."""
    images, captions = torch.rand(3, 3, 32, 32), ("a ball", "a box", "a cat")
    model = LatentModel(load_pipeline(tiny_pipeline_dir))
    most = probe_evals(captions=2, seeds=2, timesteps=6, images=3, heldout=1)
    for copied in (False, True):
        training, plan = TrainingSet(images, captions, ("a hat",)), ProbePlan(captions=2, seeds=2, timesteps=6)
        assert probe_limit(plan, training) == most
        guard = Guard(training, Structure(), plan)
        guard.copy_detector.is_own_copy = lambda matches, _, copied=copied: torch.full((len(matches),), copied)
        spent = guard.measure(model, epoch=0, train_step=0).unet_evals
        assert spent <= most
    assert most < 4 * spent


def test_one_command_trains(tiny_pipeline_dir, scene_folder, tmp_path):
    shipped = next(path for path in CONFIGS if path.stem == "tinyworld_lora")
    config = for_six_images(shipped, tmp_path, {"timesteps": 4}, export_to=None)
    cli = fit_cli([
        *on_small_model(config, tiny_pipeline_dir, scene_folder), "--trainer.max_epochs=1",
        f"--trainer.default_root_dir={tmp_path}", "--trainer.logger=false",
    ])  # fmt: skip
    assert cli.trainer.global_step == 1
    last = next(tmp_path.rglob("last.ckpt"))
    assert torch.load(last, weights_only=True)["global_step"] == 1


def test_the_guard_takes_the_copy_detector_of_the_command_line(tiny_pipeline_dir, scene_folder, tmp_path, capsys):
    shipped = next(path for path in CONFIGS if path.stem == "tinyworld_lora")
    words = on_small_model(for_six_images(shipped, tmp_path), tiny_pipeline_dir, scene_folder, "--dry-run")
    cli = fit_cli([*words, "--embedder", "structure-figure", "--threshold", "0.9"])
    (guard,) = (callback for callback in cli.trainer.callbacks if isinstance(callback, MemorizationGuard))
    assert (guard.embedder.name, guard.embedder.metric.threshold) == ("structure-figure-v1", 0.9)
    for wrong, says in (("often", "expected one of published"), ("2", r"expected a similarity in \(0, 1\]")):
        with pytest.raises(ValueError, match=says):
            fit_cli([*words, "--threshold", wrong])
    with pytest.raises(ValueError, match="--embedder aligned: no guard to give it to"):
        fit_cli([*words, "--embedder", "aligned", "--trainer.callbacks=null"])


def test_a_bad_plan_is_refused_before_weights_are_loaded(tiny_pipeline_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "load_pipeline", lambda *_, **__: pytest.fail("weights were loaded"))
    with pytest.raises(ValueError, match=r"(?s)nothing was trained; 1 problem.*nowhere: no such folder"):
        fit_cli([
            "--model", "FineTune", f"--model.init_args.base={tiny_pipeline_dir}", "--data", "ImageFolder",
            f"--data.init_args.directory={tmp_path / 'nowhere'}", "--data.init_args.resolution=32",
        ])  # fmt: skip


@pytest.mark.parametrize(
    ("right", "wrong", "nearest"),
    [
        ("lora: {rank: 16}", "rank: 16", "'rank'; the nearest is model.init_args.lora.rank"),
        ("{rank: 16}", "{rnak: 16}", "'rnak'; the nearest is model.init_args.lora.rank"),
        (
            "reading: {keep_in_memory: true}",
            "keep_in_memory: true",
            "'keep_in_memory'; the nearest is data.init_args.reading.keep_in_memory",
        ),
        ("captions:", "capt:", "'capt'; the nearest is trainer.callbacks.init_args.plan.captions"),
        ("max_epochs", "max_epoch", "'trainer.max_epoch'; the nearest is trainer.max_epochs"),
        ("seed_everything", "seed_evrything", "'seed_evrything'; the nearest is seed_everything"),
    ],
)
def test_an_option_of_the_old_shape_or_misspelt_is_one_line_with_the_nearest(tmp_path, capsys, right, wrong, nearest):
    shipped = next(path for path in CONFIGS if path.stem == "tinyworld_lora").read_text(encoding="utf-8")
    assert right in shipped
    (tmp_path / "old.yaml").write_text(shipped.replace(right, wrong))
    with pytest.raises(SystemExit) as exit_:
        fit_cli(["--config", str(tmp_path / "old.yaml")])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == f"basinguard fit: unknown option {nearest}\n"


@pytest.mark.parametrize(("wrong", "nearest"), [("dry-rn", "dry-run"), ("anywy", "anyway"), ("confg", "config")])
def test_a_misspelt_flag_of_the_verb_itself_is_named(capsys, wrong, nearest):
    with pytest.raises(SystemExit):
        fit_cli(["--config", str(CONFIGS[0]), f"--{wrong}"])
    assert capsys.readouterr().err == f"basinguard fit: unknown option {wrong!r}; the nearest is {nearest}\n"


def test_a_misspelt_option_is_named(capsys):
    with pytest.raises(SystemExit):
        fit_cli(["--config", str(CONFIGS[0]), "--model.init_args.rnak=4"])
    assert (
        capsys.readouterr().err == "basinguard fit: unknown option 'rnak'; the nearest is model.init_args.lora.rank\n"
    )


def test_what_a_checkpoint_overrides_is_said(tiny_pipeline_dir, scene_folder, tmp_path, monkeypatch):
    """Lightning takes the model's settings from the checkpoint, whatever the command line says."""
    shipped = next(path for path in CONFIGS if path.stem == "tinyworld_lora")
    words = on_small_model(for_six_images(shipped, tmp_path), tiny_pipeline_dir, scene_folder)
    monkeypatch.setattr(FineTuneCLI, "instantiate_classes", lambda self: sys.exit(self.config.fit.model.init_args.seed))
    trained = {"lora": {"rank_at_noise": 1.0}, "loss": {"high_noise": 1.0}, "seed": 5}
    torch.save({"hyper_parameters": trained}, tmp_path / "half.ckpt")
    asked = ["--model.loss.high_noise=0.25", "--model.lora.rank_at_noise=0.5", "--model.seed=7"]
    said = "lora.rank_at_noise is 1.0, not 0.5; loss.high_noise is 1.0, not 0.25; seed is 5, not 7. To change"
    with pytest.warns(UserWarning, match=re.escape(said)), pytest.raises(SystemExit) as end:
        fit_cli([*words, *asked, f"--ckpt_path={tmp_path / 'half.ckpt'}"])
    assert end.value.code == 5


@pytest.mark.parametrize(
    ("half", "nearest"),
    [
        ("--model.lora.rank_at_nois=0.5", "'lora.rank_at_nois'; the nearest is model.init_args.lora.rank_at_noise"),
        ("--trainer.max_epo=1", "'trainer.max_epo'; the nearest is trainer.max_epochs"),
        ("--data.dir=photos", "'dir'; the nearest is data.init_args.directory"),
    ],
)
def test_half_a_name_is_no_option(capsys, half, nearest):
    with pytest.raises(SystemExit):
        fit_cli(["--config", str(CONFIGS[0]), half])
    assert capsys.readouterr().err == f"basinguard fit: unknown option {nearest}\n"


def test_a_wrong_value_is_one_line(capsys):
    with pytest.raises(SystemExit):
        fit_cli(["--config", str(CONFIGS[0]), "--trainer.max_epochs=x"])
    message = "Parser key \"trainer.max_epochs\": Expected a <class 'int'> Given value: x"
    assert capsys.readouterr().err == f"basinguard fit: {message}\n"


def test_what_a_part_refuses_when_it_is_built_is_its_own_line(tiny_pipeline_dir, scene_folder, tmp_path):
    shipped = next(path for path in CONFIGS if path.stem == "tinyworld_lora")
    words = on_small_model(for_six_images(shipped, tmp_path), tiny_pipeline_dir, scene_folder, "--dry-run")
    with pytest.raises(ValueError, match=r"^FineTune: out of range: rank_at_noise=0\.0 \(above 0, at most 1\)$"):
        fit_cli([*words, "--model.init_args.lora.rank_at_noise=0"])
    short = '--trainer.callbacks.terms.strength_schedules=[{"transitions": [300], "strengths": [0.6]}]'
    with pytest.raises(ValueError, match=r"^StrengthSchedule\(.*\): expected one strength more than transitions, 2$"):
        fit_cli([*words, short])


def test_a_dry_run_refuses_what_the_run_would(tiny_pipeline_dir, scene_folder, tmp_path):
    shipped = next(path for path in CONFIGS if path.stem == "tinyworld_lora")
    words = on_small_model(for_six_images(shipped, tmp_path), tiny_pipeline_dir, scene_folder, "--dry-run")
    steps = '--trainer.callbacks.terms.strength_schedules=[{"transitions": [300], "strengths": [0.6, 1.0]}]'
    with pytest.raises(ValueError, match="strength_schedules need a LoRA, and whole weights are trained"):
        dry_run_summary(fit_cli([*words, "--model.init_args.method=full", steps]))
    with pytest.raises(ValueError, match="residual-blocks: leaves nothing of what is trained here"):
        dry_run_summary(fit_cli([*words, '--trainer.callbacks.terms.update_filters=["residual-blocks"]']))


def test_help_explains_every_argument(capsys):
    with pytest.raises(SystemExit):
        fit_cli(["--model.help=FineTune"])
    output = capsys.readouterr().out
    assert "unconditional" in output  # from the docstring of caption_dropout
    assert "--model.loss.min_snr_gamma" in output


def test_a_config_can_ask_a_run_to_act(tmp_path, monkeypatch):
    config = yaml.safe_load(CONFIGS[-1].read_text(encoding="utf-8"))
    guard = config["trainer"]["callbacks"][-1]["init_args"]
    interventions = {"rest": 0.0, "learning_rate": 0.5}
    guard["respond"] = {"action": "act", "watches": "guarded", "interventions": interventions}
    guard["ship"] = "last"
    (tmp_path / "acts.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    parsed = parse(monkeypatch, tmp_path / "acts.yaml", "--data.init_args.directory", "photos")
    guard = parsed.trainer.callbacks[-1].init_args
    assert (guard.respond.action, guard.respond.watches, guard.ship) == ("act", "guarded", "last")
    assert guard.respond.interventions.rest == 0.0
