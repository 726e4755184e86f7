"""What people combine guidance with: each must behave under a rule as it does at a guidance scale of its own."""

import shutil

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_submodules
from peft import LoraConfig

from basinguard.guidance.core import Constant, SwitchAt
from basinguard.pipelines.protect import last_trace, protect, unprotect
from support import tiny_pipelines as tiny

PROMPTS = ["red circle", "blue square"]


@pytest.fixture
def pipe():
    return tiny.pipeline()


def sample(pipe, **options):
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)).repeat(2, 1, 1, 1)
    options = {"guidance_scale": 7.5, "num_inference_steps": 4, "output_type": "latent", "latents": noise} | options
    return pipe(**{"prompt": PROMPTS} | options).images


def close(a, b, tolerance=1e-4):
    return torch.allclose(a, b, rtol=0, atol=tolerance * float(b.abs().max()))


def assert_follows_the_rule(pipe, **options):
    """Scale 7.5 to the bit, scale 3 as at guidance_scale=3, and the pipeline as before once unprotected."""
    stock, three = sample(pipe, **options), sample(pipe, guidance_scale=3.0, **options)
    assert not close(stock, three, 1e-3)
    assert torch.equal(sample(protect(pipe, Constant(7.5)), **options), stock)
    assert close(sample(protect(pipe, Constant(3.0)), **options), three)
    sample(protect(pipe, SwitchAt(600, 0.0, None)), **options)
    assert {o.unet_evals for o in last_trace(pipe)} == {2, 4}
    assert torch.equal(sample(unprotect(pipe), **options), stock)
    return stock


def test_guidance_rescale(pipe):
    plain = sample(pipe)
    assert not close(assert_follows_the_rule(pipe, guidance_rescale=0.7), plain, 1e-3)


def test_a_rescaled_batch_equals_single_runs(pipe):
    rule = SwitchAt((300.0, 900.0), 0.0, None)
    both = sample(protect(pipe, rule), guidance_rescale=0.7)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    for row, transition in enumerate(rule.transition):
        protect(pipe, SwitchAt(transition, 0.0, None))
        alone = sample(pipe, prompt=PROMPTS[row], latents=noise, guidance_rescale=0.7)
        assert close(both[row : row + 1], alone)


def test_negative_prompts(pipe):
    plain = sample(pipe)
    stock = assert_follows_the_rule(pipe, negative_prompt=["photo", "a red square"])
    assert not close(stock, plain, 1e-3)
    _, negative = pipe.encode_prompt(PROMPTS, "cpu", 1, True, negative_prompt=["photo", "a red square"])
    alone = sample(pipe, prompt=None, prompt_embeds=negative, guidance_scale=1.0)
    assert close(sample(protect(pipe, Constant(0.0)), negative_prompt=["photo", "a red square"]), alone)


def test_lora_strength(pipe):
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_k", "to_v"], init_lora_weights=False))
    half = assert_follows_the_rule(pipe, cross_attention_kwargs={"scale": 0.5})
    assert not close(half, sample(pipe), 1e-3)


def test_ip_adapter(pipe):
    weights = {}
    for number, name in enumerate(n for n in pipe.unet.attn_processors if not n.endswith("attn1.processor")):
        size = pipe.unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape[0]
        weights[f"{2 * number + 1}.to_k_ip.weight"] = torch.randn(size, 16)
        weights[f"{2 * number + 1}.to_v_ip.weight"] = torch.randn(size, 16)
    projection = {"proj.weight": torch.randn(64, 12), "proj.bias": torch.randn(64)}
    projection |= {"norm.weight": torch.ones(16), "norm.bias": torch.zeros(16)}
    plain = sample(pipe)
    pipe.unet._load_ip_adapter_weights([{"ip_adapter": weights, "image_proj": projection}])
    stock = assert_follows_the_rule(pipe, ip_adapter_image_embeds=[torch.randn(2, 1, 12)])
    assert not close(stock, plain, 1e-3)


