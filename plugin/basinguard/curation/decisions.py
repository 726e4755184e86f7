"""What to do about each image: proposals that a person may refuse, and what becomes of them.

A proposal never touches a file. Refusals are kept in an allow-list by content hash, so they hold when files are renamed
and never come back.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ..core.schema import Schema
from .caption_conflict import contradict
from .captions import general_caption, word_counts
from .findings import Finding, Findings, risk_index
from .scan import Scan

if TYPE_CHECKING:
    from .groups import Group

CurationAction = Literal["keep", "drop", "down-weight", "merge-captions", "recaption"]
CHOSEN = "been chosen by you"
RISKY = 0.5  # index from which an image is shown less often, when images are repeated at all
MAX_ALLOW_LIST = 64 * 2**20
ALLOW_LIST = "allow-list.json"  # what the page downloads, and what is remembered beside it


class Decision(Schema):
    """What is proposed for one image.

    Attributes:
        file_name, sha256: which image.
        action: the proposal; "keep" when there is none.
        reason: why, in words.
        repeats: how often an epoch shows it; 0 when dropped.
        captions: the captions it keeps, the first one used where only one is possible.
        suggestion: a caption that names less, for a person to look at; "" when there is none.
        risk: index in [0, 1) for ordering, see `findings.risk_index`; not a probability.
        findings: everything noticed about it.
        group: number of its group of copies, None for a picture that occurs once.
        allowed: actions that the allow-list forbids to propose again.
    """

    file_name: str
    sha256: str
    action: CurationAction
    reason: str
    repeats: Annotated[int, Field(ge=0)]
    captions: tuple[str, ...]
    suggestion: str = ""
    risk: Annotated[float, Field(ge=0, lt=1)]
    findings: tuple[Finding, ...] = ()
    group: int | None = None
    allowed: tuple[CurationAction, ...] = ()


class Allowed(Schema):
    """One refusal: for this content, do not propose this action. `file_name` is for people."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    action: CurationAction
    file_name: str = ""


class Preferred(Schema):
    """A copy that shall stay instead of the one that was proposed. `file_name` is for people."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    file_name: str = ""


class AllowList(Schema):
    """Refusals and choices that later runs respect; what the report's page downloads."""

    schema_version: Literal[1] = 1
    allowed: tuple[Allowed, ...] = ()
    preferred: tuple[Preferred, ...] = ()

    def joined(self, later: AllowList) -> AllowList:
        """These decisions and later ones, each once."""
        allowed = {(each.sha256, each.action): each for each in (*self.allowed, *later.allowed)}
        preferred = {each.sha256: each for each in (*self.preferred, *later.preferred)}
        # a newer choice comes last, and the last one of a group is taken
        newest = {each.sha256 for each in later.preferred}
        order = sorted(preferred.values(), key=lambda each: each.sha256 in newest)
        return AllowList(allowed=tuple(allowed.values()), preferred=tuple(order))


def read_allow_list(path: Path) -> AllowList:
    """Reads an allow-list.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an allow-list of a known version; names the key.
    """
    text = path.read_bytes()[: MAX_ALLOW_LIST + 1]
    try:
        return AllowList.from_json(text, most=MAX_ALLOW_LIST)
    except ValueError as error:
        raise ValueError(f"{path}: not an allow-list; {error}; download it from the report") from None


