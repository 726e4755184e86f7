"""ComfyUI's node: the record of any carrier, entirely or refused, and the same samples as ours with any sampler."""

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from basinguard.diffusion.sampling import EMPTY, draw_noise, sample_trajectory
from basinguard.diffusion.toy import gaussian_memorizer
from basinguard.exports.directory import export_directory
from basinguard.exports.lora import export_lora
from basinguard.exports.merge import merged
from basinguard.exports.sampler_grids import grid
from basinguard.guidance.core import SwitchAt
from support.exports import build_record
from support.ui_emulation import denoised, euler

FOLDER = Path(__file__).parents[2] / "plugin" / "comfyui_basinguard"
SCALE = 4.0


@pytest.fixture(scope="module")
def node():
    """The folder as ComfyUI imports it: a package of its own, wherever it lies."""
    spec = importlib.util.spec_from_file_location("somewhere_custom_nodes", FOLDER / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    for name in [name for name in sys.modules if name.startswith(spec.name)]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def rules(node):
    return sys.modules[f"{node.__name__}.rule"]


class Patcher:
    """The part of ComfyUI's ModelPatcher that the node uses."""

    def __init__(self, sigmas, **options):
        self.sigmas, self.model_options = sigmas, options

    def get_model_object(self, name):
        assert name == "model_sampling"
        return SimpleNamespace(sigmas=self.sigmas)

    def clone(self):
        return Patcher(self.sigmas, **self.model_options)

    def set_model_sampler_cfg_function(self, function, disable_cfg1_optimization=False):
        self.model_options["sampler_cfg_function"] = function
        self.model_options["disable_cfg1_optimization"] = disable_cfg1_optimization


def steered(node, record, sigmas):
    return node.BasinguardRule().steer(Patcher(sigmas), "pasted below", record.to_json())[0]


def guided_by(patched, model, schedule, prompt, cfg):
    """The denoiser that ComfyUI's samplers see: `cfg_function` of comfy/samplers.py with the node's function in it."""

    def guided(step, x, timestep):
        sigma = schedule.sigma(timestep).float().expand(len(x))
        cond, uncond = (denoised(model, schedule, x, timestep, p) for p in (prompt, EMPTY))
        args = {"input": x, "cond_denoised": cond, "uncond_denoised": uncond, "cond_scale": cfg, "sigma": sigma}
        return x - patched.model_options["sampler_cfg_function"](args)

    return guided


@pytest.mark.parametrize("scheduler", ["simple", "normal", "karras", "exponential"])
@pytest.mark.parametrize("before", [-2.0, 0.0, 0.5])
def test_with_any_scheduler_it_draws_what_we_draw(node, pipe, before, scheduler):
    toy = gaussian_memorizer()
    toy = toy.__class__(toy.points.double(), toy.leak, toy.schedule)
    record, noise = build_record(pipe, before=before, transition=800.0), draw_noise(range(4), (32,)).double()
    timesteps = torch.tensor(grid(scheduler, 20)).round()
    table = toy.schedule.sigma(torch.arange(1000))
    guided = guided_by(steered(node, record, table), toy, toy.schedule, 3, SCALE)
    start = noise * (1 + toy.schedule.sigma(timesteps[0]) ** 2).sqrt()
    theirs = euler(guided, start, toy.schedule, timesteps, 0, 20)[-1]
    rule = SwitchAt(800.0, before, SCALE)
    *_, last = sample_trajectory(toy, noise, torch.full((4,), 3), toy.schedule, timesteps, rule)
    ours = last.x_next / toy.schedule.signal(torch.tensor(-1.0)).to(noise)
    torch.testing.assert_close(theirs, ours, rtol=1e-9, atol=1e-9)


def test_at_the_transition_itself_guidance_is_on_and_one_timestep_above_it_is_not(rules, pipe):
    schedule = gaussian_memorizer().schedule
    for transition in (1, 250, 500, 998):
        rule = rules.rule_of(json.loads(build_record(pipe, transition=float(transition)).to_json()))
        levels = schedule.sigma(torch.tensor([transition, transition + 1])).float()
        assert rule.scale(levels, 7.5).tolist() == [7.5, -2.0]


def test_every_carrier_gives_the_same_rule(rules, tmp_path, pipe, record, tuned):
    directory = export_directory(pipe, record, tmp_path / "model")
    lora = export_lora(tuned, build_record(merged(tuned)), tmp_path / "cats.safetensors")
    carriers = [directory, directory / "basinguard.json", directory / "scheduler" / "scheduler_config.json", lora]
    carried_rules = [rules.rule_of(rules.read_record(path)) for path in carriers]
    assert len(set(carried_rules)) == 1
    assert (carried_rules[0].before, carried_rules[0].measured) == (-2.0, 4.0)
    assert "scale -2 above sigma" in str(carried_rules[0])
    (directory / "basinguard.json").unlink()
    assert rules.rule_of(rules.read_record(directory)) == carried_rules[0]


def test_plain_cfg_steers_nothing(node, pipe):
    always = build_record(pipe, transition=999.0)
    model = Patcher(torch.ones(1000))
    same, words = node.BasinguardRule().steer(model, "pasted below", always.to_json())
    assert same is model
    assert words.startswith("plain CFG")


def test_cfg_1_does_not_switch_the_empty_prompt_off(node, pipe):
    table = gaussian_memorizer().schedule.sigma(torch.arange(1000))
    assert steered(node, build_record(pipe), table).model_options["disable_cfg1_optimization"] is True


@pytest.mark.parametrize("change", [{"anchor": True}, {"refine": 2}])
def test_a_rule_that_it_cannot_follow_entirely_is_refused(node, pipe, change):
    record = build_record(pipe)
    record = record.model_copy(update={"guidance": record.guidance.model_copy(update=change)})
    with pytest.raises(ValueError, match="base model's prediction or a finer grid"):
        steered(node, record, torch.ones(1000))


def test_what_is_no_record_no_such_model_or_already_guided_is_refused(node, rules, pipe, tmp_path):
    steer, table = node.BasinguardRule().steer, gaussian_memorizer().schedule.sigma(torch.arange(1000))
    for text in ("", "[]", "{}", '{"guidance": 3}', "nothing"):
        with pytest.raises(ValueError, match=r"no(t a)? basinguard record"):
            steer(Patcher(table), "pasted below", text)
    (tmp_path / "other.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(ValueError, match="not a safetensors file"):
        rules.read_record(tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match="no export of basinguard"):
        rules.read_record(tmp_path)
    text = build_record(pipe).to_json()
    with pytest.raises(ValueError, match="which this model does not have"):
        steer(Patcher(torch.linspace(0, 1, 1000)), "pasted below", text)
    with pytest.raises(ValueError, match="another node has changed the guidance"):
        steer(Patcher(table, sampler_cfg_function=math.sin), "pasted below", text)


def test_it_lists_what_may_carry_a_record(node, monkeypatch, tmp_path, pipe, record):
    export_directory(pipe, record, tmp_path / "diffusers" / "mine")
    files = {"loras": ["cats.safetensors", "old.pt"], "checkpoints": ["model.safetensors"]}
    comfy = SimpleNamespace(
        get_filename_list=files.__getitem__, get_folder_paths=lambda kind: [str(tmp_path / kind)],
        get_full_path_or_raise=lambda kind, name: str(tmp_path / kind / name),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "folder_paths", comfy)
    listed = node.BasinguardRule.INPUT_TYPES()["required"]["source"][0]
    assert listed == ["loras/cats.safetensors", "checkpoints/model.safetensors", "diffusers/mine", "pasted below"]
    table = gaussian_memorizer().schedule.sigma(torch.arange(1000))
    assert "scale -2" in node.BasinguardRule().steer(Patcher(table), "diffusers/mine")[1]
    with pytest.raises(ValueError, match="one of the listed files"):
        node.BasinguardRule().steer(Patcher(table), "elsewhere/mine")
