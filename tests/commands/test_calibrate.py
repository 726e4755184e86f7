"""calibrate, audit and what they stand on, through a tiny random pipeline that 'copies' its own samples."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict

from basinguard import cli
from basinguard.attacks.options import AttackOptions
from basinguard.basin.trajectories import GuidedModel, run_branch
from basinguard.calibration.terms import CalibrationTerms
from basinguard.commands.audit import audit
from basinguard.commands.calibrate import calibrate
from basinguard.commands.export import export
from basinguard.core import seeds
from basinguard.core.record import read_record
from basinguard.core.recorded_weights import RecordedWeights
from basinguard.diffusion.sampling import draw_noise
from basinguard.exports.directory import export_directory
from basinguard.exports.fingerprints import weights_sha256
from basinguard.exports.merge import merged
from basinguard.pipelines.interpolation import Blend
from basinguard.pipelines.latent_model import LatentModel
from basinguard.pipelines.product import with_product_weights
from basinguard.pipelines.session_settings import SessionSettings
from basinguard.pipelines.transfer import first_guided, transfer_table
from basinguard.plots.contact_sheet import to_image
from basinguard.sessions import calibration
from basinguard.sessions.dry_run import DryRun
from basinguard.sessions.session import open_model
from basinguard.similarity.clip_score import TINY
from basinguard.similarity.copy_detector_settings import CopyDetectorSettings
from basinguard.tinyworld.scenes import all_captions, draw_scene
from support.exports import build_record

QUICK = SessionSettings(scale=3.0, timesteps=3)
TERMS = CalibrationTerms(
    alpha=0.6, delta=0.3, pairs=6, before=(0.0,), strengths=(0.5, 1.0), scales=(3.0,), search_pairs=3,
    taught_samples=4, chain=1,
)  # fmt: skip


PLAIN = replace(TERMS, before=(), strengths=(1.0,))  # where products are no subject


def opened_pipe(directory):
    return StableDiffusionPipeline.from_pretrained(directory, safety_checker=None)


@pytest.fixture
def base_dir(tiny_pipeline_dir):
    return tiny_pipeline_dir


@pytest.fixture(scope="module")
def tuned_dir(tiny_pipeline_dir, tmp_path_factory):
    """The base with other attention weights: a stand-in for a fine-tune."""
    pipe = opened_pipe(tiny_pipeline_dir)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for name, weight in pipe.unet.named_parameters():
            if "attn2.to_v" in name:
                weight.data.add_(0.3 * torch.randn_like(weight))
    directory = tmp_path_factory.mktemp("tuned") / "model"
    pipe.save_pretrained(directory)
    return directory


def test_blending_is_exact_at_both_ends_and_leaves_no_trace(base_dir):
    tuned, base = opened_pipe(base_dir), opened_pipe(base_dir)
    tuned.unet.conv_in.weight.data.mul_(2)
    before = {k: v.clone() for k, v in tuned.unet.state_dict().items()}
    blend = Blend(tuned, base)
    with blend.at(0.0):
        assert all(torch.equal(v, base.unet.state_dict()[k]) for k, v in tuned.unet.state_dict().items())

    def interrupted():
        with blend.at(0.5):
            assert torch.allclose(tuned.unet.conv_in.weight, 1.5 * base.unet.conv_in.weight)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(torch.equal(v, before[k]) for k, v in tuned.unet.state_dict().items())


def test_blending_a_merged_lora_is_its_strength(base_dir):
    pipe = opened_pipe(base_dir)
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"]), "default")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for name, weight in pipe.unet.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.3)
    x, t, text = draw_noise([0], (4, 16, 16)), torch.tensor([500]), torch.randn(1, 5, 32)
    pipe.unet.set_adapters("default", 0.3)
    with torch.no_grad():
        weak = pipe.unet(x, t, text).sample
        pipe.unet.set_adapters("default", 1.0)
        with Blend(merged(pipe), opened_pipe(base_dir)).at(0.3) as model:
            assert torch.allclose(model.pipe.unet(x, t, text).sample, weak, atol=1e-5)


def test_another_model_is_no_base(base_dir):
    other = opened_pipe(base_dir)
    other.unet.conv_in = torch.nn.Conv2d(4, 24, 3)
    with pytest.raises(ValueError, match="give the base it was fine-tuned from"):
        Blend(opened_pipe(base_dir), other)


def test_a_dry_run_says_what_it_would_take_and_measures_nothing(tuned_dir, base_dir, scene_folder, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["calibrate", str(tuned_dir), "--data", str(scene_folder), "--base", str(base_dir), "--timesteps", "3"]
    cli.main([*words, "--alpha", "0.4", "--pairs", "12", "--dry-run", "--out", str(out)])
    text = capsys.readouterr().out
    assert "searching at most" in text
    assert re.search(r"^time: at most \d\S* (s|min|h)\b", text, re.MULTILINE), text  # of however busy a machine
    assert "nothing was measured or written" in text
    assert not out.exists()


def test_the_price_of_a_dry_run_is_that_of_what_is_sampled():
    text = str(DryRun("work", evaluations=720_000, seconds=0.01, memory=3_000_000_000))
    assert "time: at most 2 h 0 min" in text
    assert "memory: 3.0 GB" in text
    assert "time: at most 1 min" in str(DryRun("work", evaluations=10, seconds=0.01, memory=1))


@pytest.mark.usefixtures("drawn_figures")
def test_calibrate_writes_a_record_that_exports_with_its_model(tuned_dir, base_dir, scene_folder, tmp_path):
    settings = replace(QUICK, base=str(base_dir))
    calibration = calibrate(str(tuned_dir), data=scene_folder, settings=settings, terms=TERMS, out=tmp_path / "out")
    record = read_record(tmp_path / "out" / "record.json")
    assert record == calibration.record
    assert record.calibrated
    assert record.verified is None
    assert record.guidance.plain, "nothing copies, so no rule is needed"
    assert record.base_risk.value == 0
    everything = json.loads((tmp_path / "out" / "calibration.json").read_text())
    searched = [row for row in everything["tried"] if row["phase"] == "search"]
    assert {row["product"]["strength"] for row in searched} == {0.0, 0.5, 1.0}
    assert any(not row["product"]["guidance"]["before"] for row in searched), "rules are searched too"
    assert everything["evaluations"] > 0
    assert (tmp_path / "out" / "products.png").stat().st_size > 10_000
    text = str(calibration)
    assert "base model" in text
    assert "plain CFG without a guard" in text
    assert "taught" in text
    assert sum(line.startswith("* ") for line in text.splitlines()) >= 1, "what ships is marked"
    opened = open_model(str(tuned_dir), scene_folder, settings)
    with with_product_weights(opened.pipe, record):
        export_directory(opened.pipe, record, tmp_path / "export")
    assert weights_sha256(opened.pipe) == opened.provenance.weights_sha256, "the fine-tune is as it was"
    with pytest.raises(FileExistsError, match="name another folder"):
        calibrate(str(tuned_dir), data=scene_folder, settings=QUICK, terms=TERMS, out=tmp_path / "out")


def test_a_share_of_the_fine_tune_ships_as_weights_of_its_own(tuned_dir, base_dir, scene_folder, tmp_path):
    settings, terms = replace(QUICK, base=str(base_dir)), replace(TERMS, strengths=(0.5,), before=())
    record = calibrate(str(tuned_dir), data=scene_folder, settings=settings, terms=terms).record
    assert record.product.strength == 0.5
    assert record.product.tuned_sha256 == weights_sha256(tuned_dir)
    assert record.weights_sha256 not in ("", record.product.tuned_sha256)
    (tmp_path / "record.json").write_text(record.to_json())
    exported = export(str(tuned_dir), tmp_path / "record.json", tmp_path / "export").path
    tuned, base, halfway = (opened_pipe(d).unet.conv_in.weight for d in (tuned_dir, base_dir, exported))
    torch.testing.assert_close(halfway, (tuned + base) / 2)
    assert weights_sha256(exported) == record.weights_sha256


def test_what_a_filter_leaves_has_a_fingerprint_of_its_own(tuned_dir, base_dir, scene_folder, monkeypatch):
    opened = open_model(str(tuned_dir), scene_folder, replace(QUICK, base=str(base_dir)))
    product = RecordedWeights(update_filter="rank-1")
    chosen = build_record(opened.pipe).model_copy(update={"product": product, "strength": None})
    monkeypatch.setattr(calibration, "certify", lambda *a, **options: SimpleNamespace(record=chosen))
    record = calibration.calibrate_session(opened, replace(TERMS, update_filters=("rank-1",))).record
    assert record.product == product.model_copy(update={"tuned_sha256": weights_sha256(tuned_dir)})
    with with_product_weights(opened.pipe, record.model_copy(update={"base": str(base_dir)})):
        assert weights_sha256(opened.pipe) == record.weights_sha256 != record.product.tuned_sha256


def test_filters_that_cannot_act_are_refused_before_anything_is_sampled(tuned_dir, base_dir, scene_folder):
    def refused(name, base, message):
        terms = replace(PLAIN, update_filters=(name,))
        with pytest.raises(ValueError, match=message):
            calibrate(str(tuned_dir), data=scene_folder, settings=replace(QUICK, base=base), terms=terms, dry_run=True)

    refused("rank-4", "", "is of the change from the base model, which is not known")
    refused("no-cross-attention", str(base_dir), "leaves nothing of this fine-tune's change")


def test_a_lora_file_can_be_calibrated_with_an_anchor(base_dir, scene_folder, tmp_path):
    pipe = opened_pipe(base_dir)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "default")
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet))
    pipe.save_lora_weights(tmp_path, unet_lora_layers=layers, weight_name="mine.safetensors")
    terms = replace(TERMS, anchor=True, strengths=(1.0,))
    settings = replace(QUICK, lora=tmp_path / "mine.safetensors")
    calibration = calibrate(str(base_dir), data=scene_folder, settings=settings, terms=terms)
    assert calibration.record.product.kind == "lora"
    assert calibration.record.base == str(base_dir)
    assert {c.product.guidance.anchor for c in calibration.certificate.tried} == {False, True}
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_model(str(base_dir), scene_folder, SessionSettings(lora=tmp_path / "none.safetensors"))
    (tmp_path / "bad.safetensors").write_bytes(b"not a lora")
    with pytest.raises(ValueError, match="not a safetensors file"):
        open_model(str(base_dir), scene_folder, SessionSettings(lora=tmp_path / "bad.safetensors"))


def test_an_audit_shows_what_is_left_of_what_was_taught(tuned_dir, base_dir, scene_folder, tmp_path):
    settings = replace(QUICK, base=str(base_dir), alignment=TINY)
    audit(str(tuned_dir), data=scene_folder, settings=settings, terms=PLAIN, per_caption=1, out=tmp_path / "out")
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "what is left of what was taught" in page
    assert "Products: what each copies" in page


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (CalibrationTerms(alpha=1.5), "alpha=1.5: expected a number strictly between 0 and 1"),
        (CalibrationTerms(delta=0.0), "delta=0.0: expected a number strictly between 0 and 1"),
        (CalibrationTerms(pairs=20), "52 more pairs would"),
        (CalibrationTerms(pairs=40, before=()), "19 more pairs would"),
    ],
)
def test_promises_that_cannot_be_made_are_refused_before_anything_is_loaded(terms, message):
    with pytest.raises(ValueError, match=message):
        calibrate("no such model", data=Path("nowhere"), terms=terms)


def test_the_record_names_the_detector_that_was_asked_for(tuned_dir, scene_folder):
    settings, terms = replace(QUICK, alignment="none"), PLAIN
    detector = CopyDetectorSettings("structure-figure", 0.97)
    options = {"settings": settings, "terms": terms, "detector": detector}
    metric = calibrate(str(tuned_dir), data=scene_folder, **options).record.metric
    assert (metric.embedder, metric.threshold) == ("structure-figure-v1", 0.97)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
def test_the_transfer_table_covers_every_sampler_and_says_where_guidance_began(tuned_dir, scene_folder):
    record = calibrate(str(tuned_dir), data=scene_folder, settings=QUICK, terms=replace(TERMS, strengths=(1.0,))).record
    opened = open_model(str(tuned_dir), scene_folder, QUICK)
    own = opened.pipe.scheduler
    table = list(transfer_table(opened.guard, opened.pipe, record, timesteps=(2, 4), per_caption=1))
    assert opened.pipe.scheduler is own
    assert [(row.scheduler, row.timesteps) for row in table[:3]] == [("DDIM", 2), ("DDIM", 4), ("Euler", 2)]
    assert len(table) == 8
    assert all(row.transition is None or row.transition <= record.guidance.transition for row in table)
    assert all(row.risk.n == 6 for row in table)
    assert first_guided(own, -1.0) == (None, None)


@pytest.fixture(scope="module")
def copied_folder(tuned_dir, tmp_path_factory):
    """Training images that the model reproduces: its own samples. Their captions would break a careless page."""
    folder = tmp_path_factory.mktemp("copied")
    captions = ['<script>alert("a")</script>', "a ball & b", "\x1b[31mred"]
    model, rows = LatentModel(opened_pipe(tuned_dir)), []
    probe = GuidedModel(model.denoiser(captions), model.schedule, model.schedule.grid(3), 3.0)
    prompt = torch.arange(3)
    with torch.no_grad():
        ends = run_branch(probe, draw_noise(range(seeds.AUDIT, seeds.AUDIT + 3), (4, 16, 16)), prompt, 0 * prompt)
        for k, pixels in enumerate(model.decode(ends)):
            to_image(pixels).save(folder / f"{k}.png")
            rows.append({"file_name": f"{k}.png", "text": captions[k]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_an_audit_finds_the_copies_and_its_page_is_safe(tuned_dir, base_dir, copied_folder, tmp_path):
    run = audit(
        str(tuned_dir),
        data=copied_folder,
        settings=replace(QUICK, base=str(base_dir)),
        per_caption=1,
        terms=PLAIN,
        out=tmp_path / "out",
    )
    report = run.audit
    assert report.plain.value == 1.0
    assert {row.file_name for row in report.images} <= {"0.png", "1.png", "2.png"}
    assert sum(row.copies for row in report.images) == report.samples == 3
    assert report.images[0].similarity > 0.99
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "\x1b" not in page + str(run)
    assert "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "")
    assert type(report).from_json((tmp_path / "out" / "audit.json").read_text()) == report


def test_an_audit_says_what_it_means(tuned_dir, copied_folder):
    report = audit(str(tuned_dir), data=copied_folder, settings=QUICK, terms=PLAIN, per_caption=1).audit
    assert report.advice[0].startswith("It copies: 100.0 %")
    assert report.base is None
    assert report.record.taught is None, "without a base there is nothing to hold it against"
    with pytest.raises(ValueError, match="per_caption=0"):
        audit(str(tuned_dir), data=copied_folder, per_caption=0)


def test_both_verbs_run_from_the_command_line(tuned_dir, scene_folder, tmp_path, capsys):
    few = ["--alpha", "0.6", "--delta", "0.3", "--pairs", "6", "--timesteps", "3", "--scale", "3"]
    few += ["--search_pairs", "2", "--taught_samples", "2", "--chain", "1", "--strengths", "[1]"]
    cli.main(
        [
            "calibrate",
            str(tuned_dir),
            "--data",
            str(scene_folder),
            *few,
            "--before",
            "[0]",
            "--out",
            str(tmp_path / "c"),
        ]
    )
    cli.main(
        ["audit", str(tuned_dir), "--data", str(scene_folder), *few, "--per_caption", "1", "--out", str(tmp_path / "a")]
    )
    printed = capsys.readouterr().out
    assert "promise: the risk is at most 60%" in printed
    assert "No copy among 6 samples" in printed
    with pytest.raises(SystemExit):
        cli.main(["calibrate", str(tuned_dir), "--data", str(scene_folder), "--alpha", "2"])
    assert "alpha=2.0: expected" in capsys.readouterr().err


@pytest.mark.long
def test_an_audit_attacks_the_base_the_model_and_what_would_ship(tuned_dir, base_dir, scene_folder, tmp_path):
    options = {"settings": replace(QUICK, base=str(base_dir), alignment="none"), "terms": PLAIN, "per_caption": 1}
    attacks = AttackOptions("quick", 1500)
    run = audit(str(tuned_dir), data=scene_folder, attacks=attacks, out=tmp_path / "out", **options)
    assert run.attacks is not None
    assert {"base", "plain"} <= set(run.attacks.targets)
    assert run.attacks.evaluations <= 1500
    assert {row.attack for row in run.attacks.rows} >= {"inversion", "extrapolation (FineXtract)", "empty prompt"}
    assert read_record(tmp_path / "out" / "attacked.json").attacks == run.attacks
    assert "What was tried to get the images out" in (tmp_path / "out" / "audit.html").read_text()
    assert "not tried:" in str(run)


def test_what_cannot_be_attacked_is_refused_before_anything_is_calibrated(
    tuned_dir, base_dir, scene_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(calibration, "calibrate_session", None)
    settings = replace(QUICK, base=str(base_dir), alignment="none")

    def refused(message, settings, *words):
        with pytest.raises(ValueError, match=message):
            audit(str(tuned_dir), data=scene_folder, settings=settings, terms=PLAIN, attacks=AttackOptions(*words))

    refused("attack_budget=10: too small for anything: 8 samples .* on each model take", settings, "quick", 10)
    refused("there are none; give a folder of at least 100 with --heldout", settings, "none", 0, True)
    other = opened_pipe(base_dir)
    with torch.no_grad():
        for weight in other.unet.parameters():
            weight.normal_(std=0.1, generator=torch.Generator().manual_seed(3))
    other.save_pretrained(tmp_path / "other")
    unrelated = replace(settings, base=str(tmp_path / "other"))
    refused("not what this model was fine-tuned from: their weights correlate by", unrelated, "quick")


@pytest.mark.long
def test_an_audit_tells_membership_and_its_price_beforehand(tuned_dir, base_dir, scene_folder, tmp_path):
    heldout = tmp_path / "heldout"
    heldout.mkdir()
    for index, caption in enumerate(all_captions()[6:9]):
        draw_scene(caption, seed=index).save(heldout / f"{index}.png")
        (heldout / f"{index}.txt").write_text(f"a {caption.kind} {index + 6}")
    settings = replace(QUICK, base=str(base_dir), heldout=heldout, alignment="none")
    options = {"settings": settings, "terms": PLAIN, "per_caption": 1, "attacks": AttackOptions(membership=True)}
    price = audit(str(tuned_dir), data=scene_folder, dry_run=True, **options)
    assert "for membership" in str(price)
    run = audit(str(tuned_dir), data=scene_folder, out=tmp_path / "out", **options)
    (table,) = run.membership
    assert (table.target, table.members, run.attacks) == ("plain", 6, None)
    assert "true positives at 1% false positives need at least 1 and 100" in table.missing
    assert "No headline" in str(run)
    assert "Can it be told which images were trained on?" in (tmp_path / "out" / "audit.html").read_text()
    assert read_record(tmp_path / "out" / "attacked.json").membership == run.membership


@pytest.mark.long
def test_an_audits_gate_has_a_status_of_its_own(tuned_dir, scene_folder, tmp_path, capsys):
    few = ["--alpha", "0.4", "--delta", "0.2", "--pairs", "12", "--timesteps", "3", "--scale", "3", "--gate"]
    few += ["--search_pairs", "4", "--strengths", "[1.0]", "--scales", "[3.0]", "--before", "[]"]
    few += ["--out", str(tmp_path / "audit")]
    with pytest.raises(SystemExit) as ended:
        cli.main(
            ["audit", str(tuned_dir), "--data", str(scene_folder), *few, "--per_caption", "1", "--threshold", "0.01"]
        )
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (ended.value.code, line["gate"], line["verb"], line["n"]) == (3, "closed", "audit", 6)
    with pytest.raises(ValueError, match="--gate with 6 samples could never pass"):
        audit(
            str(tuned_dir), data=scene_folder, settings=QUICK, gate=True, terms=replace(PLAIN, alpha=0.3), per_caption=1
        )
