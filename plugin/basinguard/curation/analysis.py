"""Evidence joined: copies, leaks, outliers, captions and files, added up for each image and turned into decisions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .. import __version__
from ..core.text import printable
from ..similarity.registration import SIMILAR_PART, SIMILAR_WHOLE
from ..similarity.structure import Structure
from .captions import clip_token_counter, lint_captions
from .collages import tell_collages
from .decisions import AllowList, choose_representatives, propose_decisions
from .descriptors import NAME as VIEWS
from .duplicates import Pair, embed_thumbs, find_pairs
from .embedding_map import map_positions
from .findings import Finding, about_alike, about_blank, about_copies, about_dark, about_file
from .groups import Group, find_alike, find_groups
from .manifest import AlikeRecord, Curation, GroupRecord, LeakRecord, Settings
from .outliers import Scorer, caption_scores, find_disagreements, find_leaks, find_outliers
from .run_evidence import Evidence
from .run_remedies import follow
from .same_picture import Judge
from .scan import Scan
from .selection import select_diverse
from .shared_phrases import phrase_notes

DARK = 15  # the brightest of 255 that 12 bits reach where 16 are expected
PLAIN = 2  # levels that a picture of one colour may vary by


def analyse(
    scan: Scan,
    other: Scan | None,
    *,
    repeats: int,
    allow: AllowList | None,
    scorer: Scorer | None = None,
    evidence: Evidence | None = None,
    select: int | None = None,
) -> Curation:
    """Everything found about a set, and what is proposed.

    `other` are held-out images, `evidence` what a training run memorized; `select` keeps so many images, the most
    diverse ones; the rest is as in `curate`.
    """
    embed = Structure()
    both = _joined(scan, other) if other else scan
    judge = Judge(both)
    pairs = tell_collages(both, find_pairs(both, judge=judge))
    leaks = find_leaks(pairs, len(scan.items)) if other else []
    inside = [pair for pair in pairs if pair.second < len(scan.items)]
    groups = choose_representatives(scan, find_groups(scan, inside, judge=judge), allow)
    alike = find_alike(inside, groups)
    vectors = embed_thumbs(scan.thumbs, embed)
    findings, notes = _findings(scan, groups, leaks, both, find_outliers(vectors, name=embed.name))
    for number, rows in enumerate(alike, start=1):
        for row in rows:
            findings[row].append(about_alike(number, len(rows)))
    if scorer:
        for row, finding in find_disagreements(caption_scores(scan, scorer), name=scorer.name).items():
            findings[row].append(finding)
    decisions = propose_decisions(scan, groups, findings, repeats=repeats, allow=allow)
    decisions, remedies = follow(decisions, evidence.risks) if evidence else (decisions, [])
    decisions = select_diverse(decisions, vectors.numpy(), select) if select else decisions
    settings = Settings(
        embedder=embed.name,
        views=VIEWS,
        thresholds={"whole": SIMILAR_WHOLE, "part": SIMILAR_PART},
        repeats=repeats,
        select=select,
        basinguard=__version__,
    )
    return Curation(
        settings=settings,
        decisions=tuple(decisions),
        groups=tuple(
            GroupRecord(
                files=tuple(scan.items[member].file_name for member in group.members),
                reason=group.reason,
                similarities=_similarities(group, inside),
            )
            for group in groups
        ),
        alike=tuple(_alike_record(rows, inside, scan) for rows in alike),
        leaks=tuple(_leak_record(pair, both) for pair in leaks),
        run=evidence.source if evidence else "",
        remedies=tuple(remedies),
        positions=tuple((x, y) for x, y in map_positions(vectors.numpy()).tolist()),
        notes=tuple(notes),
        problems=both.problems,
    )


def _findings(
    scan: Scan, groups: list[Group], leaks: list[Pair], both: Scan, outliers: Mapping[int, Finding]
) -> tuple[dict[int, list[Finding]], tuple[str, ...]]:
    findings: dict[int, list[Finding]] = {row: [] for row in range(len(scan.items))}
    for group in groups:
        for member in group.members:
            findings[member].append(about_copies(len(group.members)))
    for pair in leaks:
        held = printable(both.items[pair.second].file_name)
        findings[pair.first].append(Finding(code="leak", message=f"the held-out image {held} shows this picture"))
    for row, finding in outliers.items():
        findings[row].append(finding)
    linted = lint_captions([item.captions for item in scan.items], count_tokens=clip_token_counter())
    for row, item in enumerate(scan.items):
        findings[row] += [*linted.findings[row], *about_file(item)]
        if np.ptp(scan.thumbs[row], axis=(0, 1)).max() <= PLAIN:
            findings[row].append(about_blank(item.facts.alpha))
        elif scan.thumbs[row].max() <= DARK:
            findings[row].append(about_dark(item.facts.mode))
    return findings, (*linted.general, *phrase_notes([item.captions for item in scan.items]))


def _joined(scan: Scan, other: Scan) -> Scan:
    return Scan(
        scan.items + other.items,
        scan.sha256 + other.sha256,
        np.concatenate([scan.thumbs, other.thumbs]),
        np.concatenate([scan.aspects, other.aspects]),
        np.concatenate([scan.inside, other.inside]),
        scan.problems + other.problems,
    )


def _similarities(group: Group, pairs: list[Pair]) -> tuple[float | None, ...]:
    """Of each copy to the one that stays; None where thumbnails did not compare these two."""
    best = group.representative
    beside = [pair for pair in pairs if best in (pair.first, pair.second)]
    by_copy = {pair.second if pair.first == best else pair.first: pair.similarity for pair in beside}
    return tuple(by_copy.get(row) for row in group.members[1:])


def _alike_record(rows: tuple[int, ...], pairs: list[Pair], scan: Scan) -> AlikeRecord:
    members = set(rows)
    closest = max(
        (pair for pair in pairs if (not pair.same or pair.collage is not None) and members & {pair.first, pair.second}),
        key=lambda pair: pair.similarity,
        default=None,
    )
    names = tuple(scan.items[row].file_name for row in rows)
    return AlikeRecord(
        files=names,
        similarity=closest.similarity if closest else 0.0,
        reason=closest.reason if closest else "",
        closest=(scan.items[closest.first].file_name, scan.items[closest.second].file_name) if closest else (),
    )


def _leak_record(pair: Pair, both: Scan) -> LeakRecord:
    one, two = both.items[pair.first], both.items[pair.second]
    return LeakRecord(file_name=one.file_name, heldout=two.file_name, similarity=pair.similarity)
