"""A strength that follows the timestep, family by family: `protect` samples as the weights switched by hand."""

import pytest
import torch
from peft import LoraConfig

from basinguard.core.recorded_weights import RecordedSchedule, RecordedWeights
from basinguard.guidance.core import from_record
from basinguard.pipelines.attachment import denoiser
from basinguard.pipelines.protect import protect, unprotect
from support.exports import build_pipe, build_record
from support.tiny_pipeline import build_tiny_sd3
from support.xl_exports import build_xl, draw, xl_record

TRANSITION, STRENGTHS = 600.0, (0.0, 1.0)
PRODUCT = RecordedWeights(
    kind="lora", strength_schedule=RecordedSchedule(transitions=(TRANSITION,), strengths=STRENGTHS)
)


def flow_record(pipe):
    """A calibration in flow time, where sigma is t / (1000 - t)."""
    record = build_record(build_pipe(), transition=TRANSITION)
    side = {
        "prediction_type": "flow_prediction",
        "resolution": pipe.transformer.config.sample_size * pipe.vae_scale_factor,
    }
    guidance = record.guidance.model_copy(update={"sigma": TRANSITION / (1000 - TRANSITION)})
    sampler = record.sampler.model_copy(update=side)
    return record.model_copy(update={"sampler": sampler, "guidance": guidance})


@pytest.mark.parametrize(("build", "record_of"), [(build_xl, xl_record), (build_tiny_sd3, flow_record)])
def test_a_record_samples_as_its_weights_switched_by_hand(build, record_of):
    pipe = build()
    record = record_of(pipe).model_copy(update={"product": PRODUCT})
    with torch.random.fork_rng():
        torch.manual_seed(7)
        denoiser(pipe).add_adapter(LoraConfig(r=2, lora_alpha=8.0, target_modules=["to_q", "to_v"]))
        for name, weight in denoiser(pipe).named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.5)
    scheduled = draw(protect(pipe, record))
    protect(pipe, from_record(record.model_dump()))
    whole = draw(pipe)

    def switch(module, args, kwargs):
        timestep = float(args[1] if len(args) > 1 else kwargs["timestep"].flatten()[0])
        module.set_adapters(["default"], weights=[STRENGTHS[timestep <= TRANSITION]])

    hook = denoiser(pipe).register_forward_pre_hook(switch, with_kwargs=True)
    by_hand = draw(pipe)
    hook.remove()
    unprotect(pipe)
    assert torch.equal(scheduled, by_hand)
    assert not torch.allclose(scheduled, whole, atol=1e-2)
