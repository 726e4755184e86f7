"""A rule belongs to the call: copies carry it, threads keep apart, and what is not guarded is said."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline

from basinguard.guidance.core import Constant, SwitchAt
from basinguard.pipelines.protect import is_protected, last_trace, protect, unprotect
from support import tiny_pipelines as tiny
from support.tiny_pipeline import build_scheduler

RULE = SwitchAt(600, -2.0, None)


@pytest.fixture
def pipe():
    return tiny.pipeline()


def sample(pipe, scale=7.5, **options):
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 6, "output_type": "latent", "height": 16, "width": 16, **options}
    return pipe("a red circle", guidance_scale=scale, generator=generator, **options).images


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda pipe: pickle.loads(pickle.dumps(pipe)),
}


@pytest.mark.parametrize("how", ["copy", "pickle", pytest.param("deepcopy", marks=pytest.mark.long)])
def test_a_copy_is_guarded_by_itself(pipe, how):
    guarded, strong = sample(protect(pipe, RULE)), sample(pipe, scale=4.0)
    twin = COPIES[how](pipe)
    assert is_protected(twin)
    assert type(twin).__name__ == "StableDiffusionPipeline"
    assert torch.equal(sample(twin), guarded)
    assert torch.equal(sample(twin, scale=4.0), strong), "its own scale, whatever the other was called with"
    traced = last_trace(pipe)
    sample(twin)
    assert last_trace(pipe) is traced
    plain = sample(unprotect(twin))
    assert is_protected(pipe)
    assert torch.equal(sample(pipe), guarded)
    assert not torch.equal(plain, guarded)


LEAVING = {
    "components": lambda pipe: StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False),
    "from_pipe": StableDiffusionImg2ImgPipeline.from_pipe,
}


@pytest.mark.parametrize("how", LEAVING)
def test_parts_that_leave_without_their_rule_are_spoken_of(pipe, how):
    protect(pipe, RULE)
    with pytest.warns(UserWarning, match="plain CFG until it is protected"):
        other = LEAVING[how](pipe)
    assert not is_protected(other)
    assert is_protected(protect(other, RULE))


def test_what_diffusers_asks_for_the_parts_itself_warns_of_nothing(pipe, tmp_path):
    protect(pipe, RULE)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pipe.to("cpu")
        pipe.save_pretrained(tmp_path / "saved")


def test_threads_on_one_unet_give_what_each_gives_alone(pipe):
    """A tokenizer each: fast ones are not for threads, and plain pipelines that share one differ as well."""
    rules = [RULE, Constant(1.0), SwitchAt(300, 0.0, None), None]
    pipes = []
    for rule in rules:
        own = {"scheduler": build_scheduler(), "tokenizer": copy.deepcopy(pipe.tokenizer)}
        other = type(pipe)(**{**pipe.components, **own}, requires_safety_checker=False)
        other.set_progress_bar_config(disable=True)
        pipes.append(other if rule is None else protect(other, rule))
    alone = [sample(each) for each in pipes]
    together, start = [None] * len(pipes), threading.Barrier(len(pipes))

    def work(number):
        start.wait()
        together[number] = sample(pipes[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(pipes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ours, right in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, right)
    assert not pipe.unet._forward_hooks


def test_a_scheduler_swapped_after_protecting_is_checked_when_it_is_used(pipe):
    protect(pipe, tiny.make_record())
    sample(pipe)
    fits = pipe.scheduler
    pipe.scheduler = build_scheduler("epsilon")
    with pytest.raises(ValueError, match="predicts 'v_prediction', this pipeline's predicts 'epsilon'"):
        sample(pipe)
    pipe.scheduler = DDIMScheduler.from_config(fits.config, beta_end=0.02)
    with pytest.raises(ValueError, match="the record belongs to another base model"):
        sample(pipe)
    assert not pipe.unet._forward_hooks


def test_a_scale_so_near_1_that_the_rule_is_rounded_away_is_refused(pipe):
    right = sample(protect(pipe, Constant(-2.0)))
    torch.testing.assert_close(sample(pipe, scale=1.001), right, rtol=1e-2, atol=1e-2)  # float32 has the digits
    pipe.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"guidance_scale=1.01: so near 1 that torch.bfloat16 rounds"):
        sample(pipe, scale=1.01)
    sample(pipe, scale=3.0)


def test_a_call_that_begins_below_the_transition_says_once_that_it_was_plain_cfg(pipe):
    parts = {**pipe.components, "image_encoder": None}
    image = protect(StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False), RULE)
    image.set_progress_bar_config(disable=True)
    picture = torch.rand(1, 3, 16, 16)
    call = {"image": picture, "num_inference_steps": 10, "output_type": "latent", "guidance_scale": 5.0}
    with pytest.warns(UserWarning, match="below the rule's transition 600: it was plain CFG"):
        image("a red circle", strength=0.3, **call)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image("a red circle", strength=0.3, **call)
        image("a red circle", strength=0.9, **call)
