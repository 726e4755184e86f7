"""Every bad input that is tried, and what the user sees: `bad_input.md` is that table, and this test keeps it true.

Write it anew with `PYTHONPATH=tests python tests/reliability/test_bad_input.py`.
"""

import json
import os
import pickle
import re
import shutil
import sys
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from basinguard.attacks.membership import require_controls
from basinguard.attacks.monitor import Monitor
from basinguard.attacks.options import AttackOptions
from basinguard.attacks.plan import AttackPlan, affordable
from basinguard.calibration.terms import CalibrationTerms
from basinguard.core.files import whole_directory
from basinguard.core.gate import require_passable
from basinguard.core.images import read_facts
from basinguard.core.record import read_record
from basinguard.core.recorded_weights import RecordedSchedule, RecordedWeights
from basinguard.core.schema import MAX_BYTES
from basinguard.curation.decisions import read_allow_list
from basinguard.exports.a1111 import a1111_prompt
from basinguard.exports.comfyui import WorkflowFiles
from basinguard.exports.directory import check_exportable
from basinguard.exports.inspect import inspect_file
from basinguard.exports.model_kind import XL_CLASS, ModelKind
from basinguard.guard.guard import Guard
from basinguard.guard.plan import ProbePlan
from basinguard.guard.status import read_history
from basinguard.guard.training_set import TrainingSet
from basinguard.guidance.strength import StrengthSchedule
from basinguard.pipelines.base_check import require_base
from basinguard.pipelines.filter_check import require_effect, require_filters
from basinguard.pipelines.loading import load_pipeline, require_capability
from basinguard.pipelines.protect import protect
from basinguard.sessions.verification import read_rules
from basinguard.similarity.structure import Structure
from basinguard.training.accelerate import LoopGuard
from basinguard.training.canary_images import new_captions
from basinguard.training.data import ImageFolder
from basinguard.training.finetune_options import LoraOptions, LossOptions, OptimizerOptions, require_ranges
from basinguard.training.guard_options import BreachResponse, Interventions
from basinguard.training.guarded_run import GuardedRun
from basinguard.training.lightning import MemorizationGuard
from basinguard.training.preflight import check_fit
from basinguard.training.requirements import require_parts, require_whole_weights
from support.curation_mistakes import CURATION_CASES
from support.fake_pipelines import StableDiffusionPipeline
from support.family_mistakes import FAMILY_CASES
from support.guarded_runs import picture_folder
from support.tiny_pipelines import make_record

FLOW = "FlowMatchEulerDiscreteScheduler"
TABLE = Path(__file__).with_name("bad_input.md")
HEAD = """# Bad input, and what the user sees

Kept by `tests/reliability/test_bad_input.py`; DIR stands for a folder.

| input | what the user sees |
|---|---|
"""


def write(root: Path, name: str, content: str | bytes) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def model_files(root: Path, class_name: str, scheduler: str = "DDIMScheduler", **denoiser) -> Path:
    """The configuration files of a model, without weights."""
    part = "transformer" if class_name == "StableDiffusion3Pipeline" else "unet"
    files = {"model_index": {"_class_name": class_name}, "scheduler/scheduler_config": {"_class_name": scheduler}}
    files |= {f"{part}/config": denoiser, "vae/config": {"block_out_channels": [8] * 4}}
    for name, content in files.items():
        write(root, f"m/{name}.json", json.dumps(content))
    return root / "m"


def half_xl():
    """A pipeline of XL that lacks a text encoder."""
    parts = {"unet": object(), "text_encoder": object(), "text_encoder_2": None}
    return type(XL_CLASS, (), {**parts, "components": {}, "config": {}})()


def make_guard(plan=None, captions=("a ball", "a box"), heldout=("a kite",)):
    return Guard(
        TrainingSet(torch.full((len(captions), 3, 32, 32), 0.5), captions, heldout),
        Structure(),
        plan or ProbePlan(2, 1),
    )


def failing_probe(error):
    """A probe of a model that fails so; the user sees a warning."""

    def run(root):
        def fail(prompts):
            raise error

        loop = LoopGuard(make_guard().training, plan=ProbePlan(2, 1))
        loop.run.guard.measure = lambda model, **kwargs: fail(())
        module = torch.nn.Identity()
        module.config = SimpleNamespace(sample_size=8, in_channels=4)
        schedule = SimpleNamespace(config=SimpleNamespace(prediction_type="epsilon"), alphas_cumprod=torch.rand(1000))
        pipe = StableDiffusionPipeline(
            unet=module, vae=module, text_encoder=module, scheduler=schedule, vae_scale_factor=4
        )
        loop.measure(pipe, epoch=3)

    return run


