"""Somepalli et al., disturb the prompt: random tokens in the text, or Gaussian noise on its embedding.

Source: Somepalli et al., arXiv 2305.20086, section 6 (inference-time mitigation): random tokens are inserted at random
places of the caption; or embedding + lambda * noise, lambda 0.1. Cost: that of plain CFG.

Differences from the released code: a random token is any word piece of the model's own tokenizer that is a whole word,
where the released code draws among the first 49,400 ids and so also inserts word fragments; its edits "add a number"
and "repeat a word" are of the same kind and left out. Everything random comes from the sample's own seed.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from .base import Mitigation
from .stock_pipeline import sample_pipeline, states
from .testbed import Batch, Testbed

END = "</w>"  # what CLIP's tokenizers mark the end of a word with


def insert_random_words(prompt: str, words: list[str], count: int, seed: int) -> str:
    """The prompt with `count` random words at random places.

    Example:
        >>> insert_random_words("a red ball", ["tree"], 1, seed=0)
        'a red ball tree'
    """
    rng = random.Random(seed)
    text = prompt.split(" ")
    for _ in range(count):
        text.insert(rng.randint(0, len(text)), rng.choice(words))
    return " ".join(text)


def whole_words(tokenizer: Any) -> list[str]:
    """Every token that is a word, in order of its id; single letters only when there is nothing longer."""
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    words = (token.removesuffix(END) for token, _ in tokens if token.endswith(END))
    letters = [word for word in words if word.isascii() and word.isalpha()]
    return [word for word in letters if len(word) > 1] or letters


def _tokens(testbed: Testbed, batch: Batch, count: float) -> Tensor:
    words = whole_words(testbed.pipe.tokenizer)
    pairs = zip(batch.prompts, batch.seeds, strict=True)
    disturbed = tuple(insert_random_words(prompt, words, int(count), seed) for prompt, seed in pairs)
    return sample_pipeline(testbed, Batch(disturbed, batch.seeds))


def _noise(testbed: Testbed, batch: Batch, amount: float) -> Tensor:
    text_states = states(testbed, batch)
    drawn = [torch.randn(*text_states.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in batch.seeds]
    return sample_pipeline(testbed, batch, embeddings=text_states + amount * torch.stack(drawn).to(text_states))


def _has_words(testbed: Testbed) -> str:
    return "" if whole_words(testbed.pipe.tokenizer) else "the tokenizer knows no whole word to insert"


TOKENS = Mitigation(
    name="random-tokens",
    source="Somepalli et al., arXiv 2305.20086, section 6",
    intensity="words inserted",
    intensities=(1.0, 2.0, 3.0, 4.0, 6.0),
    default=2.0,
    sampler=_tokens,
    requires=_has_words,
)
NOISE = Mitigation(
    name="embedding-noise",
    source="Somepalli et al., arXiv 2305.20086, section 6",
    intensity="lambda",
    intensities=(0.05, 0.1, 0.2, 0.4, 0.8),
    default=0.1,
    sampler=_noise,
)
