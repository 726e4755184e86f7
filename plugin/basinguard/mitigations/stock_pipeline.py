"""The stock pipeline as mitigations use it: under a rule, with other noise or embeddings, with another prediction.

Three ways in, all undone when they are left: a rule (`pipelines.protect`), a guided prediction of one's own
(`guided`), or another network in the place of the UNet's (`routed`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..guidance.core import Rule
from ..pipelines.stock_sampling import sample_batch
from .testbed import Batch, Testbed

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]  # latents, timestep, text states -> the UNet's raw output
Guide = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]  # x, timestep, states, uncond, cond -> guided


def sample_pipeline(
    testbed: Testbed,
    batch: Batch,
    rule: Rule | None = None,
    *,
    pipe: StableDiffusionPipeline | None = None,
    noise: Tensor | None = None,
    embeddings: Tensor | None = None,
) -> Tensor:
    """Clean latents [B, C, h, w] by the pipeline's own loop and scheduler.

    Args:
        testbed: the model under test.
        batch: prompts and seeds.
        rule: decides the guidance scale; None leaves plain CFG.
        pipe: another pipeline than the testbed's.
        noise: instead of the seeds' own, [B, C, h, w], unit variance.
        embeddings: instead of the prompts' own, [B, tokens, width].
    """
    pipe = testbed.pipe if pipe is None else pipe
    start = (testbed.noise(batch) if noise is None else noise).to(pipe.unet.device, pipe.unet.dtype)
    options: dict[str, Any] = {"latents": start, "output_type": "latent"}
    if embeddings is not None:
        nothing = empty(testbed, len(batch))
        options |= {"prompt": None, "prompt_embeds": embeddings, "negative_prompt_embeds": nothing}
    return sample_batch(pipe, batch.prompts, batch.seeds, rule, testbed.guard.plan, **options).images


def states(testbed: Testbed, batch: Batch) -> Tensor:
    """Text states of a batch, [B, tokens, width], as the pipeline makes them."""
    encoded: Tensor = testbed.pipe.encode_prompt(list(batch.prompts), testbed.pipe.unet.device, 1, False)[0]
    return encoded


def empty(testbed: Testbed, rows: int) -> Tensor:
    """Text states of the empty prompt, [rows, tokens, width]."""
    return states(testbed, Batch(("",), (0,))).expand(rows, -1, -1)


@contextmanager
def guided(pipe: StableDiffusionPipeline, guide: Callable[[Forward], Guide]) -> Iterator[None]:
    """Inside, the pipeline's loop follows the prediction that the guide makes of both branches.

    The UNet's two halves are both replaced by the guided prediction g, so that the pipeline's own `u + s * (c - u)`
    gives g whatever s is.

    Args:
        pipe: a `StableDiffusionPipeline` called with a guidance scale above 1.
        guide: given a function for further evaluations of the UNet, returns the guide.
    """
    inside = False

    def forward(x: Tensor, timestep: Tensor, text_states: Tensor) -> Tensor:
        nonlocal inside
        inside = True
        try:
            output: Tensor = pipe.unet(x, timestep, encoder_hidden_states=text_states, return_dict=False)[0]
        finally:
            inside = False
        return output

    made = guide(forward)

    def after(module: Any, args: tuple, kwargs: dict, output: tuple) -> tuple | None:
        if inside:
            return None
        x, timestep, text_states = args[0], args[1], kwargs["encoder_hidden_states"]
        uncond, cond = output[0].chunk(2)
        half = len(uncond)
        prediction = made(x[:half], timestep, text_states[half:], uncond, cond)
        return (torch.cat([prediction, prediction]), *output[1:])

    hook = pipe.unet.register_forward_hook(after, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


Route = Callable[[float, Tensor], Tensor]  # timestep and text states [B, tokens, width] -> rows for the base [B] bool


@contextmanager
def routed(testbed: Testbed, route: Route) -> Iterator[None]:
    """Inside, the rows that `route` picks are predicted by the base model instead of the fine-tuned one.

    A row is evaluated by one of the two, so it costs what it always did. With a LoRA the base is the same network with
    its adapters off. Text states stay those of the fine-tuned pipeline.
    """
    unet = testbed.pipe.unet
    tuned = unet.forward
    based = testbed.base.unet.forward if testbed.base is not None else _without_adapters(unet, tuned)

    def forward(x: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **options: Any) -> Any:
        picked = route(float(timestep.flatten()[0]), encoder_hidden_states)
        if bool(picked.all()):
            return based(x, timestep, encoder_hidden_states, **options)
        if not bool(picked.any()):
            return tuned(x, timestep, encoder_hidden_states, **options)
        text_states = encoder_hidden_states
        ours = tuned(x[~picked], timestep, text_states[~picked], **options)[0]
        output = torch.empty_like(x, dtype=ours.dtype)
        output[~picked] = ours
        output[picked] = based(x[picked], timestep, text_states[picked], **options)[0]
        return (output,)

    own = unet.__dict__.get("forward")  # an instance's own, such as accelerate's; usually the class has it
    unet.forward = forward
    try:
        yield
    finally:
        del unet.forward
        if own is not None:
            unet.forward = own


def _without_adapters(unet: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
    def based(*args: Any, **options: Any) -> Any:
        unet.disable_adapters()
        try:
            return forward(*args, **options)
        finally:
            unet.enable_adapters()

    return based
