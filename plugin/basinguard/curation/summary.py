"""A curation on one terminal screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..core.text import printable
from .manifest import Curation, ProblemRecord

SHOWN = 8


def summarize(curation: Curation) -> str:
    """Counts, the riskiest images and the first problems, each on one line of at most about 110 characters.

    Names are made printable, so that a file called by an escape sequence cannot write on the terminal.
    """
    counts = Counter(decision.action for decision in curation.decisions)
    done = ", ".join(f"{counts[action]} {action}" for action in sorted(counts)) or "nothing"
    lines = [
        f"{len(curation.decisions)} images, {len(curation.groups)} pictures shown more than once, "
        f"{len(curation.leaks)} leaks into the held-out set, {len(curation.problems)} problems",
        f"proposed: {done}",
    ]
    codes = Counter(finding.code for decision in curation.decisions for finding in decision.findings)
    lines += [f"noticed: {', '.join(f'{count} {code}' for code, count in sorted(codes.items()))}"] if codes else []
    lines += [f"note: {printable(note, 100)}" for note in curation.notes]
    if curation.run:
        memorized = [remedy for remedy in curation.remedies if remedy.verdict == "memorized"]
        lines.append(f"the run memorized {len(memorized)} of {len(curation.remedies)} images ({curation.run})")
        lines += _section(
            "memorized, surest first", [_line(r.risk.value, r.action, r.file_name, r.reason) for r in memorized]
        )
    risky = sorted((d for d in curation.decisions if d.action != "keep"), key=lambda d: (-d.risk, d.file_name))
    lines += _section(
        "proposals, highest risk index first", [_line(d.risk, d.action, d.file_name, d.reason) for d in risky]
    )
    lines += _section(
        "in both sets",
        [f"{printable(leak.file_name, 100)} = {printable(leak.heldout, 100)}" for leak in curation.leaks],
    )
    lines += _section("problems", _problem_lines(curation.problems))
    return "\n".join(lines)


def _line(risk: float, action: str, name: str, reason: str) -> str:
    return f"{risk:4.2f}  {action:14} {printable(name, 34)}  {printable(reason, 70)}"


def _problem_lines(problems: Sequence[ProblemRecord]) -> list[str]:
    return [f"{printable(p.file, 40)}: {printable(p.message, 80)}{' [skipped]' if p.skipped else ''}" for p in problems]


def _section(title: str, lines: list[str]) -> list[str]:
    if not lines:
        return []
    more = [f"  and {len(lines) - SHOWN} more, see the report"] if len(lines) > SHOWN else []
    return ["", f"{title}:", *(f"  {line}" for line in lines[:SHOWN]), *more]
