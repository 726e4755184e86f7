"""Does a model copy, which images, and what would make it safe? Nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..attacks.options import AttackOptions
from ..audits.findings import Audit, advise, nearest_to_threshold, rank
from ..audits.findings import text as as_text
from ..audits.page import render_page
from ..basin.plain_run import run_plain
from ..basin.trajectories import Pairs, run_trunk
from ..calibration.trial import calibration_pairs
from ..core import seeds as seed_table
from ..core import stats
from ..core.attack_table import AttackTable
from ..core.estimate import Estimate
from ..core.files import write_text
from ..core.membership_table import MembershipTable
from ..core.record import Record
from ..diffusion.model import Model
from ..exports.attack_section import attack_text
from ..exports.membership_section import membership_text
from ..guard.guard import Guard
from ..pipelines.latent_model import LatentModel
from ..pipelines.loading import load_pipeline
from ..plots.tradeoff import products_figure
from .attack import attacked_record
from .calibration import Calibration
from .session import Session

PAGE, FINDINGS, ATTACKED = "audit.html", "audit.json", "attacked.json"


@dataclass(frozen=True)
class AuditRun:
    """An audit with what its page shows.

    Attributes:
        audit: what was found.
        calibration: what would make it safe.
        training, samples: images, [N, 3, H, W].
        attacked: the record of what ships, with the tables of what was tried in it; None where nothing was.
    """

    audit: Audit
    calibration: Calibration
    training: Tensor
    samples: Tensor
    attacked: Record | None = None

    @property
    def attacks(self) -> AttackTable | None:
        """What was tried to get the images out."""
        return None if self.attacked is None else self.attacked.attacks

    @property
    def membership(self) -> tuple[MembershipTable, ...]:
        """How well it can be told which images were trained on."""
        return () if self.attacked is None else self.attacked.membership

    def __str__(self) -> str:
        tried = [attack_text(self.attacks)] if self.attacks else []
        tried += [membership_text(self.membership)] if self.membership else []
        return "\n\n".join([as_text(self.audit), *tried])

    def write(self, out: Path) -> None:
        """Writes the page, the findings, and the calibration's own files."""
        self.calibration.write(out)
        page = render_page(self.audit, self.training, self.samples, _figures(self.calibration), self.attacked)
        write_text(out / PAGE, page)
        write_text(out / FINDINGS, self.audit.to_json() + "\n")
        if self.attacked is not None:
            write_text(out / ATTACKED, self.attacked.to_json() + "\n")


@torch.no_grad()
def audit_session(
    model: str,
    session: Session,
    calibration: Calibration,
    per_caption: int,
    options: AttackOptions = AttackOptions(),
) -> AuditRun:
    """Looks for copies under plain CFG in a model that is open and calibrated; attacks it where that is asked for.

    `model` is what the findings call it.

    What is attacked beside it is what its own record ships, where it is an export, else what the calibration would.
    """
    guard, captions = session.guard, session.guard.training.captions
    pairs = calibration_pairs(
        len(captions), per_caption * len(captions), session.model.latent_shape, first_seed=seed_table.AUDIT
    )
    prompt, threshold = pairs.prompt.tolist(), guard.embedder.metric.threshold
    samples = plain_samples(guard, session.model, pairs)
    matches = guard.matches(samples)
    images = rank(matches, prompt, session.files, captions, threshold)
    plain = stats.rate([match.similarity >= threshold for match in matches], prompt)
    uncond, null = _without_prompt(guard, session.model, pairs), _null(session, pairs)
    record = calibration.record
    audit = Audit(
        model=model,
        samples=len(pairs),
        plain=plain,
        uncond=uncond,
        base=null,
        images=tuple(images),
        near=nearest_to_threshold(matches, threshold),
        images_total=len(captions),
        image_sha256=guard.training.image_sha256,
        record=record,
        advice=advise(plain, uncond, null, images, len(captions), record),
    )
    attacked = None if options.nothing else attacked_record(session, session.record or record, options)
    return AuditRun(audit, calibration, guard.training.images, samples, attacked)


def require_new(out: Path | None) -> None:
    """Refuses a folder that holds an audit already.

    Raises:
        FileExistsError: it does.
    """
    if out is not None and (out / PAGE).exists():
        raise FileExistsError(f"{out / PAGE}: exists already; name another folder")


def _figures(calibration: Calibration) -> dict[str, Figure]:
    title = "Products: what each copies, and what it keeps of what was taught"
    return {title: products_figure(calibration.certificate)}


def plain_samples(guard: Guard, model: Model, pairs: Pairs) -> Tensor:
    """Images of the training captions by plain CFG, [N, 3, H, W]."""
    return model.decode(run_plain(guard.guided_model(model, guard.training.captions), pairs).ends)


def _without_prompt(guard: Guard, model: Model, pairs: Pairs) -> Estimate:
    """Does the empty prompt alone reproduce training images?"""
    states = run_trunk(guard.guided_model(model, guard.training.captions), pairs, before=0.0).pair_states
    return stats.rate(guard.is_copy(model.decode(states[-1])), pairs.seed)


def _null(session: Session, pairs: Pairs) -> Estimate | None:
    """Copies of the base model on the same captions and noise."""
    if not session.provenance.base:
        return None
    base = LatentModel(load_pipeline(session.provenance.base))
    return stats.rate(session.guard.is_copy(plain_samples(session.guard, base, pairs)), pairs.prompt)
