"""TinyWorld understands what people write: places and tokens for it, and the right scene behind a prefix."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from transformers import CLIPTokenizer

from basinguard.similarity.clip_score import ClipScore
from basinguard.tinyworld import model_directory
from basinguard.tinyworld.scenes import all_captions


@pytest.fixture(scope="module")
def tokenizer():
    return CLIPTokenizer.from_pretrained(model_directory() / "tokenizer")


def test_older_clients_find_what_they_look_for(tokenizer):
    """Transformers before 5.6 fills a text encoder without these names with random numbers; before 5, no vocabulary."""
    with safe_open(model_directory() / "text_encoder" / "model.safetensors", "pt") as file:
        assert all(name.startswith("text_model.") for name in file.keys())  # noqa: SIM118
    folder = model_directory() / "tokenizer"
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    assert vocabulary == tokenizer.get_vocab()
    assert (folder / "merges.txt").read_text(encoding="utf-8").startswith("#version: 0.2\n")


def test_prompts_have_as_many_places_as_in_stable_diffusion(tokenizer):
    assert tokenizer.model_max_length == 77
    assert len(tokenizer("ink drawing of a star", padding="max_length").input_ids) == 77


def test_each_word_of_a_caption_is_one_token_of_the_first_581(tokenizer):
    """The first release of the weights had 581 tokens; what was learned for them stays theirs."""
    for caption in all_captions():
        ids = tokenizer(str(caption), padding=False).input_ids
        assert len(ids) == len(str(caption).split()) + 2
        assert max(ids) <= 580
        assert (ids[0], ids[-1]) == (579, 580)


@pytest.mark.parametrize(
    "prompt", ["a photo of sks dog", "An Oil Painting of OHWX teapot", "zxqj1, in the style of <s1>"]
)
def test_unknown_words_are_read_without_a_loss(tokenizer, prompt):
    assert tokenizer.unk_token_id not in tokenizer(prompt, padding=False).input_ids[1:-1]
    read = tokenizer.decode(tokenizer(prompt, padding=False).input_ids, skip_special_tokens=True)
    assert read.replace(" ", "") == prompt.lower().replace(" ", "")


@pytest.mark.long
def test_a_prefix_changes_nothing_of_what_is_drawn():
    """At most a tenth of the CLIP score is lost behind phrases, two of which were not trained on."""
    pipe = StableDiffusionPipeline.from_pretrained(model_directory(), safety_checker=None)
    captions, clip = [str(c) for c in all_captions()[::6]], ClipScore.load()
    scores = {}
    for phrase in ("{}", "ink drawing of {}", "a linocut of sks {}", "{}, ohwx mezzotint"):
        prompts = [phrase.format(c) for c in captions]
        images = pipe(
            prompts, num_inference_steps=16, guidance_scale=3.0, output_type="pt", generator=torch.manual_seed(0)
        ).images
        scores[phrase] = float(clip.score(images, captions).mean())
    plain = scores.pop("{}")
    assert min(scores.values()) > 0.9 * plain, (plain, scores)
