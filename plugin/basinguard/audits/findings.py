"""What an audit found: the nouns, the ranking of images, and what to do about it, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from ..core.estimate import Estimate
from ..core.metric import Match
from ..core.record import Record
from ..core.schema import Finite, Schema
from ..core.stats import wilson
from ..core.text import printable
from ..exports.sentences import product_line, strength_line, verdict
from ..similarity.judgement import near_threshold

NEAR = 8  # samples near the threshold that are shown
SHOWN = 10  # images listed in a terminal


class Copied(Schema):
    """One training image and how often it came back.

    Attributes:
        index: its place in the training set.
        file_name: its name, without folders.
        caption: what it was trained with.
        copies: samples, of whatever caption, that reproduce it.
        own: how many of its own caption's samples do, and how sure that is.
        similarity: of the sample nearest to it.
        sample: which sample that was.
    """

    index: Annotated[int, Field(ge=0)]
    file_name: str
    caption: str
    copies: Annotated[int, Field(ge=0)]
    own: Estimate | None
    similarity: Finite
    sample: Annotated[int, Field(ge=0)]


class Near(Schema):
    """A sample near the threshold, on either side, and the training image that it is nearest to, by index."""

    sample: Annotated[int, Field(ge=0)]
    index: Annotated[int, Field(ge=0)]
    similarity: Finite
    is_copy: bool


class Audit(Schema):
    """The answer to "does my model copy my images, which ones, and what would make it safe?".

    Attributes:
        model: what was audited.
        samples: how many were drawn with plain CFG.
        plain: share of them that copy.
        uncond: the same without any prompt.
        base: the same of the base model, on the same captions and noise: the null; None when it is not known.
        images: training images that came back, the most copied first.
        near: the samples nearest to the threshold on both sides: judge by them whether it is right for these images.
        images_total: how many training images there are.
        image_sha256: content hash of each one's file, in the order of `Copied.index`.
        record: what would make it safe, and how sure that is.
        advice: the same in sentences.
    """

    model: str
    samples: Annotated[int, Field(ge=1)]
    plain: Estimate
    uncond: Estimate
    base: Estimate | None
    images: tuple[Copied, ...]
    near: tuple[Near, ...] = ()
    images_total: Annotated[int, Field(ge=1)]
    image_sha256: tuple[str, ...] = ()
    record: Record
    advice: tuple[str, ...]


def nearest_to_threshold(matches: Sequence[Match], threshold: float, count: int = NEAR) -> tuple[Near, ...]:
    """The samples nearest to the threshold, half of them on either side where there are as many, most alike first."""
    rows = near_threshold([match.similarity for match in matches], threshold, count).tolist()
    near = [
        Near(sample=k, index=m.index, similarity=m.similarity, is_copy=m.similarity >= threshold)
        for k, m in ((k, matches[k]) for k in rows)
    ]
    return tuple(sorted(near, key=lambda row: -row.similarity))


def rank(
    matches: Sequence[Match], prompt: Sequence[int], files: Sequence[str], captions: Sequence[str], threshold: float
) -> list[Copied]:
    """The training images that came back at least once, the most copied first.

    Args:
        matches: nearest training image of each sample.
        prompt: index of the caption of each sample; caption k belongs to image k.
        files: name of every training image.
        captions: of every training image.
        threshold: similarity from which a sample is a copy.
    """
    copies: dict[int, list[int]] = {}
    for sample, match in enumerate(matches):
        if match.similarity >= threshold:
            copies.setdefault(match.index, []).append(sample)
    rows = []
    for index, samples in copies.items():
        own_samples = [k for k, p in enumerate(prompt) if captions[p] == captions[index]]
        own = sum(k in samples for k in own_samples)
        nearest = max(samples, key=lambda k: matches[k].similarity)
        rows.append(
            Copied(
                index=index,
                file_name=files[index],
                caption=captions[index],
                copies=len(samples),
                own=wilson(own, len(own_samples)) if own_samples else None,
                similarity=matches[nearest].similarity,
                sample=nearest,
            )
        )
    return sorted(rows, key=lambda row: (-row.copies, -row.similarity, row.index))


def advise(
    plain: Estimate, uncond: Estimate, base: Estimate | None, images: Sequence[Copied], total: int, record: Record
) -> tuple[str, ...]:
    """What the numbers mean and what to do, the answer first."""
    sentences = [_verdict(plain, images, total)]
    if base is not None and base.value > 0:
        sentences.append(
            f"The base model, which has never seen the images, is called a copy in {base.percent()} on the same "
            "captions and noise: that much the copy detector gets wrong, or the base knows already."
        )
    if uncond.value > 0:
        sentences.append(
            f"Without any prompt it copies too ({uncond.percent()}): guidance that begins late cannot escape that. "
            "Train with keep_unconditional, without caption dropout, or for fewer updates."
        )
    sentences.append(_product(record))
    if record.strength is not None and not record.guidance.plain:
        sentences.append(_strength(record))
    if not record.promise and not (record.strength and record.strength.promise):
        sentences.append(
            "Nothing that was tried is proven safe: take an earlier checkpoint, a lower rank or more images, and look "
            "for images that are in the set more than once (basinguard curate)."
        )
    return tuple(sentences)


def _verdict(plain: Estimate, images: Sequence[Copied], total: int) -> str:
    if not images:
        return (
            f"No copy among {plain.n} samples with plain CFG; the risk is likely below {plain.high:.1%}, "
            "which is not the same as none."
        )
    return (
        f"It copies: {plain.percent()} of the samples with plain CFG reproduce a training image; "
        f"{len(images)} of {total} training images came back."
    )


def _product(record: Record) -> str:
    if not record.promise:
        what = "No rule" if record.strength is not None and record.strength.promise else "Nothing"
        return f"{what} could be proven safe ({record.population}); the safest tried copies {record.risk.percent()}."
    what = f"{product_line(record)}, copies {record.risk.percent()}; {record.promise} ({record.population})"
    return f"{verdict(record)} What ships: {what}."


def _strength(record: Record) -> str:
    strength = record.strength
    assert strength is not None
    if not strength.promise:
        return f"No strength could be proven safe for plain loaders; {strength_line(record)}."
    too = " too" if record.promise else ""
    return f"Safe for plain loaders{too}: {strength_line(record)}; {strength.promise}."


def text(audit: Audit) -> str:
    """The audit for a terminal; what comes from files cannot write to it what it likes."""
    lines = [f"audit of {printable(audit.model)}", ""]
    lines += [f"- {printable(sentence)}" for sentence in audit.advice]
    if audit.images:
        lines += ["", f"{'copies':>6} {'similarity':>10}  image"]
    for row in audit.images[:SHOWN]:
        lines.append(f"{row.copies:6} {row.similarity:10.3f}  {printable(row.file_name)}: {printable(row.caption)}")
    if len(audit.images) > SHOWN:
        lines.append(f"... and {len(audit.images) - SHOWN} more")
    lines += ["", printable(audit.record.metric.definition)]
    return "\n".join(lines)
