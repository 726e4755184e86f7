"""The audit as one self-contained HTML page: opens offline, loads nothing, sends nothing.

Whatever comes from file names and captions is escaped by the template. The page shows training images: it is for their
owner, not for publication.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ..core.estimate import Estimate
from ..core.html import figure_uri, render_template, thumbnail_uri
from ..core.record import Record
from ..core.text import printable
from ..exports.attack_section import attack_notes, attack_rows, untried_rows
from ..exports.membership_section import membership_notes, membership_rows
from ..exports.sentences import product_line, taught_line
from ..plots.contact_sheet import to_image
from .findings import Audit, Copied, Near

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THUMB = 200  # pixels on the longer side
UNMEASURED, UNRESOLVED = "not measured: give the base model", "cannot be resolved; calibration.json says why"
MOST_PICTURES = 200  # copied images that are shown; the rest is in the JSON


@dataclass(frozen=True)
class PicturePair:
    """A training image beside the sample nearest to it, as data URIs."""

    row: Copied
    file_name: str
    caption: str
    trained: str
    drawn: str


def render_page(
    audit: Audit,
    training: Tensor,
    samples: Tensor,
    figures: Mapping[str, Figure],
    attacked: Record | None = None,
) -> str:
    """The report as one HTML page.

    Args:
        audit: what was found.
        training: the training images, [N, 3, H, W] in [0, 1].
        samples: the images that were drawn with plain CFG, likewise.
        figures: title -> plot.
        attacked: the record with what was tried to get the images out.
    """
    attacks = None if attacked is None else attacked.attacks
    return render_template(
        __package__,
        "audit.html.jinja",
        title=printable(audit.model),
        audit=audit,
        advice=[printable(sentence) for sentence in audit.advice],
        numbers=_numbers(audit),
        pairs=[_pair(row, training, samples) for row in audit.images[:MOST_PICTURES]],
        near=[_near(row, training, samples) for row in audit.near],
        more=max(0, len(audit.images) - MOST_PICTURES),
        plots=[(title, figure_uri(figure)) for title, figure in figures.items()],
        facts=_facts(audit),
        attacks=attack_rows(attacks) if attacks else [],
        attack_notes=list(attack_notes(attacks)) if attacks else [],
        untried=untried_rows(attacks) if attacks else [],
        membership=[(membership_rows(t), list(membership_notes(t))) for t in (attacked.membership if attacked else ())],
    )


def _numbers(audit: Audit) -> list[tuple[str, str, str]]:
    """Large figures at the top: rounded value, what it is, the value with its interval."""
    rows: list[tuple[str, Estimate | None]] = [
        ("copies with plain CFG", audit.plain),
        ("copies without a prompt", audit.uncond),
        ("copies of the base model (null)", audit.base),
        ("copies of what would ship" + ("" if audit.record.promise else ", not proven safe"), audit.record.risk),
    ]
    numbers = [(f"{e.value:.0%}", label, unbroken(e.percent())) for label, e in rows if e]
    return [(f"{len(audit.images)} of {audit.images_total}", "training images came back", ""), *numbers]


def unbroken(number: str) -> str:
    """A number and its interval, which a narrow card breaks before n alone."""
    return number.replace(" ", "\N{NO-BREAK SPACE}").replace("]\N{NO-BREAK SPACE}", "] ")


def _facts(audit: Audit) -> list[tuple[str, str]]:
    record = audit.record
    sampler = record.sampler
    transfer = [
        (f"{row.scheduler}, {row.timesteps} steps", f"{row.risk.percent()}, guidance from t = {row.transition}")
        for row in record.transfer
    ]
    return [
        ("a copy is", f"{record.metric.embedder} of at least {record.metric.threshold:g} ({record.metric.source})"),
        *([("expected misses", record.metric.expected_misses)] if record.metric.expected_misses else []),
        ("sampled with", f"{sampler.scheduler}, {sampler.timesteps} steps, scale {sampler.scale:g}, "
                         f"{sampler.resolution} px"),
        ("what would ship", product_line(record)),
        ("what is left of what was taught", taught_line(record) or (UNRESOLVED if record.base else UNMEASURED)),
        ("promise", record.promise or "none"),
        ("covers", record.population),
        ("base", record.base or "not given: no null, no share of the fine-tune"),
        ("weights (SHA-256)", record.weights_sha256),
        *transfer,
    ]  # fmt: skip


def _near(row: Near, training: Tensor, samples: Tensor) -> tuple[Near, str, str]:
    trained, drawn = (thumbnail_uri(to_image(i), THUMB) for i in (training[row.index], samples[row.sample]))
    return row, trained, drawn


def _pair(row: Copied, training: Tensor, samples: Tensor) -> PicturePair:
    trained, drawn = (thumbnail_uri(to_image(i), THUMB) for i in (training[row.index], samples[row.sample]))
    return PicturePair(row, printable(row.file_name), printable(row.caption), trained, drawn)
