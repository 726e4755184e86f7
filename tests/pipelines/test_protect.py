import copy
import functools
import json
import os
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from basinguard.guidance.core import Constant, SwitchAt
from basinguard.guidance.dynamic import SwitchAfter
from basinguard.pipelines import protect as pipelines
from basinguard.pipelines.protect import is_protected, last_trace, load, protect, rule_of, unprotect
from support import tiny_pipelines as tiny
from support.tiny_pipeline import build_scheduler
from support.tiny_pipelines import make_record

PROMPTS = ["red circle", "blue square"]


@pytest.fixture(scope="module")
def shared():
    return tiny.pipeline()


@pytest.fixture
def record():
    return make_record()


@pytest.fixture
def pipe(shared):
    yield shared
    unprotect(shared)


def sample(pipe, prompt=PROMPTS, seeds=(0, 1), **options):
    noise = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    options = {"guidance_scale": 7.5, "num_inference_steps": 5, "output_type": "latent", "latents": noise} | options
    return pipe(**{"prompt": prompt} | options).images


def embeddings(pipe, prompt=PROMPTS):
    cond, uncond = pipe.encode_prompt(prompt, "cpu", 1, True)
    return cond, uncond


def close(a, b, tolerance=1e-5):
    return torch.allclose(a, b, rtol=0, atol=tolerance * float(b.abs().max()))


@pytest.mark.parametrize("scale", [1.5, 3.0, 7.5])
def test_constant_equals_stock_cfg_to_the_bit(pipe, scale):
    stock = sample(pipe, guidance_scale=scale)
    assert torch.equal(sample(protect(pipe, Constant(scale)), guidance_scale=scale), stock)


def test_the_callers_scale_is_stock_cfg_to_the_bit(pipe):
    stock = sample(pipe, guidance_scale=4.0)
    assert torch.equal(sample(protect(pipe, SwitchAt(999.0, after=None)), guidance_scale=4.0), stock)


def test_constant_equals_another_guidance_scale(pipe):
    stock = sample(pipe, guidance_scale=3.0)
    assert close(sample(protect(pipe, Constant(3.0)), guidance_scale=7.5), stock)


def test_scale_0_is_the_unconditional_run(pipe):
    cond, uncond = embeddings(pipe)
    alone = sample(pipe, prompt=None, prompt_embeds=uncond, guidance_scale=1.0)
    guided = sample(protect(pipe, Constant(0.0)))
    assert close(guided, alone)
    assert not close(guided, sample(unprotect(pipe), prompt=None, prompt_embeds=cond, guidance_scale=1.0), 1e-2)


def test_scale_1_is_the_conditional_run(pipe):
    cond, _ = embeddings(pipe)
    alone = sample(pipe, prompt=None, prompt_embeds=cond, guidance_scale=1.0)
    assert close(sample(protect(pipe, Constant(1.0))), alone)


def test_opposite_guidance_is_swapped_embeddings_at_one_plus_scale(pipe):
    cond, uncond = embeddings(pipe)
    swapped = sample(pipe, prompt=None, prompt_embeds=uncond, negative_prompt_embeds=cond, guidance_scale=3.0)
    assert close(sample(protect(pipe, Constant(-2.0))), swapped)


@pytest.mark.parametrize("rule", [SwitchAt(600, -2.0, None), SwitchAt(600, 0.0, None), SwitchAfter(before=-2.0)])
def test_a_batch_equals_single_runs(pipe, rule):
    protect(pipe, rule)
    together = sample(pipe)
    apart = [sample(pipe, [prompt], [seed]) for seed, prompt in enumerate(PROMPTS)]
    assert close(together, torch.cat(apart))


def test_every_prompt_has_its_own_transition(pipe):
    both = sample(protect(pipe, SwitchAt((300.0, 900.0), -2.0, 7.5)))
    first = sample(protect(pipe, SwitchAt(300.0, -2.0, 7.5)), PROMPTS[:1], [0])
    second = sample(protect(pipe, SwitchAt(900.0, -2.0, 7.5)), PROMPTS[1:], [1])
    assert close(both, torch.cat([first, second]))
    assert not close(first, sample(protect(pipe, SwitchAt(900.0, -2.0, 7.5)), PROMPTS[:1], [0]), 1e-2)


