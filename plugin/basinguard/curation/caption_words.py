"""Words of captions in any script, without a dictionary: n-grams where nothing separates words, parts of compounds.

Japanese, Chinese and Thai write sentences without spaces, so there a word is taken for two neighbouring characters when
rare words are counted, and for any run of characters when common ones are looked for. German writes nouns together, so
a long word is said elsewhere where both of its parts are.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
TOKEN = re.compile(rf"(?P<run>[{UNSPACED}]+)|[^\W_{UNSPACED}]+(?:['-][^\W_{UNSPACED}]+)*")
SHORTEST_PART = 4  # letters of a part of a compound
LINKS = ("", "s", "es", "n", "en", "er", "e")  # between the parts of a German compound
PARTICLES = frozenset("はがをにのでともへや的了在是和着ของที่ในและเป็น")  # characters that only join others


def tokens(text: str) -> list[str]:
    """Words in lower case, and single characters where a script has no spaces.

    Example:
        >>> tokens("Zxq, 赤いシャツ")
        ['zxq', '赤', 'い', 'シ', 'ャ', 'ツ']
    """
    split: list[str] = []
    for match in TOKEN.finditer(text):
        split += list(match.group()) if match["run"] else [match.group().casefold()]
    return split


def terms(text: str) -> list[str]:
    """Words in lower case, and pairs of neighbouring characters where a script has no spaces.

    Example:
        >>> terms("zxq, 赤いシャツ")
        ['zxq', '赤い', 'いシ', 'シャ', 'ャツ']
    """
    split: list[str] = []
    for match in TOKEN.finditer(text):
        run = match.group()
        pairs = [run[start : start + 2] for start in range(max(1, len(run) - 1))]
        split += pairs if match["run"] else [run.casefold()]
    return split


def joined_terms(pairs: Iterable[str]) -> list[str]:
    """Terms, those joined again that overlap as neighbours do.

    Example:
        >>> joined_terms(["red", "いシ", "シャ", "白い"])
        ['red', 'いシャ', '白い']
    """
    joined: list[str] = []
    for term in pairs:
        if joined and len(term) == 2 and is_unspaced(term) and joined[-1].endswith(term[0]):
            joined[-1] += term[1]
        else:
            joined.append(term)
    return joined


def word_number(split: Sequence[str]) -> int:
    """About how many words some terms are: two characters make one where a script has no spaces."""
    pairs = sum(map(is_unspaced, split))
    return len(split) - pairs + (pairs + 1) // 2


def is_unspaced(token: str) -> bool:
    """Whether a token is of a script without spaces."""
    return bool(TOKEN.fullmatch(token)) and bool(re.match(f"[{UNSPACED}]", token))


def phrase(run: Sequence[str]) -> str:
    """Tokens as a person writes them: no spaces where the script has none.

    Example:
        >>> phrase(["zxq", "白", "い"])
        'zxq 白い'
    """
    text = ""
    for before, token in zip(("", *run), run, strict=False):
        text += ("" if not before or (is_unspaced(before) and is_unspaced(token)) else " ") + token
    return text


def is_compound(word: str, others: Collection[str]) -> bool:
    """Whether a word is made of two others.

    Example:
        >>> is_compound("rotweinglas", {"rotwein", "glas"}), is_compound("sonnenhut", {"sonne", "hut", "sonnen"})
        (True, False)
    """
    for end in range(SHORTEST_PART, len(word) - SHORTEST_PART + 1):
        if word[end:] in others and any(
            word[: end - len(link)] in others for link in LINKS if word[:end].endswith(link) and end > len(link)
        ):
            return True
    return False


def heads(split: Iterable[str], others: Collection[str]) -> set[str]:
    """Words at the end of longer words, as in "sommerkleid", which some caption also has on its own."""
    return {
        word[start:]
        for word in split
        for start in range(3, len(word) - SHORTEST_PART + 1)
        if word[start:] in others and not is_unspaced(word)
    }