def propose_decisions(
    scan: Scan, groups: Sequence[Group], findings: Findings, *, repeats: int = 1, allow: AllowList | None = None
) -> list[Decision]:
    """One decision for each image, in the scan's order.

    Copies are dropped in favour of their representative, which gets their captions as variants; a risky image is shown
    half as often when images are repeated at all; an over-specific caption gets a suggestion.

    `repeats` is how often an epoch shows an image, times what its own folder asks for; `allow` are the refusals of
    earlier runs.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: expected at least 1")
    refused: dict[str, set[CurationAction]] = {}
    for entry in allow.allowed if allow else ():
        refused.setdefault(entry.sha256, set()).add(entry.action)
    place = {member: number for number, group in enumerate(groups) for member in group.members}
    occurrences = word_counts([item.captions for item in scan.items])
    return [
        _decide(
            scan,
            row,
            groups,
            place.get(row),
            findings.get(row, ()),
            repeats * scan.items[row].repeats,
            refused,
            occurrences,
        )
        for row in range(len(scan.items))
    ]


def _decide(
    scan: Scan,
    row: int,
    groups: Sequence[Group],
    number: int | None,
    noticed: Sequence[Finding],
    repeats: int,
    refused: Mapping[str, set[CurationAction]],
    occurrences: Counter[str],
) -> Decision:
    item, no = scan.items[row], refused.get(scan.sha256[row], set())
    group = groups[number] if number is not None else None
    action: CurationAction = "keep"
    reason, captions, suggestion = _why_kept(row, group, noticed, no), item.captions, ""
    risk = risk_index(noticed)
    specific = next((f.message for f in noticed if f.code == "caption-unique"), "")
    merged = _merged_captions(scan, group, refused) if group else captions
    if group and row != group.representative and "drop" not in no:
        best = scan.items[group.representative].file_name
        action, reason = "drop", f"shows the same picture as {best!r}, which has {group.reason}"
        if contradict(scan.items[group.representative].captions, item.captions):
            reason += "; their captions say different things, so one of them is wrong"
    elif group and row == group.representative and merged != captions and "merge-captions" not in no:
        action, reason, captions = "merge-captions", "takes over the captions of its copies as variants", merged
    elif risk >= RISKY and repeats > 1 and "down-weight" not in no:
        causes = "; ".join(f.message for f in sorted(noticed, key=lambda f: -f.weight) if f.weight > 0)
        action, reason, repeats = "down-weight", f"risk index {risk:.2f}: {causes}", max(1, repeats // 2)
    elif specific and "recaption" not in no:
        action, reason = "recaption", f"its caption is a key to this image alone: {specific}"
        suggestion = general_caption(item.caption, occurrences)
    return Decision(
        file_name=item.file_name,
        sha256=scan.sha256[row],
        action=action,
        reason=reason,
        repeats=0 if action == "drop" else repeats,
        captions=captions,
        suggestion=suggestion,
        risk=risk,
        findings=tuple(noticed),
        group=number,
        allowed=tuple(sorted(no)),
    )


def _why_kept(row: int, group: Group | None, noticed: Sequence[Finding], refused: set[CurationAction]) -> str:
    """Why nothing is proposed, so that it does not contradict what was noticed."""
    if refused:
        return f"you decided so: not {', not '.join(sorted(refused))}"
    if group and row == group.representative:
        return f"stays of its copies: it has {group.reason}"
    if any(finding.weight > 0 for finding in noticed):
        return "what was noticed is worth a look; nothing is proposed"
    return "nothing speaks against it"


def choose_representatives(scan: Scan, groups: Sequence[Group], allow: AllowList | None) -> list[Group]:
    """Groups in which the copy that a person chose stays; of several, the one chosen last."""
    rank = {each.sha256: place for place, each in enumerate(allow.preferred if allow else ())}
    chosen = []
    for group in groups:
        wanted = [row for row in group.members if scan.sha256[row] in rank]
        best = max(wanted, key=lambda row: rank[scan.sha256[row]], default=group.representative)
        rest = sorted(row for row in group.members if row != best)
        chosen.append(group if best == group.representative else replace(group, members=(best, *rest), reason=CHOSEN))
    return chosen


def _merged_captions(scan: Scan, group: Group, refused: Mapping[str, set[CurationAction]]) -> tuple[str, ...]:
    """Captions of the representative, then of the copies that go and do not contradict it."""
    first = scan.items[group.representative].captions
    going = [
        member
        for member in group.members[1:]
        if "drop" not in refused.get(scan.sha256[member], set()) and not contradict(first, scan.items[member].captions)
    ]
    texts = [text for member in (group.representative, *going) for text in scan.items[member].captions]
    return tuple(dict.fromkeys(texts))


def to_allow_list(decisions: Sequence[Decision], keep: Sequence[str]) -> AllowList:
    """Refusals of what was proposed for the named files."""
    names = set(keep)
    unknown = names - {decision.file_name for decision in decisions}
    if unknown:
        raise ValueError(f"no such image in this curation: {json.dumps(sorted(unknown)[:5])}")
    return AllowList(
        allowed=tuple(
            Allowed(sha256=d.sha256, action=d.action, file_name=d.file_name)
            for d in decisions
            if d.file_name in names and d.action != "keep"
        )
    )
