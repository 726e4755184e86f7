"""The workflow of a LoRA whose strength depends on the timestep, and ComfyUI's keyframes, re-told from its source."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from basinguard.core.recorded_weights import RecordedSchedule, RecordedWeights
from basinguard.diffusion.toy import stable_diffusion_schedule
from basinguard.exports.a1111 import a1111_prompt
from basinguard.exports.comfyui import WorkflowFiles, comfyui_workflow
from basinguard.exports.comfyui_strength import require_levels, start_percents
from basinguard.exports.inspect import describe_file
from basinguard.exports.lora import export_lora
from basinguard.exports.lora_header import usage_hint
from basinguard.exports.merge import merged
from basinguard.exports.model_kind import XL_CLASS, ModelKind
from basinguard.exports.sampler_grids import SIGMAS, grid
from basinguard.exports.ui_instructions import a1111_text, comfyui_text
from basinguard.guidance.strength import StrengthSchedule
from support.exports import build_record

FILES = WorkflowFiles(lora="cats.safetensors")
THREE = {"transitions": (700.0, 300.0), "strengths": (0.0, 0.6, 1.0)}
LOG_SIGMAS = stable_diffusion_schedule().sigma(torch.arange(1000)).double().log().numpy()
TRANSITIONS = ((300.0,), (749.0, 249.0), (999.0, 0.0), (700.5, 300.0), (800.0, 600.0, 400.0, 200.0))


def scheduled(record, **schedule):
    product = RecordedWeights(kind="lora", strength_schedule=RecordedSchedule(**(schedule or THREE)))
    return record.model_copy(update={"product": product})


def plain(record):
    rule = {"transition": 999.0, "sigma": 14.6, "before": 4.0, "after": 4.0}
    return record.model_copy(update={"guidance": record.guidance.model_copy(update=rule)})


def sigma(timestep: float) -> float:
    """A noise level of Stable Diffusion's, between whole timesteps linear in its logarithm, as in ComfyUI."""
    return float(np.exp(np.interp(timestep, np.arange(1000), LOG_SIGMAS)))


def held(strengths, percents, sigmas) -> list[float]:
    """The strength in each step of a sampler, as `HookKeyframeGroup` of comfy/hooks.py has it in ComfyUI 0.3.64."""
    starts = [1e9 if percent <= 0 else sigma((1 - percent) * 999) for percent in percents]
    guaranteed = [0 if start > max(sigmas) else 1 for start in starts]
    index, used, each = 0, 0, []
    for now in sigmas:
        if used >= guaranteed[index]:
            for later in range(index + 1, len(starts)):
                if starts[later] < now:
                    break
                index, used = later, 0
                if guaranteed[later]:
                    break
        used += 1
        each.append(strengths[index])
    return each


def schedule_of(transitions):
    return StrengthSchedule(transitions, tuple(level / len(transitions) for level in range(len(transitions) + 1)))


@pytest.mark.parametrize("scheduler", ["simple", "ddim_uniform", "karras", "exponential"])
@pytest.mark.parametrize("transitions", TRANSITIONS)
@pytest.mark.parametrize("first", [0, 4])
def test_comfyui_has_our_strength_in_each_step_also_from_the_middle_on(scheduler, transitions, first):
    """`first`: the step that the second of two samplers begins with."""
    schedule, visited = schedule_of(transitions), grid(scheduler, 11)[first:]
    sigmas = SIGMAS[scheduler](11)[first:] if scheduler in SIGMAS else [sigma(t) for t in visited]
    theirs = held(schedule.strengths, start_percents(transitions), sigmas)
    assert theirs == [schedule.at(round(float(timestep))) for timestep in visited]


def test_keyframes_lie_within_a_timestep_of_their_transition_whole_timesteps_on_its_right_side():
    for transition in range(1000):
        _, percent = start_percents([float(transition)])
        assert percent == round(percent, 3)  # what ComfyUI's window keeps
        assert transition < (1 - percent) * 999 < transition + 1 or transition == 999
    assert start_percents([]) == [0.0]
    assert start_percents([700.0, 300.0]) == [0.0, 0.299, 0.699]


@pytest.mark.parametrize("transitions", [(490.0, 480.0), (890.0, 880.0, 300.0)])
def test_a_level_that_no_step_has_would_come_late_and_is_refused(transitions):
    schedule, visited = schedule_of(transitions), grid("simple", 8)
    theirs = held(schedule.strengths, start_percents(transitions), [sigma(timestep) for timestep in visited])
    assert theirs != [schedule.at(float(timestep)) for timestep in visited]
    recorded = RecordedSchedule(transitions=schedule.transitions, strengths=schedule.strengths)
    with pytest.raises(ValueError, match=r"none of 8 steps of simple lies between timesteps .* take more steps"):
        require_levels(recorded, visited, "simple")
    require_levels(recorded, grid("simple", 1000), "simple")


@pytest.mark.parametrize(
    ("scheduler", "transitions"), [("ddim_uniform", (950.0, 900.0, 400.0)), ("simple", (400.0, 20.0, 10.0))]
)
def test_levels_before_the_first_step_and_after_the_last_one_may_be_empty(scheduler, transitions):
    schedule, visited = schedule_of(transitions), grid(scheduler, 8)
    require_levels(RecordedSchedule(transitions=transitions, strengths=schedule.strengths), visited, scheduler)
    theirs = held(schedule.strengths, start_percents(transitions), [sigma(timestep) for timestep in visited])
    assert theirs == [schedule.at(float(timestep)) for timestep in visited]
    assert len(set(theirs)) == 2


