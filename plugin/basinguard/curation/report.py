"""A curation for people: one self-contained HTML file that opens offline, and a summary on one terminal screen.

Whatever comes from file names and captions is escaped by the template; the page loads nothing and sends nothing.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from ..core.html import render_template, thumbnail_uri
from ..core.images import BadImage, open_image, to_rgb
from ..core.text import printable
from .decisions import CurationAction, Decision
from .embedding_map import Point
from .folder import Problem
from .manifest import MANIFEST, AlikeRecord, Curation, GroupRecord

THUMB = 224  # pixels on the longer side
LARGE = 448  # of copies and look-alikes, which are compared by eye
MOST_LARGE = 300  # about 15 MB of page; the rest is as small as others
MOST_THUMBS = 2000  # about 20 MB of page; the rest is listed without a picture
MOST_NOTES = 200  # lines for each kind of note
MOST_LINES = 8  # of each section of the summary
TITLES: dict[CurationAction, str] = {
    "drop": "leave out",
    "down-weight": "show less often",
    "merge-captions": "merge captions",
    "recaption": "caption again",
    "keep": "keep",
}


@dataclass(frozen=True)
class Card:
    """One image as the page shows it."""

    decision: Decision
    name: str
    image: str
    title: str
    causes: tuple[str, ...]
    similarity: float | None = None


@dataclass(frozen=True)
class PageContext:
    """What the page says about the run that wrote it.

    Attributes:
        title: what was curated.
        command: what to call next.
        applied: a manifest was written into the folder.
        points: images on the map; none leaves it out.
    """

    title: str
    command: str
    applied: bool = False
    points: tuple[Point, ...] = ()


def next_command(sources: Sequence[Path], out: Path, *options: str) -> str:
    """The command that applies what was decided; `options` are those of the run before that it needs again."""
    first = sources[0].resolve()
    beside = out.resolve() == first.with_name(first.name + "-curation")
    words = ["basinguard", "curate", *sources, *(() if beside else ("--out", out)), *options, "--apply"]
    return shlex.join(map(str, words))


@dataclass(frozen=True)
class Section:
    """Cards that belong side by side: the copies of one picture, pictures that look alike, or one image alone."""

    kind: str
    heading: str
    note: str
    risk: float
    cards: tuple[Card, ...]


def render_report(curation: Curation, paths: Mapping[str, Path], page: PageContext) -> str:
    """The report of a curation as one HTML page.

    Args:
        curation: what was found and proposed.
        paths: where each image lies, by file name; a file that is gone is shown without a picture.
        page: title and next command.
    """
    sections = _sections(curation, paths)
    counts = Counter(decision.action for decision in curation.decisions)
    return render_template(
        __package__,
        "report.html.jinja",
        page=page,
        manifest=MANIFEST,
        curation=curation,
        sections=sections,
        leaks=[(printable(a.file_name), printable(a.heldout), a.similarity) for a in curation.leaks],
        problems=curation.problems,
        noticed=_noticed(curation),
        memorized=[(printable(r.file_name), r.reason) for r in curation.remedies if r.verdict == "memorized"],
        counts=[(action, TITLES[action], counts[action]) for action in TITLES if counts[action]],
        codes=sorted({f.code for section in sections for card in section.cards for f in card.decision.findings}),
        proposals=_proposals(sections),
    )


def _sections(curation: Curation, paths: Mapping[str, Path]) -> list[Section]:
    by_name = {decision.file_name: decision for decision in curation.decisions}
    left = MOST_THUMBS
    sections = []
    for number, group in enumerate(curation.groups, start=1):
        members = [by_name[name] for name in group.files if name in by_name]
        cards, left = _cards(members, paths, left, LARGE if number <= MOST_LARGE else THUMB)
        cards = (cards[0], *(replace(c, similarity=s) for c, s in zip_longest(cards[1:], group.similarities)))
        note = _group_note(group, [decision.action for decision in members])
        risk = max(decision.risk for decision in members)
        sections.append(Section("group", f"Picture {number}: {len(members)} copies", note, risk, cards))
    for number, lookalikes in enumerate(curation.alike, start=1):
        side = LARGE if number <= MOST_LARGE else THUMB
        cards, left = _cards([by_name[name] for name in lookalikes.files if name in by_name], paths, left, side)
        heading = f"Look-alikes {number}: {len(cards)} pictures"
        sections.append(Section("alike", heading, _alike_note(lookalikes), 0.0, cards))
    grouped = {name for group in curation.groups for name in group.files}
    grouped |= {name for lookalikes in curation.alike for name in lookalikes.files}
    alone = [d for d in curation.decisions if d.file_name not in grouped and (d.action != "keep" or d.risk > 0)]
    for decision in sorted(alone, key=lambda d: (-d.risk, d.file_name)):
        cards, left = _cards([decision], paths, left)
        sections.append(Section("single", "", "", decision.risk, cards))
    return sections


def _group_note(group: GroupRecord, actions: Sequence[CurationAction]) -> str:
    """Which copy stays, and why; not what no card below says."""
    best = printable(group.files[0])
    if "drop" not in actions:
        return "All of them stay, as you decided."
    if all(action == "drop" for action in actions):
        return f"None is proposed to stay; if one should, {best} has {group.reason}."
    return f"{best} is proposed to stay: it has {group.reason}."


def _alike_note(record: AlikeRecord) -> str:
    """What is known of a set of look-alikes."""
    note = "Different pictures, so nothing is proposed. Too many of one kind are still learned better than the rest."
    if not record.closest:
        return note
    one, two = map(printable, record.closest)
    return f"{note} Nearest are {one} and {two} (similarity {record.similarity:.2f}): {record.reason}."


def _cards(
    decisions: Sequence[Decision], paths: Mapping[str, Path], left: int, side: int = THUMB
) -> tuple[tuple[Card, ...], int]:
    cards = []
    for decision in decisions:
        image = _thumbnail(paths.get(decision.file_name), side) if left > 0 else ""
        left -= bool(image)
        causes = tuple(finding.message for finding in decision.findings)
        cards.append(Card(decision, printable(decision.file_name), image, TITLES[decision.action], causes))
    return tuple(cards), left


def _thumbnail(path: Path | None, side: int) -> str:
    if path is None:
        return ""
    try:
        with open_image(path) as image:
            image.draft("RGB", (2 * side, 2 * side))
            return thumbnail_uri(to_rgb(image), side)
    except BadImage:
        return ""


def _noticed(curation: Curation) -> list[tuple[str, int, list[tuple[str, str]]]]:
    """What is worth knowing but adds no risk: its code, how many images, and the first of them with the message."""
    by_code: dict[str, list[tuple[str, str]]] = {}
    for decision in curation.decisions:
        for finding in decision.findings:
            if finding.weight == 0:
                by_code.setdefault(finding.code, []).append((printable(decision.file_name), finding.message))
    return [(code, len(rows), rows[:MOST_NOTES]) for code, rows in sorted(by_code.items())]


def _proposals(sections: Sequence[Section]) -> str:
    """What the page's script needs, as JSON that cannot end a script element."""
    rows = [
        {"sha256": card.decision.sha256, "action": card.decision.action, "file_name": card.decision.file_name}
        for section in sections
        for card in section.cards
        if card.decision.action != "keep"
    ]
    return json.dumps(rows).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def summarize_curation(curation: Curation) -> str:
    """Counts, the riskiest images and the first problems, each on one line of at most about 110 characters.

    Names are made printable, so that a file called by an escape sequence cannot write on the terminal.
    """
    counts = Counter(decision.action for decision in curation.decisions)
    done = ", ".join(f"{counts[action]} {action}" for action in sorted(counts)) or "nothing"
    lines = [
        f"{_several(curation.decisions, 'image')}, {_several(curation.groups, 'picture')} shown more than once, "
        f"{_several(curation.alike, 'set')} of look-alikes, "
        f"{_several(curation.leaks, 'leak')} into the held-out set, {_several(curation.problems, 'problem')}",
        f"proposed: {done}",
    ]
    codes = Counter(finding.code for decision in curation.decisions for finding in decision.findings)
    lines += [f"noticed: {', '.join(f'{count} {code}' for code, count in sorted(codes.items()))}"] if codes else []
    lines += [f"note: {printable(note, 100)}" for note in curation.notes]
    if curation.run:
        memorized = [remedy for remedy in curation.remedies if remedy.verdict == "memorized"]
        lines.append(f"the run memorized {len(memorized)} of {len(curation.remedies)} images ({curation.run})")
        lines += _listed(
            "memorized, surest first", [_line(r.risk.value, r.action, r.file_name, r.reason) for r in memorized]
        )
    risky = sorted((d for d in curation.decisions if d.action != "keep"), key=lambda d: (-d.risk, d.file_name))
    lines += _listed(
        "proposals, highest risk index first", [_line(d.risk, d.action, d.file_name, d.reason) for d in risky]
    )
    lines += _listed(
        "in both sets",
        [f"{printable(leak.file_name, 100)} = {printable(leak.heldout, 100)}" for leak in curation.leaks],
    )
    lines += _listed("problems", _problem_lines(curation.problems))
    return "\n".join(lines)


def _line(risk: float, action: str, name: str, reason: str) -> str:
    return f"{risk:4.2f}  {action:14} {printable(name, 34)}  {printable(reason, 70)}"


def _several(things: Sequence[object], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _problem_lines(problems: Sequence[Problem]) -> list[str]:
    return [f"{printable(p.file, 40)}: {printable(p.message, 80)}{' [skipped]' if p.skipped else ''}" for p in problems]


def _listed(title: str, lines: list[str]) -> list[str]:
    if not lines:
        return []
    more = [f"  and {len(lines) - MOST_LINES} more, see the report"] if len(lines) > MOST_LINES else []
    return ["", f"{title}:", *(f"  {line}" for line in lines[:MOST_LINES]), *more]