def resumed_with(**changes):
    def run(root):
        state = GuardedRun(make_guard()).state_dict()
        GuardedRun(make_guard(ProbePlan(2, **{"seeds": 1, **changes}))).load_state_dict(state)

    return run


def strategy(name):
    return lambda root: require_whole_weights(type(name, (), {})())


def images(name, content):
    """A training folder with one good picture and one bad file."""

    def run(root):
        write(picture_folder(root / "photos", 1), name, content)
        ImageFolder(str(root / "photos")).setup("fit")

    return run


def pickled(root):
    write(root / "model", "model_index.json", json.dumps({"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}))  # fmt: skip
    write(root / "model", "unet/config.json", json.dumps({"_class_name": "UNet2DConditionModel"}))
    write(root / "model", "unet/diffusion_pytorch_model.bin", pickle.dumps({"weight": 1}))
    load_pipeline(root / "model")


def full_export(root):
    with whole_directory(root / "export") as folder:
        (folder / "a").write_text("a")
        raise OSError(28, "No space left on device")


def foreign_export(root):
    write(root, "export/mine.txt", "mine")
    with whole_directory(root / "export", overwrite=True):
        pass


def matrices(seed, side=8):
    generator = torch.Generator().manual_seed(seed)
    layer = torch.nn.Linear(8, side).requires_grad_(False)
    layer.weight.copy_(torch.randn(side, 8, generator=generator))
    return StableDiffusionPipeline(unet=layer, text_encoder=torch.nn.Identity())


def lora_without_record(root):
    save_file({"a": torch.zeros(1)}, root / "a.safetensors")
    inspect_file(root / "a.safetensors")


BY_TIMESTEP = RecordedSchedule(transitions=(300.0,), strengths=(0.6, 1.0))


def by_timestep(record):
    return record.model_copy(update={"product": RecordedWeights(kind="lora", strength_schedule=BY_TIMESTEP)})


def merged_pipeline():
    """A pipeline whose network has no adapter."""
    network = torch.nn.Linear(2, 2)
    network.config = {}
    return StableDiffusionPipeline(unet=network, config={})


def numbers(method="lora", **changes):
    """Every number of a fine-tune, and its method."""
    options = (LoraOptions(), OptimizerOptions(), LossOptions())
    return {name: value for group in options for name, value in asdict(group).items()} | {
        "method": method,
        "seed": 0,
        **changes,
    }


CASES = {
    "MemorizationGuard(every_n_epochs=0)": lambda root: MemorizationGuard(every_n_epochs=0),
    "ProbePlan(seeds=0)": lambda root: ProbePlan(seeds=0),
    "ProbePlan(alpha=0.0)": lambda root: ProbePlan(alpha=0.0),
    "ProbePlan(budget='a lot')": lambda root: ProbePlan(budget="a lot"),
    "a probe of 9 captions, a set of 2": lambda root: make_guard(ProbePlan(captions=9)),
    "a held-out prompt that is trained on": lambda root: make_guard(heldout=("a ball",)),
    "2 images, 1 caption": lambda root: TrainingSet(torch.rand(2, 3, 8, 8), ("a",)),
    "held-out images of another size": lambda root: TrainingSet(
        torch.rand(2, 3, 8, 8), ("a", "b"), ("c",), torch.rand(1, 3, 16, 16)
    ),
    "strategy: FSDP": strategy("FSDPStrategy"),
    "strategy: DeepSpeed": strategy("DeepSpeedStrategy"),
    "accelerate with FSDP": lambda root: LoopGuard(make_guard().training, SimpleNamespace(distributed_type="FSDP")),
    "a fit without a datamodule": lambda root: require_parts(None, SimpleNamespace(pipe=1)),
    "a module without a pipeline": lambda root: require_parts(SimpleNamespace(items=1, all_pixels=1), object()),
    "resumed with other seeds": resumed_with(seeds=2),
    "resumed with a state of something else": lambda root: GuardedRun(make_guard()).load_state_dict({"history": []}),
    "resumed with another data set": lambda root: GuardedRun(make_guard(captions=("a ball", "a cup"))).load_state_dict(GuardedRun(make_guard()).state_dict()),
    "BreachResponse('act') without an Interventions": lambda root: BreachResponse("act"),
    "an Interventions that does nothing": lambda root: Interventions(),
    "an Interventions that rests all turns": lambda root: Interventions(rest=1.0),
    "a guard.json that is none": lambda root: read_history(write(root, "guard.json", "3")),
    "an exception in a probe": failing_probe(ZeroDivisionError("division by zero")),
    "NaN from the model": failing_probe(FloatingPointError("the model's prediction is not finite")),
    "out of memory in a probe": failing_probe(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")),
    "a full disk in a probe": failing_probe(OSError(28, "No space left on device")),
    "a full disk while exporting": full_export,
    "an export onto somebody's files": foreign_export,
    "no such record": lambda root: read_record(root / "none.json"),
    "a record that is no JSON": lambda root: read_record(write(root, "r.json", "{")),
    "a record of another schema": lambda root: read_record(write(root, "r.json", '{"schema_version": 9}')),
    "a record with an unknown key": lambda root: read_record(write(root, "r.json", '{"schema_version": 2, "x": 1}')),
    "one of the schema before with an unknown key": lambda root: read_record(write(root, "r.json", '{"schema_version": 1, "x": 1}')),
    "a record of 5 MB": lambda root: read_record(write(root, "r.json", b'{"a": "' + b"a" * MAX_BYTES)),
    "brackets nested 100,000 deep": lambda root: read_record(write(root, "r.json", b"[" * 100_000)),
    "a safetensors header of 2^60 bytes": lambda root: inspect_file(write(root, "a.safetensors", (2**60).to_bytes(8, "little"))),
    "a safetensors file of zeros": lambda root: inspect_file(write(root, "a.safetensors", b"\0" * 64)),
    "a LoRA without a record": lora_without_record,
    "a scheduler config without a record": lambda root: inspect_file(write(root, "scheduler_config.json", "{}")),
    "a rules file that is a list": lambda root: read_rules(write(root, "rules.json", "[]")),
    "a record by timestep for a merged checkpoint": lambda root: protect(merged_pipeline(), by_timestep(make_record())),
    "a StrengthSchedule that rises in timestep": lambda root: StrengthSchedule((300.0, 600.0), (0.0, 0.5, 1.0)),
    "an unknown filter of the update": lambda root: CalibrationTerms(update_filters=("no-text",)),
    "a filter of the update of a model without its base": lambda root: require_filters(None, ("rank-16",), ""),
    "a filter that leaves nothing of the trained layers": lambda root: require_effect("residual-blocks", ["attn1.to_q.weight"]),
    "T-LoRA of no channels": lambda root: require_ranges(numbers(rank_at_noise=0.0)),
    "T-LoRA of whole weights": lambda root: require_ranges(numbers(method="full", rank_at_noise=0.5)),
    "prior preservation of no pictures": lambda root: require_ranges(numbers(prior_weight=-1.0, prior_images=0)),
    "prior preservation of one text as captions": lambda root: require_ranges(numbers(prior_captions="a dog")),
    "an unknown rule": lambda root: read_rules(write(root, "rules.json", '{"a": {"rule": "os.system"}}')),
    "a rule whose scale is a text": lambda root: read_rules(write(root, "rules.json", '{"a": {"rule": "constant", "scale": "7"}}')),
    "a rule whose transition is NaN": lambda root: read_rules(write(root, "rules.json", '{"a": {"rule": "switch_at", "transition": NaN}}')),
    "an allow-list that is no JSON": lambda root: read_allow_list(write(root, "allow.json", "no")),
    "an allow-list with a bad hash": lambda root: read_allow_list(write(root, "allow.json", '{"allowed": [{"sha256": "x", "action": "drop"}]}')),
    "a model with pickled weights": pickled,
    "a model of another kind": lambda root: require_capability(write(root, "m/model_index.json", '{"_class_name": "FluxPipeline"}').parent, "trainable"),
    "a workflow of a model that is not exported": lambda root: WorkflowFiles.of(str(write(root, "m/model_index.json", '{"_class_name": "FluxPipeline"}').parent)),
    "a prompt for A1111 by a rule of XL": lambda root: a1111_prompt(make_record(), "a cat", kind=ModelKind(XL_CLASS, zero_empty=True)),
    "an export of XL without its second text encoder": lambda root: check_exportable(half_xl()),
    "a configuration of XL for a base of 2.x": lambda root: check_fit(model_files(root, "StableDiffusionPipeline", cross_attention_dim=1024), architecture="sdxl"),
    "a configuration of 2.x for a base of XL": lambda root: check_fit(model_files(root, "StableDiffusionXLPipeline", cross_attention_dim=2048), architecture="sd2"),
    "a flow with the scheduler of a diffusion": lambda root: check_fit(model_files(root, "StableDiffusion3Pipeline")),
    "Min-SNR for a flow": lambda root: check_fit(model_files(root, "StableDiffusion3Pipeline", FLOW), loss=LossOptions(min_snr_gamma=5.0)),
    "a velocity asked of a flow": lambda root: check_fit(model_files(root, "StableDiffusion3Pipeline", FLOW), prediction_type="v_prediction"),
    "a workflow of Stable Diffusion 3": lambda root: WorkflowFiles.of(str(write(root, "m/model_index.json", '{"_class_name": "StableDiffusion3Pipeline"}').parent)),
    "a model_index.json that is no JSON": lambda root: require_capability(write(root, "m/model_index.json", "\xff").parent, "trainable"),
    "an empty single-file model": lambda root: require_capability(write(root, "m.safetensors", ""), "trainable"),
    "an empty picture": images("bad.png", b""),
    "a picture that is none": images("bad.png", b"GIF89a, or so it says"),
    "a caption that is not UTF-8": images("0.txt", b"caf\xe9"),
    "a caption in UTF-16": images("0.txt", b"\xff\xfe"),
    "a caption of 70 kB": images("0.txt", "a" * 70_000),
    "a caption row that leads out of the folder": images("metadata.jsonl", '{"file_name": "../x.png", "text": "a"}'),
    "a caption row that is no JSON": images("metadata.jsonl", "{"),
    "a picture that is a pipe": lambda root: read_facts(root / "pipe") if not os.mkfifo(root / "pipe") else None,
    "membership without held-out images": lambda root: require_controls(TrainingSet(torch.rand(2, 3, 8, 8), ("a", "b"))),
    "a base that is not the base": lambda root: require_base(matrices(0), matrices(1), "other"),
    "a base of other layers": lambda root: require_base(matrices(0), matrices(1, 9), "other"),
    "a budget too small for any attack": lambda root: affordable(1000, AttackPlan("quick", 10)),
    "attacks of no such level": lambda root: AttackOptions("hard"),
    "a gate that could never pass": lambda root: require_passable(24, 0.05),
    "canaries of too few words": lambda root: new_captions(["red kite"], 6),
    "a monitor of alpha 0": lambda root: Monitor(make_guard().copy_detector, alpha=0.0),
    **FAMILY_CASES,
    **CURATION_CASES,
}  # fmt: skip


def seen_by_user(name: str) -> str:
    """The text of the error or warning, on one line, with temporary folders as DIR."""
    root = Path(tempfile.mkdtemp())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            CASES[name](root)
    except Exception as error:
        kind = "warning" if isinstance(error, Warning) else type(error).__name__
        text = " ".join(f"{kind}: {error}".split()).replace(str(root), "DIR")
        return re.sub(r"0x[0-9a-f]+", "0x...", text).replace("|", "\\|")
    finally:
        shutil.rmtree(root)
    raise AssertionError(f"{name}: nothing was said")


def table_row(name: str) -> str:
    return f"| {name} | {seen_by_user(name)} |"


@pytest.mark.parametrize("name", CASES)
def test_the_table_tells_what_the_user_sees(name):
    rows = {line.split(" | ")[0]: line for line in TABLE.read_text("utf-8").splitlines()}
    assert rows[f"| {name}"] == table_row(name)


def test_the_table_has_no_other_rows():
    rows = TABLE.read_text("utf-8").removeprefix(HEAD).splitlines()
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(CASES)


if __name__ == "__main__":
    TABLE.write_text(HEAD + "".join(f"{table_row(name)}\n" for name in CASES), "utf-8")
    sys.stdout.write(TABLE.read_text("utf-8"))
