"""What captions do to memorization: a caption that only one image has is a key that only fits that image.

Source: Somepalli et al., "Understanding and Mitigating Copying in Diffusion Models", arXiv 2305.20086, section 5.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from .caption_words import is_compound, joined_terms, terms, word_number
from .findings import Finding

WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
LONG = 10  # words; a caption this long, half of it unique, describes one image and no other
UNIQUE_SHARE = 0.5
ENOUGH = 5  # captions; fewer say nothing about what is rare
READS = 75  # tokens of CLIP's text encoders besides start and end
SHOWN = 6

CountTokens = Callable[[str], int]  # tokens of a caption


@dataclass(frozen=True)
class CaptionReport:
    """Findings of each image, in order, and what holds for the whole set."""

    findings: tuple[tuple[Finding, ...], ...]
    general: tuple[str, ...]


def lint_captions(captions: Sequence[Sequence[str]], *, count_tokens: CountTokens | None = None) -> CaptionReport:
    """Looks at every caption, and at all of them together.

    Args:
        captions: for each image its caption and variants; an image without one has none.
        count_tokens: how long a caption is to the text encoder; None leaves that check out.
    """
    occurrences = word_counts(captions)
    same = Counter(variants[0].casefold() for variants in captions if variants)
    findings = [
        tuple(_about(variants, occurrences, same, count_tokens, captioned=sum(map(bool, captions))))
        for variants in captions
    ]
    return CaptionReport(tuple(findings), tuple(_general(captions)))


def words(text: str) -> list[str]:
    """Words of a text in lower case.

    Example:
        >>> words("A cat's 2nd life, in Paris")
        ['a', "cat's", '2nd', 'life', 'in', 'paris']
    """
    return [match.group().casefold() for match in WORD.finditer(text)]


def unique_words(text: str, occurrences: Counter[str]) -> list[str]:
    """Words that no other image's captions hold, in order, each once; none that is made of two which others hold."""
    rare = dict.fromkeys(word for word in terms(text) if occurrences[word] <= 1)
    return [word for word in rare if not is_compound(word, occurrences)]


def names(text: str) -> list[str]:
    """Words written like names: a capital inside a sentence.

    Example:
        >>> names("A portrait of Anna Lind. Seen in Oslo, with a Dog")
        ['Anna Lind', 'Oslo', 'Dog']
    """
    matches = re.finditer(r"(?<![.!?]\s)(?<!^)\b[A-Z][\w'-]+(?:\s+[A-Z][\w'-]+)*", text)
    return [match.group() for match in matches]


def general_caption(text: str, occurrences: Counter[str]) -> str:
    """The parts of a caption, between commas and full stops, that other captions say too; "" when there is none.

    A suggestion for a person to look at: it names less, so it fits more images.
    """
    parts = [part.strip() for part in re.split(r"[,.;\u3001\u3002\uff0c\uff1b]\s*", text) if part.strip()]
    shared = [part for part in parts if not unique_words(part, occurrences)]
    suggestion = ", ".join(shared)
    return suggestion if suggestion and len(terms(suggestion)) < len(terms(text)) else ""


def word_counts(captions: Sequence[Sequence[str]]) -> Counter[str]:
    """In how many images' captions each word occurs."""
    return Counter(word for variants in captions for word in set(terms(" ".join(variants))))


def _about(
    variants: Sequence[str],
    occurrences: Counter[str],
    same: Counter[str],
    count_tokens: CountTokens | None,
    *,
    captioned: int,
) -> list[Finding]:
    if not variants:
        return [Finding(code="caption-missing", message="has no caption, so it trains the empty prompt", weight=0.1)]
    findings = []
    sharers = same[variants[0].casefold()]
    if sharers > 1:
        message = f"{sharers} images have the caption {variants[0][:80]!r}"
        findings.append(Finding(code="caption-shared", message=message))
    longest = max(variants, key=lambda text: len(terms(text)))
    if captioned >= ENOUGH:
        findings += _specific(longest, occurrences, variants=len(variants))
    doubtful = [text for text in variants if len(text.encode()) > READS]  # a token is at least one byte
    too_long = max((count_tokens(text) for text in doubtful), default=0) if count_tokens else 0
    if too_long > READS:
        message = f"{too_long} tokens; the text encoder reads {READS} and ignores the rest"
        findings.append(Finding(code="caption-too-long", message=message))
    return findings


def _specific(text: str, occurrences: Counter[str], *, variants: int) -> list[Finding]:
    rare = unique_words(text, occurrences)
    length, number, named = word_number(terms(text)), word_number(rare), joined_terms(rare)
    findings = []
    if length >= LONG and number >= UNIQUE_SHARE * length:
        shown = ", ".join(named[:SHOWN])
        message = f"{number} of its {length} words are in no other caption ({shown})"
        findings.append(Finding(code="caption-unique", message=message, weight=round(0.4 / variants, 4)))
    elif rare:
        message = f"words in no other caption: {', '.join(named[:SHOWN])}"
        findings.append(Finding(code="caption-rare-words", message=message, weight=0.05))
    lone = [name for name in names(text) if any(occurrences[word] <= 1 for word in words(name))]
    if lone:
        message = f"looks like a name that only this image has: {', '.join(lone[:SHOWN])}"
        findings.append(Finding(code="caption-name", message=message, weight=0.15))
    return findings


def _general(captions: Sequence[Sequence[str]]) -> list[str]:
    first_captions = [variants[0] for variants in captions if variants]
    notes = []
    if len(first_captions) >= ENOUGH:
        top, count = Counter(text.casefold() for text in first_captions).most_common(1)[0]
        if count > len(first_captions) / 2:
            notes.append(
                f"{count} of {len(first_captions)} images share the caption {top[:80]!r}: nothing tells them apart"
            )
    return notes


def clip_token_counter() -> CountTokens:
    """Counts tokens as CLIP's text encoders do, from the vocabulary that ships with open_clip; needs no network.

    The vocabulary is loaded at the first caption that may be too long: importing open_clip takes seconds.
    """

    @cache
    def tokenizer() -> Any:
        from open_clip.tokenizer import SimpleTokenizer

        return SimpleTokenizer()

    return lambda text: len(tokenizer().encode(text))