@pytest.mark.parametrize(
    "how", ["model", *(pytest.param(name, marks=pytest.mark.long) for name in ("sequential", "group"))]
)
def test_cpu_offload(pipe, how):
    """diffusers' and accelerate's own machinery with the CPU as the accelerator: the hooks are real."""
    plain, cpu = sample(pipe), torch.device("cpu")
    if how == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    elif how == "group":
        pipe.enable_group_offload(cpu, offload_device=cpu, offload_type="leaf_level", exclude_modules=["vae"])
    else:  # what enable_sequential_cpu_offload calls; itself it cannot take a CPU for an accelerator
        cpu_offload(pipe.unet, execution_device=cpu)
        assert next(pipe.unet.parameters()).is_meta
    assert torch.equal(assert_follows_the_rule(pipe), plain)
    if how == "sequential":
        remove_hook_from_submodules(pipe.unet)


def test_attention_slicing(pipe):
    pipe.enable_attention_slicing()
    assert_follows_the_rule(pipe)


@pytest.mark.parametrize("guess_mode", [False, True])
def test_a_control_net_skips_the_same_half(guess_mode):
    pipe, arguments = tiny.build("StableDiffusionControlNetPipeline")
    sizes = []
    pipe.controlnet.conv_in.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    protect(pipe, SwitchAt(600, 0.0, None))(**arguments, num_inference_steps=5, guess_mode=guess_mode)
    assert sizes == ([2] * 5 if guess_mode else [2, 2, 4, 4, 4])
    assert [o.unet_evals for o in last_trace(pipe)] == [2, 2, 4, 4, 4]
    assert not pipe.controlnet._forward_hooks
    assert not pipe.controlnet._forward_pre_hooks


def test_after_follows_a_guidance_scale_that_moves(pipe):
    def lower(pipe, index, timestep, values):
        pipe._guidance_scale = 3.0
        return values

    stock = sample(pipe, callback_on_step_end=lower)
    assert torch.equal(sample(protect(pipe, SwitchAt(999, after=None)), callback_on_step_end=lower), stock)


def test_half_precision(pipe):
    pipe.to(torch.bfloat16)
    noise = torch.randn(2, 4, 8, 8).bfloat16()
    stock = sample(pipe, latents=noise)
    assert torch.equal(sample(protect(pipe, Constant(7.5)), latents=noise), stock)
    three = sample(unprotect(pipe), latents=noise, guidance_scale=3.0)
    assert close(sample(protect(pipe, Constant(3.0)), latents=noise).float(), three.float(), 0.03)


def test_the_gap_is_the_same_in_half_precision(pipe):
    sample(protect(pipe, Constant(1.0)))
    sample(protect(pipe, Constant(7.5)))
    full = torch.stack([o.gap for o in last_trace(pipe)])
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)).repeat(2, 1, 1, 1)
    sample(pipe.to(torch.bfloat16), latents=noise.bfloat16())
    half = torch.stack([o.gap for o in last_trace(pipe)])
    assert half.dtype == torch.float32
    assert torch.allclose(half, full, rtol=0.1)


@pytest.mark.long
@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_a_compiled_unet(pipe, how, backend):
    """`inductor` needs a C++ compiler; both halves of the batch and one of them are two shapes to compile."""
    if backend == "inductor" and shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    torch._dynamo.reset()
    guarded = sample(protect(pipe, SwitchAt(600, 0.0, None)))
    stock = sample(unprotect(pipe))
    if how == "wrapped":
        pipe.unet = torch.compile(pipe.unet, backend=backend, fullgraph=True)
    else:
        pipe.unet.compile(backend=backend, fullgraph=True)
    assert close(sample(protect(pipe, SwitchAt(600, 0.0, None))), guarded)
    assert {o.unet_evals for o in last_trace(pipe)} == {2, 4}
    assert close(sample(unprotect(pipe)), stock)
