"""The attack table of a card and of a terminal: what was tried, on whom, what came out, and what was not tried."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..core.attack_table import TARGETS, AttackOutcome, AttackRow, AttackTable

NOT_TELLING = "the base model gives the picture back as well, so this says nothing of memory"


def attack_rows(table: AttackTable) -> list[tuple[str, ...]]:
    """A head and a row for each attack: its name, what came out of each model, and UNet evaluations on one of them."""
    names = table.targets
    head = ("attack", *(TARGETS[name] for name in names), "evaluations")  # type: ignore[index]
    return [head, *((label(row), *_cells(row, names)) for row in table.rows)]


def _cells(row: AttackRow, names: Sequence[str]) -> tuple[str, ...]:
    return (*(cell(row.outcome(name)) for name in names), str(row.evaluations))


def label(row: AttackRow) -> str:
    """An attack with its setting; marked where its result says nothing of memory."""
    mark = "" if row.telling or row.outcome("base") is None else " *"
    return f"{row.attack}, {row.setting}{mark}"


def cell(outcome: AttackOutcome | None) -> str:
    """`12 % [5, 27], 3 images`; a dash where it was not tried."""
    if outcome is None:
        return "-"
    images = f", {outcome.images} image{'' if outcome.images == 1 else 's'}" if outcome.images else ""
    note = f" ({outcome.note})" if outcome.note else ""
    return f"{outcome.copies.percent(0)}{images}{note}"


def attack_notes(table: AttackTable) -> Iterator[str]:
    """What a reader must know of the table, one sentence each."""
    yield (
        f"A {table.level} round: {len(table.rows)} attacks, {table.evaluations} UNet evaluations, "
        f"{table.images_total} training images that could have come back; share of samples that are copies "
        "[95 % interval], how many training images came back, and evaluations of an attack on one model."
    )
    if table.strength < 1:
        yield (
            f"The product's weights hold {table.strength:g} of the fine-tune. The plain export is the whole of it, "
            "which whoever has the base model works out from the product's weights."
        )
    if any(not row.telling and row.outcome("base") for row in table.rows):
        yield f"*: {NOT_TELLING}."


def untried_rows(table: AttackTable) -> list[tuple[str, str, str]]:
    """Attack, model and reason of everything that was not tried."""
    return [(row.attack, TARGETS.get(row.target, row.target), row.reason) for row in table.untried]  # type: ignore[call-overload]


def attack_text(table: AttackTable) -> str:
    """The table for a terminal."""
    rows = attack_rows(table)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += ["", *attack_notes(table), "not tried:"]
    return "\n".join([*lines, *(f"- {attack} on {target}: {reason}" for attack, target, reason in untried_rows(table))])
