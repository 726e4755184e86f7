"""The membership table of a card, a page and a terminal: how well each statistic tells who was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..core.attack_table import TARGETS
from ..core.membership_table import MembershipRow, MembershipTable

HEAD = ("statistic", "AUC", "members found at 1 % false positives", "false positives there")


def membership_rows(table: MembershipTable) -> list[tuple[str, ...]]:
    """A head and a row for each statistic, the most telling first."""
    ranked = sorted(table.rows, key=lambda row: -row.auc.value)
    return [HEAD, *((row.statistic, row.auc.interval(), *_found(row)) for row in ranked)]


def _found(row: MembershipRow) -> tuple[str, str]:
    if row.hits is None or row.false is None:
        return "no headline", "-"
    return row.hits.percent(0), row.false.percent(0)


def membership_notes(table: MembershipTable) -> Iterator[str]:
    """What a reader must know of the table, one sentence each."""
    yield (
        f"Membership on the weights of the {TARGETS[table.target]}: {table.members} training images against "
        f"{table.controls} held-out ones, {table.evaluations} UNet evaluations; an AUC of 0.5 tells nothing, 1 all. "
        f"The best of {len(table.rows)} statistics looks a little better than it is."
    )
    if table.missing:
        yield f"No headline: {table.missing}."


def membership_text(tables: Sequence[MembershipTable]) -> str:
    """The tables for a terminal."""
    return "\n\n".join(_text(table) for table in tables)


def _text(table: MembershipTable) -> str:
    rows = membership_rows(table)
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*membership_notes(table), *lines])
