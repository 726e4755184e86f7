"""Pipeline x scheduler x rule: what was run, kept in `steering_table.json`.

Every cell compares a protected stock pipeline with `tinypipes.reference` and counts evaluations of the denoiser. After
a deliberate change, delete the table and write it anew: `python tests/pipelines/test_steering_table.py`.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import diffusers
import pytest
import torch

from basinguard.guidance.core import Constant, SwitchAt, resolve
from basinguard.guidance.dynamic import LocalMinimum, SwitchAfter
from basinguard.guidance.schedules import SHAPES, Interval, Schedule
from basinguard.guidance.triage import Triage
from basinguard.pipelines.protect import BATCHED, last_trace, protect, unprotect
from support import tiny_pipelines as tiny
from support.tiny_pipeline import build_scheduler

TABLE = Path(__file__).with_name("steering_table.json")
STEPS = 6
MAIN = {
    "cfg": SwitchAt(999.0, after=None),
    "stp": SwitchAt(600.0, 0.0, None),
    "og+stp": SwitchAt(600.0, -2.0, None),
    "dtp": SwitchAfter(LocalMinimum(), 0.0, None),
    "og+dtp": SwitchAfter(LocalMinimum(), -2.0, None),
}
RULES = {
    **MAIN,
    "scale 0": Constant(0.0),
    "scale 1": Constant(1.0),
    "dtp, depth 0.5": SwitchAfter(LocalMinimum(0.5), 0.0, None),
    "stp, one per prompt": SwitchAt((300.0, 800.0), 0.0, None),
    "interval": Interval(200.0, 800.0),
    "triage": Triage(SwitchAt(600.0, -2.0, None), 0.3),
    **{f"schedule {shape}": Schedule(shape) for shape in SHAPES},
}
TEXT, OWN, FLOW = "StableDiffusionPipeline", "DDIMScheduler", "FlowMatchEulerDiscreteScheduler"
LEFT_OUT = {"DPMSolverSDEScheduler", "EDMEulerScheduler"}  # needs torchsde; does not count in training timesteps
SPECIAL = {
    "Euler, Karras sigmas": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "DPM++, Karras sigmas": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "PNDM as SD ships it": ("PNDMScheduler", {"skip_prk_steps": True}),
    "DDIM, zero terminal SNR": ("DDIMScheduler", {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}),
}
SCHEDULERS = [*sorted({kind.__name__ for kind in build_scheduler().compatibles} - LEFT_OUT), *SPECIAL]
ALL = [(pipe, FLOW if "3" in pipe else name, rule) for pipe in sorted(BATCHED) for name in SCHEDULERS for rule in RULES]
CASES = [
    (pipe, name, rule)
    for pipe, name, rule in dict.fromkeys(ALL)
    if rule == "stp" or (rule in MAIN and (pipe == TEXT or name in (OWN, FLOW))) or (pipe, name) == (TEXT, OWN)
]
ALIKE = {  # steered by the same lines as Heun's method, other sigmas, ControlNet alone, and the first shape
    "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "Euler, Karras sigmas",
    "DPM++, Karras sigmas", "StableDiffusionXLControlNetImg2ImgPipeline", "StableDiffusionXLControlNetInpaintPipeline",
    *(f"schedule {shape}" for shape in [*SHAPES][1:]),
}  # fmt: skip
FAST = [
    (pipe, name, rule)
    for pipe, name, rule in CASES
    if (pipe, name) == (TEXT, OWN)  # every rule,
    or (pipe == TEXT and rule == "og+dtp")  # every scheduler, with the rule that has a state and leaves out nothing,
    or (name in (OWN, FLOW) and rule == "stp")  # and every pipeline, with the one that leaves out evaluations
    if not {pipe, name, rule} & ALIKE
]


@functools.cache
def built(name: str):
    pipe, arguments = tiny.build(name)
    tiny.wobble(pipe)
    return pipe, arguments, pipe.scheduler


def set_scheduler(pipe, own, name: str) -> None:
    pipe.scheduler = own
    kind, options = SPECIAL.get(name, (name, {}))
    if name != type(own).__name__:
        pipe.scheduler = getattr(diffusers, kind).from_config(own.config, **options)


def run(pipe, arguments) -> torch.Tensor:
    generator = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    return pipe(**arguments, num_inference_steps=STEPS, generator=generator).images


def measure(pipeline: str, scheduler: str, rule: str) -> dict:
    pipe, arguments, own = built(pipeline)
    set_scheduler(pipe, own, scheduler)
    got = run(protect(pipe, RULES[rule]), arguments)
    trace = list(last_trace(pipe))
    unprotect(pipe)
    with tiny.reference(pipe, resolve(RULES[rule], 7.5)) as scales:
        want = run(pipe, arguments)
    error = float((got - want).abs().max() / want.abs().max())
    return {
        "equal": error < 1e-4 and [o.scale.tolist() for o in trace] == scales,
        "evaluations": sum(o.unet_evals for o in trace),
        "of": 4 * len(scales),
    }


def key(case: tuple[str, str, str]) -> str:
    return " | ".join(case)


@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c in FAST else pytest.mark.long) for c in CASES], ids=key)
def test_cell(case):
    cell = measure(*case)
    assert cell["equal"]
    assert cell == json.loads(TABLE.read_text())[key(case)]


def test_the_table_holds_these_cells_and_no_others():
    assert list(json.loads(TABLE.read_text())) == [key(case) for case in CASES]


def test_the_table_shows_what_it_is_for():
    table = {case: json.loads(TABLE.read_text())[key(case)] for case in CASES}
    free = {case for case, cell in table.items() if cell["evaluations"] < cell["of"]}
    assert {rule for _, _, rule in free} == {"stp", "stp, one per prompt", "scale 0", "scale 1", "interval"}
    assert {case[:2] for case in free if case[2] == "stp"} == {case[:2] for case in CASES}


def test_a_scheduler_that_does_not_count_in_timesteps_is_refused():
    pipe, arguments, own = built(TEXT)
    pipe.scheduler = diffusers.EDMEulerScheduler()
    with pytest.raises(ValueError, match=r"EDMEulerScheduler .* does not count in training timesteps"):
        run(protect(pipe, RULES["stp"]), arguments)
    unprotect(pipe)
    pipe.scheduler = own


if __name__ == "__main__":
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    for case in CASES:
        table[key(case)] = table.get(key(case)) or measure(*case)
        TABLE.write_text(json.dumps({key(c): table[key(c)] for c in CASES if key(c) in table}, indent=1) + "\n")
