"""`basinguard verify EXPORT DIR`: does the exported checkpoint keep its promise, sampled as a user would?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..sessions.verification_options import VerificationOptions
from ..similarity.copy_detector_settings import RECORDED, CopyDetectorSettings

if TYPE_CHECKING:
    from ..core.gate import Gate
    from ..pipelines.evaluation import Evaluation
    from ..sessions.dry_run import DryRun


def verify(
    export: Path,
    data: Path,
    sampled: VerificationOptions = VerificationOptions(),
    out: Path | None = None,
    manifest: str = "",
    detector: CopyDetectorSettings = RECORDED,
    gate: bool = False,
    dry_run: bool = False,
) -> dict[str, Evaluation] | DryRun:
    """Samples an exported directory on fresh seeds, with and without its rule, beside the base model.

    Args:
        export: a directory that basinguard exported.
        data: the training images it must not reproduce.
        sampled: what is sampled, and how often.
        out: where `verification.json`, `contact_sheet.png` and, for the record's own rule, the verified `record.json`
            go; the current directory by default.
        manifest: a curated manifest of the training images, if that says which of the folder they are.
        detector: what decides that a sample is a copy: by default the one that the record names. Under another one the
            rows are a second opinion, and the record is left as it is.
        gate: end with status 3 unless the upper bound of every rule's risk is at most the record's alpha, after one
            line of JSON.
        dry_run: open the export, say what it would take on this machine, and measure nothing.

    Returns:
        One row for each of base, cfg and every rule.

    Raises:
        FileNotFoundError: no record in the directory, no such data or prompts.
        ValueError: the images cannot be used, the record belongs to other weights, or a gate that could never pass.
        ImportError: the record's copy detector is not installed; says what to install.
    """
    from ..core.gate import require_passable
    from ..sessions.dry_run import verification_dry_run
    from ..sessions.session import open_export
    from ..sessions.verification import read_prompts, read_rules, verify_session

    heldout = read_prompts(sampled.prompts) if sampled.prompts else ()
    rules = read_rules(sampled.rules) if sampled.rules else None
    record, session = open_export(export, data, detector, manifest=manifest)
    if gate:
        require_passable(sampled.per_caption * len(session.guard.training.captions), record.alpha)
    if dry_run:
        return verification_dry_run(session, sampled, rules=len(rules or "1"), prompts=len(heldout))
    verification = verify_session(
        record,
        session,
        rules=rules,
        per_caption=sampled.per_caption,
        paraphrase=sampled.paraphrase,
        prompts=heldout,
    )
    verification.write(out or Path())
    return verification.rows


def show(rows: dict[str, Evaluation] | DryRun, arguments: dict[str, Any]) -> None:
    """Prints one row for each way of sampling, or what it would take."""
    from ..sessions.verification import table

    print(table(rows) if isinstance(rows, dict) else rows)


def gate_of(rows: dict[str, Evaluation], arguments: dict[str, Any]) -> Gate:
    """Whether a build may go on with this export: the riskiest of its ruled rows decides."""
    from ..core.gate import Gate
    from ..core.record import read_record
    from ..exports.layout import RECORD_FILE

    ruled = {name: row.risk for name, row in rows.items() if name not in ("base", "cfg")}
    worst = max(ruled, key=lambda name: ruled[name].high)
    return Gate("verify", ruled[worst], read_record(arguments["export"] / RECORD_FILE).alpha, worst)
