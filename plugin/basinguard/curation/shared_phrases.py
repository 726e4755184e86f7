"""What all captions of a set say: the trigger that calls the subject, and what is learned together with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from .caption_words import PARTICLES, heads, is_unspaced, phrase, tokens
from .captions import ENOUGH, words

EVERYWHERE = 0.8  # share of captions that hold a phrase before the model cannot tell it from the subject
FRAGMENT = 3  # words
LONGEST = 12  # words of a fragment that is looked for
UNSPACED_LONGEST = 40  # characters of one in a script without spaces
LITTLE = frozenset(
    words(
        "a an the of in on at to and with is are this that its his her by for from as or it wearing beside behind near "
        "under over above below between among into onto through without against along across inside outside"
    )
)  # say how things stand to each other, and nothing of them


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
    for text, share in fused:
        notes.append(
            f"{text!r} is in {share:.0%} of the captions: it is learned together with {trigger or 'the subject'!r}, "
            "which will seldom come without it; add images without it"
        )
    for fragment, share in repeated_fragments(first_captions):
        said = [trigger, *(text for text, _ in fused)]
        if not any(text and text in fragment for text in said) and not trigger.startswith(fragment):
            notes.append(f"{fragment!r} is in {share:.0%} of the captions, so it tells the model nothing")
    return tuple(notes)


def find_trigger(captions: Sequence[str]) -> str:
    """The words that every caption begins with, in lower case, without small words at their end; "" without any.

    Captions that are all the same have none: nothing tells where it would end.

    Example:
        >>> find_trigger(["a photo of zxq man, red", "A photo of zxq man in a park"])
        'a photo of zxq man'
    """
    split = [tokens(text) for text in captions]
    if len(set(map(tuple, split))) < 2:
        return ""
    shared = 0
    while all(len(text) > shared for text in split) and len({text[shared] for text in split}) == 1:
        shared += 1
    while shared and split[0][shared - 1] in LITTLE:
        shared -= 1
    return phrase(split[0][:shared])


def fused_phrases(captions: Sequence[str], trigger: str = "") -> list[tuple[str, float]]:
    """Words besides the trigger that most captions say, the longest phrases first, with the share that does.

    Example:
        >>> fused_phrases(["zxq in a white shirt", "zxq, white shirt, smiling"], "zxq")
        [('white shirt', 1.0)]
    """
    begin = len(tokens(trigger))
    split = [tokens(text)[begin:] for text in captions]
    runs: list[tuple[tuple[str, ...], float]] = []
    for run, share in _common_runs(split, range(UNSPACED_LONGEST, 0, -1)):
        if _says_something(run) and not any(_holds(longer, run) for longer, _ in runs):
            runs.append((run, share))
    return [(phrase(run), share) for run, share in runs]


def _says_something(run: Sequence[str]) -> bool:
    """Whether a run is long enough, and no small word begins or ends it."""
    unspaced = sum(map(is_unspaced, run))
    if unspaced and (unspaced < len(run) or unspaced < 2):
        return False
    return (unspaced > 0 or len(run) <= FRAGMENT) and not {run[0], run[-1]} & (LITTLE | PARTICLES)


def _holds(longer: Sequence[str], run: Sequence[str]) -> bool:
    return any(longer[start : start + len(run)] == run for start in range(len(longer) - len(run) + 1))


def repeated_fragments(captions: Sequence[str]) -> list[tuple[str, float]]:
    """The longest runs of at least three words that most captions hold, with the share that does.

    Example:
        >>> repeated_fragments(["a photo of a cat", "a photo of a dog", "here: a photo of rain"])
        [('a photo of', 1.0)]
    """
    split = [tokens(text) for text in captions]
    fragments: list[tuple[str, float]] = []
    for run, share in _common_runs(split, range(LONGEST, FRAGMENT - 1, -1)):
        if not any(phrase(run) in longer for longer, _ in fragments):
            fragments.append((phrase(run), share))
    return fragments


def _common_runs(captions: Sequence[Sequence[str]], sizes: Iterable[int]) -> Iterator[tuple[tuple[str, ...], float]]:
    """Runs of words that most captions hold, with the share that does; by size as given, then in order.

    A caption that says "sommerkleid" also says "kleid".
    """
    alone = {word for text in captions for word in text}
    for size in sizes:
        runs = Counter(
            run for text in captions for run in {tuple(text[i : i + size]) for i in range(len(text) - size + 1)}
        )
        if size == 1:
            runs.update((head,) for text in captions for head in heads(text, alone) - set(text))
        for run, count in sorted(runs.items()):
            if count >= EVERYWHERE * len(captions):
                yield run, count / len(captions)