@pytest.mark.parametrize("ruled", [False, True])
@pytest.mark.parametrize("kind", [ModelKind(), ModelKind(XL_CLASS, zero_empty=True)])
def test_every_prompt_that_is_sampled_with_carries_the_hook(record, ruled, kind):
    own = scheduled(record if ruled else plain(record))
    flow = comfyui_workflow(own, files=WorkflowFiles(lora="cats.safetensors", kind=kind))
    flow = json.loads(json.dumps(flow))
    assert flow["lora"]["inputs"] == {"lora_name": "cats.safetensors", "strength_model": 1.0, "strength_clip": 1.0}
    keyframes = [flow[f"level {at}"]["inputs"] for at in (1, 2, 3)]
    assert [(k["strength_mult"], k["start_percent"]) for k in keyframes] == [(0.0, 0.0), (0.6, 0.299), (1.0, 0.699)]
    assert [k.get("prev_hook_kf") for k in keyframes] == [None, ["level 1", 0], ["level 2", 0]]
    assert flow["levels"]["inputs"] == {"hooks": ["lora", 0], "hook_kf": ["level 3", 0]}
    hooked = flow["hooked"]["inputs"]
    assert (hooked["clip"], hooked["hooks"]) == (["load", 1], ["levels", 0])
    assert (hooked["apply_to_conds"], hooked["schedule_clip"]) == (True, False)
    encoded = {name: node["inputs"]["clip"] for name, node in flow.items() if "CLIPTextEncode" in node["class_type"]}
    assert encoded == {name: ["hooked", 0] for name in ("prompt", "nothing" if kind.xl else "empty")}
    samplers = [node for node in flow.values() if node["class_type"] == "KSamplerAdvanced"]
    assert len(samplers) == 1 + ruled
    assert {node["inputs"]["model"][0] for node in samplers} == {"model"}
    assert flow["model"]["inputs"]["model"] == ["load", 0]  # the LoRA is in the hook alone
    links = [v for node in flow.values() for v in node["inputs"].values() if isinstance(v, list)]
    assert all(name in flow for name, _ in links)


def test_a_schedule_needs_its_lora_by_itself_and_whole(record, tmp_path):
    model, lora = tmp_path / "model.safetensors", tmp_path / "cats.safetensors"
    save_file({"x": torch.zeros(1)}, model)
    header = {"basinguard.calibration.strength": "0.6"}
    save_file({"x": torch.zeros(1)}, lora, metadata=header)
    with pytest.raises(ValueError, match=r"0 at high noise, 0.6 from 700 down.* one checkpoint cannot hold"):
        comfyui_workflow(scheduled(record), files=WorkflowFiles.of(str(model)))
    with pytest.raises(ValueError, match=r"cats.safetensors has 0.6 of the trained LoRA .* --strength 1"):
        comfyui_workflow(scheduled(record), files=WorkflowFiles.of(str(model), lora))
    save_file({"x": torch.zeros(1)}, lora, metadata={"basinguard.calibration.strength": "much"})
    with pytest.raises(ValueError, match=r"'much' as basinguard\.calibration\.strength"):
        WorkflowFiles.of(str(model), lora)


def test_a_lora_whose_alpha_comfyui_would_not_see_is_refused(tuned, tmp_path):
    record = build_record(merged(tuned))
    model = str(tmp_path / "model.safetensors")
    save_file({"x": torch.zeros(1)}, model)
    for form in ("kohya", "diffusers-folded", "diffusers"):
        export_lora(tuned, record, tmp_path / f"{form}.safetensors", format=form)
    for form in ("kohya", "diffusers-folded"):
        assert WorkflowFiles.of(model, tmp_path / f"{form}.safetensors").lora == f"{form}.safetensors"
    with pytest.raises(
        ValueError, match="alpha is said in the header, which ComfyUI does not read; export it as kohya"
    ):
        WorkflowFiles.of(model, tmp_path / "diffusers.safetensors")


def test_a_schedule_is_refused_where_the_samplers_or_steps_cannot_follow(record):
    close = scheduled(record, transitions=(490.0, 480.0), strengths=(0.0, 0.6, 1.0))
    with pytest.raises(ValueError, match="none of 20 steps of simple lies between timesteps 490 and 480"):
        comfyui_workflow(close, files=FILES)
    with pytest.raises(ValueError, match="'heun' evaluates more than once a step"):
        comfyui_workflow(scheduled(plain(record)), files=FILES, sampler="heun")
    with pytest.raises(ValueError, match="cannot depend on the timestep there"):
        a1111_prompt(scheduled(record), "a cat")


def test_card_header_and_inspect_say_how_and_where_it_cannot_be(record, tmp_path):
    own = scheduled(record)
    keyframes = "keyframes 0 at start_percent 0, 0.6 at start_percent 0.299, 1 at start_percent 0.699, on both prompts"
    assert keyframes in comfyui_text(own)
    assert comfyui_text(own).startswith("guarded, core nodes only.** Put this directory into `models/diffusers`")
    assert a1111_text(own).startswith("NOT guarded.** A1111 and Forge read the strength of a LoRA once")
    hint = usage_hint(own)
    assert keyframes in hint
    assert "scale -2 above timestep 500" in hint
    assert "NOT guarded" in comfyui_text(plain(own), ModelKind("StableDiffusion3Pipeline"))
    path = tmp_path / "basinguard.json"
    path.write_text(own.to_json())
    assert "0.6 at start_percent 0.299" in " ".join(describe_file(path).split())
