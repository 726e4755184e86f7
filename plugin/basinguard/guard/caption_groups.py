"""Which images show which subject, as far as their captions tell: a set of several subjects is measured one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..curation.captions import words

SMALLEST = 5  # images; fewer are too few for a ruler
MOST = 4  # subjects that are looked for
GRAMMAR = (  # words that divide a set by how its captions are put, not by what they show
    *("a", "an", "the", "this", "that", "its", "his", "her", "their", "it", "is", "are", "and", "or", "as"),
    *("at", "by", "for", "from", "in", "into", "near", "next", "of", "on", "out", "over", "to", "under", "up", "with"),
)

Groups = dict[str, tuple[int, ...]]


def caption_groups(captions: Sequence[str]) -> Groups:
    """Images of each subject, by its name; empty where captions tell of one subject only, or do not tell.

    Subjects are captions that say the same ("a photo of sks dog" six times, "a photo of zwx cat" five times), else the
    words of which every caption holds exactly one. The fewest subjects that divide the set are taken, and none of them
    may have fewer than `SMALLEST` images.

    Example:
        >>> dogs, cats = ([f"{what} in place {k}" for k in range(5)] for what in ("sks dog", "zwx cat"))
        >>> caption_groups(dogs + cats)
        {'sks dog': (0, 1, 2, 3, 4), 'zwx cat': (5, 6, 7, 8, 9)}
    """
    texts = [" ".join(words(caption)) for caption in captions]
    equal = {text: tuple(i for i, other in enumerate(texts) if other == text) for text in dict.fromkeys(texts)}
    if len(equal) > 1 and all(len(rows) >= SMALLEST for rows in equal.values()):
        return equal
    named = _rows_of_words(texts)
    every = set(range(len(texts))) if named else set()
    divided = next((sets for most in range(2, MOST + 1) for sets in _divisions(every, list(named), most)), ())
    return {named[rows]: tuple(sorted(rows)) for rows in divided}


def _rows_of_words(texts: Sequence[str]) -> dict[frozenset[int], str]:
    """Which captions hold which words, of words that some hold and some do not; words held by the same are one name."""
    every = dict.fromkeys(word for text in texts for word in text.split() if word not in GRAMMAR)
    named: dict[frozenset[int], str] = {}
    for word in every:
        rows = frozenset(i for i, text in enumerate(texts) if word in text.split())
        if SMALLEST <= len(rows) <= len(texts) - SMALLEST:
            named[rows] = f"{named[rows]} {word}" if rows in named else word
    return named


def _divisions(left: set[int], sets: Sequence[frozenset[int]], most: int) -> Iterator[tuple[frozenset[int], ...]]:
    """Every way to divide the captions that are left among at most so many disjoint sets."""
    if not left:
        yield ()
    elif most:
        for rows in (rows for rows in sets if min(left) in rows and rows <= left):
            yield from ((rows, *rest) for rest in _divisions(left - rows, sets, most - 1))
