"""What all captions of a set say: the trigger that calls the subject, and what is learned together with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from .captions import ENOUGH, words

EVERYWHERE = 0.8  # share of captions that hold a phrase before the model cannot tell it from the subject
FRAGMENT = 3  # words
LONGEST = 12  # words of a fragment that is looked for
LITTLE = frozenset(words("a an the of in on at to and with is are this that its his her by for from as or it wearing"))


def phrase_notes(captions: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Notes on what most of the captions share, for a set of at least five; of each image its first caption counts."""
    first_captions = [variants[0] for variants in captions if variants]
    if len(first_captions) < ENOUGH:
        return ()
    trigger = find_trigger(first_captions)
    fused = fused_phrases(first_captions, trigger)
    notes = []
    if trigger:
        notes.append(f"{trigger!r} begins every caption: if it calls what the images share, it is the trigger; keep it")
    for phrase, share in fused:
        notes.append(
            f"{phrase!r} is in {share:.0%} of the captions: it is learned together with {trigger or 'the subject'!r}, "
            "which will seldom come without it; add images without it"
        )
    for fragment, share in repeated_fragments(first_captions):
        said = [trigger, *(phrase for phrase, _ in fused)]
        if not any(phrase and phrase in fragment for phrase in said) and not trigger.startswith(fragment):
            notes.append(f"{fragment!r} is in {share:.0%} of the captions, so it tells the model nothing")
    return tuple(notes)


def find_trigger(captions: Sequence[str]) -> str:
    """The words that every caption begins with, in lower case, without small words at their end; "" without any.

    Captions that are all the same have none: nothing tells where it would end.

    Example:
        >>> find_trigger(["a photo of zxq man, red", "A photo of zxq man in a park"])
        'a photo of zxq man'
    """
    split = [words(text) for text in captions]
    if len(set(map(tuple, split))) < 2:
        return ""
    shared = 0
    while all(len(text) > shared for text in split) and len({text[shared] for text in split}) == 1:
        shared += 1
    while shared and split[0][shared - 1] in LITTLE:
        shared -= 1
    return " ".join(split[0][:shared])


def fused_phrases(captions: Sequence[str], trigger: str = "") -> list[tuple[str, float]]:
    """Words besides the trigger that most captions say, the longest phrases first, with the share that does.

    Example:
        >>> fused_phrases(["zxq in a white shirt", "zxq, white shirt, smiling"], "zxq")
        [('white shirt', 1.0)]
    """
    begin = len(words(trigger))
    split = [words(text)[begin:] for text in captions]
    phrases: list[tuple[str, float]] = []
    for phrase, share in _common_runs(split, range(FRAGMENT, 0, -1)):
        ends = phrase.split()
        whole = ends[0] not in LITTLE and ends[-1] not in LITTLE
        if whole and not any(f" {phrase} " in f" {longer} " for longer, _ in phrases):
            phrases.append((phrase, share))
    return phrases


def repeated_fragments(captions: Sequence[str]) -> list[tuple[str, float]]:
    """The longest runs of at least three words that most captions hold, with the share that does.

    Example:
        >>> repeated_fragments(["a photo of a cat", "a photo of a dog", "here: a photo of rain"])
        [('a photo of', 1.0)]
    """
    split = [words(text) for text in captions]
    fragments: list[tuple[str, float]] = []
    for phrase, share in _common_runs(split, range(LONGEST, FRAGMENT - 1, -1)):
        if not any(phrase in longer for longer, _ in fragments):
            fragments.append((phrase, share))
    return fragments


def _common_runs(captions: Sequence[Sequence[str]], sizes: Iterable[int]) -> Iterator[tuple[str, float]]:
    """Runs of words that most captions hold, with the share that does; by size as given, then in order."""
    for size in sizes:
        runs = Counter(
            run for text in captions for run in {tuple(text[i : i + size]) for i in range(len(text) - size + 1)}
        )
        for run, count in sorted(runs.items()):
            if count >= EVERYWHERE * len(captions):
                yield " ".join(run), count / len(captions)
