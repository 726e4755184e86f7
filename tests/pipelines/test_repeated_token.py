"""Stable Diffusion 3 without its third encoder: the tokens that stand for it are carried once, the prediction stays."""

import pytest
import torch
from diffusers import SD3Transformer2DModel

from basinguard.diffusion.sampling import EMPTY as EMPTY_PROMPT
from basinguard.pipelines.families import stable_diffusion_3
from basinguard.pipelines.families.registry import family_of
from basinguard.pipelines.families.repeated_token import equal_at_end
from support.tiny_pipeline import TOKENS, build_tiny_sd3

EMPTY = 256  # tokens of zeros, as `StableDiffusion3Pipeline.encode_prompt` has them
X = torch.randn(2, 4, 16, 12, generator=torch.Generator().manual_seed(0))
TIMESTEPS = torch.tensor([900.0, 100.0])


@pytest.fixture(scope="module", params=["3", "3.5 medium"])
def pipe(request):
    """Of each release's attention: 3.5 normalises queries and keys, and attends to the image alone as well."""
    pipe = build_tiny_sd3()
    if request.param != "3":
        with torch.random.fork_rng():
            torch.manual_seed(1)
            more = {"qk_norm": "rms_norm", "dual_attention_layers": (0,)}
            pipe.transformer = SD3Transformer2DModel.from_config({**pipe.transformer.config, **more})
    return pipe


@pytest.fixture
def arguments(pipe):
    with torch.no_grad():
        return family_of(pipe).text_states(pipe, ["a ball", ""])


@pytest.fixture
def lengths(pipe):
    """How many tokens of text went through the first layer, a number a call."""
    counts = []
    hook = pipe.transformer.context_embedder.register_forward_hook(lambda _, inputs, out: counts.append(out.shape[1]))
    yield counts
    hook.remove()


def ours(pipe, arguments):
    return family_of(pipe).forward(pipe, X, TIMESTEPS, arguments)


def stock(pipe, arguments):
    return pipe.transformer(hidden_states=X, timestep=TIMESTEPS, **arguments).sample


def gradients(pipe, prediction):
    weights = list(pipe.transformer.parameters())
    return torch.autograd.grad(prediction.square().mean(), weights, allow_unused=True)


def same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_prediction_and_gradient_are_the_transformers_own(pipe, arguments, lengths):
    own, carried = stock(pipe, arguments), ours(pipe, arguments)
    assert lengths == [TOKENS + EMPTY, TOKENS + 1]
    torch.testing.assert_close(carried, own, rtol=1e-5, atol=1e-5)
    same(gradients(pipe, carried), gradients(pipe, own))
    once = dict(arguments, encoder_hidden_states=arguments["encoder_hidden_states"][:, : TOKENS + 1])
    assert (stock(pipe, once) - own).abs().max() > 1e-3, "one token of zeros is as good as all of them"


def test_a_probe_looks_once_for_all_its_calls(pipe, arguments, lengths, monkeypatch):
    looks = []
    monkeypatch.setattr(stable_diffusion_3, "equal_at_end", lambda *given: looks.append(1) or equal_at_end(*given))
    texts = family_of(pipe).condition(pipe, ["a ball"], 128, torch.float32)
    rows = torch.tensor([0, EMPTY_PROMPT])
    with torch.no_grad():
        predictions = [ours(pipe, texts.arguments(rows)) for _ in range(3)]
        own = stock(pipe, arguments)
    assert (len(looks), lengths) == (1, [TOKENS + 1] * 3 + [TOKENS + EMPTY])
    for prediction in predictions:
        torch.testing.assert_close(prediction, own, rtol=1e-5, atol=1e-5)


def test_tokens_that_noise_has_made_different_are_all_carried(pipe, arguments, lengths):
    arguments["encoder_hidden_states"] = arguments["encoder_hidden_states"].clone()
    arguments["encoder_hidden_states"][1, -2] += 1
    torch.testing.assert_close(ours(pipe, arguments), stock(pipe, arguments), rtol=0, atol=0)
    assert lengths == [TOKENS + EMPTY] * 2


def test_checkpointed_activations_have_the_same_gradient(pipe, arguments):
    own = gradients(pipe, stock(pipe, arguments))
    pipe.transformer.train().enable_gradient_checkpointing()
    try:
        same(gradients(pipe, ours(pipe, arguments)), own)
    finally:
        pipe.transformer.eval().disable_gradient_checkpointing()