def test_transitions_follow_num_images_per_prompt(pipe):
    four = sample(protect(pipe, SwitchAt((300.0, 900.0), -2.0, 7.5)), seeds=(0, 1, 2, 3), num_images_per_prompt=2)
    second = sample(protect(pipe, SwitchAt(900.0, -2.0, 7.5)), PROMPTS[1:], (2, 3), num_images_per_prompt=2)
    assert close(four[2:], second)


def test_a_prefix_at_scale_0_costs_one_evaluation_a_sample(pipe):
    sizes = []
    handle = pipe.unet.conv_in.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    sample(protect(pipe, SwitchAt(600, 0.0, None)), num_inference_steps=20)
    handle.remove()
    assert sizes == [2] * 8 + [4] * 12
    assert [o.unet_evals for o in last_trace(pipe)] == sizes


def test_the_gap_is_in_epsilon_units(pipe):
    sample(protect(pipe, Constant(7.5)))
    v = copy.copy(last_trace(pipe))
    own = pipe.scheduler
    try:
        pipe.scheduler = build_scheduler("epsilon")
        sample(pipe)
        raw = last_trace(pipe)
        signal = own.alphas_cumprod[int(v[0].timestep)].sqrt()
        assert torch.allclose(v[0].gap, raw[0].gap * signal)
    finally:
        pipe.scheduler = own


def test_every_call_starts_anew(pipe):
    protect(pipe, SwitchAfter(before=-2.0))
    assert torch.equal(sample(pipe), sample(pipe))


def test_unprotect_restores_exactly(pipe):
    before, attributes = sample(pipe), set(vars(pipe))
    sample(protect(pipe, Constant(-2.0)))
    assert is_protected(pipe)
    unprotect(pipe)
    assert not is_protected(pipe)
    assert set(vars(pipe)) == attributes
    assert torch.equal(sample(pipe), before)


def test_unprotect_gives_back_a_progress_bar_of_ones_own(pipe):
    mine = pipe.progress_bar = functools.partial(type(pipe).progress_bar, pipe)
    unprotect(protect(protect(pipe, Constant(-2.0)), Constant(3.0)))
    assert pipe.progress_bar is mine
    del pipe.progress_bar


def test_skip_layer_guidance_is_refused():
    pipe, arguments = tiny.build("StableDiffusion3Pipeline")
    with pytest.raises(ValueError, match="a batch of 2 after one of 4"):
        protect(pipe, Constant(3.0))(
            **arguments, num_inference_steps=4, skip_guidance_layers=[0], skip_layer_guidance_stop=1.0
        )
    assert not pipe.transformer._forward_hooks


def test_protecting_again_replaces_the_rule(pipe):
    once = sample(protect(pipe, Constant(-2.0)))
    assert torch.equal(sample(protect(protect(pipe, Constant(3.0)), Constant(-2.0))), once)


def test_the_unet_carries_no_hook_outside_the_loop(pipe):
    protect(pipe, Constant(-2.0))
    sample(pipe)
    assert not pipe.unet._forward_hooks
    assert not pipe.unet._forward_pre_hooks


class Broken(Constant):
    def scale(self, timestep, gap, state):
        raise RuntimeError("a bug in a rule")


@pytest.mark.parametrize("where", ["rule", "unet", "callback"])
def test_an_exception_leaves_nothing_behind(pipe, where, monkeypatch):
    stock = sample(pipe)

    def fails(*args, **kwargs):
        raise RuntimeError("from outside")

    protect(pipe, Broken(0.0) if where == "rule" else SwitchAt(600, 0.0, None))
    if where == "unet":
        monkeypatch.setattr(pipe.unet.mid_block, "forward", fails)
    with pytest.raises(RuntimeError):
        sample(pipe, callback_on_step_end=fails if where == "callback" else None)
    monkeypatch.undo()
    assert not pipe.unet._forward_hooks
    assert not pipe.unet._forward_pre_hooks
    assert torch.equal(sample(unprotect(pipe)), stock)


@pytest.mark.parametrize("scale", [1.0, 0.0, -2.0])
def test_a_call_without_batched_cfg_is_refused(pipe, scale):
    protect(pipe, SwitchAt(600))
    with pytest.raises(ValueError, match=f"guidance_scale={scale}.* > 1"):
        sample(pipe, guidance_scale=scale)
    with pytest.raises(ValueError, match="guidance_scale"):
        sample(pipe, PROMPTS[:1], [0], guidance_scale=scale)


def test_a_wrong_number_of_transitions_is_refused(pipe):
    with pytest.raises(ValueError, match="3 transitions for a batch of 2"):
        sample(protect(pipe, SwitchAt((1.0, 2.0, 3.0))))


def test_a_record_becomes_its_rule(pipe, record):
    by_record = sample(protect(pipe, record))
    assert torch.equal(by_record, sample(protect(pipe, SwitchAt(600.0, -2.0, None))))


def test_a_record_of_another_prediction_type_is_refused(pipe):
    with pytest.raises(ValueError, match="predicts 'epsilon', this pipeline's predicts 'v_prediction'"):
        protect(pipe, make_record(prediction_type="epsilon"))


def test_a_record_of_another_noise_schedule_is_refused(pipe, record):
    other = record.model_copy(update={"guidance": record.guidance.model_copy(update={"sigma": 1.0})})
    with pytest.raises(ValueError, match="another base model"):
        protect(pipe, other)


def test_pipelines_without_batched_cfg_are_refused():
    class FluxPipeline:
        pass

    with pytest.raises(TypeError, match="FluxPipeline does not evaluate both branches"):
        protect(FluxPipeline(), Constant(1.0))


def test_a_guidance_distilled_model_is_refused(pipe, monkeypatch):
    monkeypatch.setattr(pipe, "unet", tiny.unet(time_cond_proj_dim=8))
    with pytest.raises(ValueError, match="guidance-distilled"):
        protect(pipe, Constant(0.0))


def test_something_that_is_no_rule_is_refused(pipe):
    with pytest.raises(TypeError, match="expected a rule"):
        protect(pipe, 600)


@pytest.fixture
def exported(pipe, tmp_path, record):
    pipe.save_pretrained(tmp_path / "model")
    config = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    numbers = json.loads(config.read_text()) | {"basinguard": record.to_json()}
    config.write_text(json.dumps(numbers))
    return tmp_path / "model"


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_load_reads_the_record_in_the_scheduler_config(pipe, exported, record):
    assert torch.equal(sample(quiet(load(exported))), sample(protect(pipe, record)))


def test_load_prefers_the_file(pipe, exported):
    other = make_record(transition=200.0)
    (exported / "basinguard.json").write_text(other.to_json())
    assert torch.equal(sample(quiet(load(exported))), sample(protect(pipe, other)))


def test_load_without_a_record_says_what_to_do(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "plain")
    with pytest.raises(FileNotFoundError, match="calibrate"):
        load(tmp_path / "plain")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "not a JSON object, so not a basinguard record"),
        ("[]", "not a JSON object, so not a basinguard record"),
        ('{"schema_version": 3}', "record schema 3; this version of basinguard reads 1 and 2"),
        ('{"schema_version": 2}', "not a valid Record"),
        ('{"schema_version": 1}', "not a valid Record"),
    ],
)
def test_load_refuses_a_broken_record(exported, text, message):
    config = exported / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"basinguard": text}))
    with pytest.raises(ValueError, match=message):
        load(exported)


def test_load_runs_no_remote_code(exported):
    with pytest.raises(ValueError, match="no remote code"):
        load(exported, trust_remote_code=True)


@pytest.fixture
def cached(exported, tmp_path, monkeypatch):
    """A hub cache that holds `owner/name`, and no network."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "models--owner--name"
    shutil.copytree(exported, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return repo / "snapshots" / commit


def test_load_takes_a_hub_id_from_the_cache_without_a_network(pipe, cached, tmp_path):
    other = make_record(transition=200.0)
    (cached / "basinguard.json").write_text(other.to_json())
    loaded = load("owner/name", cache_dir=tmp_path / "hub", local_files_only=True)
    assert torch.equal(sample(quiet(loaded)), sample(protect(pipe, other)))


def test_a_hub_copy_that_diffusers_fetched_lacks_our_file_and_is_guarded_all_the_same(pipe, cached, record, tmp_path):
    loaded = load("owner/name", cache_dir=tmp_path / "hub", local_files_only=True)
    assert torch.equal(sample(quiet(loaded)), sample(protect(pipe, record)))


def test_load_fetches_the_record_of_the_revision_asked_for(exported, monkeypatch, tmp_path):
    (tmp_path / "fetched.json").write_text(make_record(transition=200.0).to_json())
    requests = []

    def download(repo, name, **options):
        requests.append((repo, name, options))
        return str(tmp_path / "fetched.json")

    local = pipelines.DiffusionPipeline.from_pretrained(exported)
    monkeypatch.setattr(pipelines.DiffusionPipeline, "from_pretrained", lambda source, **options: local)
    monkeypatch.setattr(pipelines, "hf_hub_download", download)
    assert rule_of(load("owner/name", revision="v2", dtype=torch.float32)) == SwitchAt(200.0, -2.0, None)
    assert requests == [("owner/name", "basinguard.json", {"revision": "v2"})]


@pytest.mark.parametrize("source", ["owner/absent", "no such folder"])
def test_what_cannot_be_found_is_one_clear_line(cached, source, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=source) as refused:
        load(source, cache_dir=tmp_path / "hub", local_files_only=True)
    assert "\n" not in str(refused.value)


def test_a_damaged_model_is_one_clear_line(exported):
    (exported / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="cannot be loaded as a diffusers pipeline"):
        load(exported)


def test_a_pickle_is_never_opened(pipe, exported):
    unet = exported / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(pipe.unet.state_dict(), unet.with_suffix(".bin"))
    unet.unlink()
    with pytest.raises(ValueError, match="cannot be loaded"):
        load(exported)


SCRIPT = """
import sys
sys.modules["basinguard"] = None  # importing it raises
import torch
from diffusers import DiffusionPipeline
folder, noise, out = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
noise = torch.load(noise)
images = pipe(["red circle", "blue square"], latents=noise, guidance_scale=7.5, num_inference_steps=5,
              output_type="latent").images
assert not pipe.unet._forward_hooks and type(pipe).__name__ == "BasinguardPipeline"
torch.save(images, out)
"""


@pytest.mark.long  # export/test_directory.py proves the same of the export in the default tier
def test_the_shipped_pipeline_needs_no_basinguard(pipe, exported, record, tmp_path):
    package = files("basinguard")
    shutil.copy(str(package / "exports" / "assets" / "pipeline.py"), exported / "pipeline.py")
    shutil.copy(str(package / "guidance" / "core.py"), exported / "basinguard_guidance.py")
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    torch.save(noise, tmp_path / "noise.pt")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    environment["HF_HOME"] = str(tmp_path / "cache")
    command = [sys.executable, "-c", SCRIPT, str(exported), str(tmp_path / "noise.pt"), str(tmp_path / "out.pt")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    guarded = torch.load(tmp_path / "out.pt")
    assert close(guarded, sample(protect(pipe, record), latents=noise))
    assert not close(guarded, sample(unprotect(pipe), latents=noise), 1e-2)
    assert (
        Path(exported / "basinguard_guidance.py").read_bytes()
        == Path(str(package / "guidance" / "core.py")).read_bytes()
    )
