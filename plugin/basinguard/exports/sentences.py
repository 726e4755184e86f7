"""What a record says, in phrases that the card, the terminal and a LoRA's header share."""

from __future__ import annotations

from ..core.estimate import Estimate
from ..core.record import Record
from ..core.recorded_weights import RecordedWeights
from ..core.text import epoch_name
from ..core.update_filter import update_filter

UNKNOWN = "not measured"
HELP = (
    "What may help: an earlier or a later epoch, another strength (the option `strengths`), a larger alpha, or more "
    "images."
)
NOTHING_LEFT = f"Safe, and nothing of what was taught is left: its samples cannot be told from the base model's. {HELP}"
NOT_SHOWN = "Safe, and it could not be shown that anything of what was taught is left"
LITTLE = 0.2  # of what was taught, below which the whole interval must lie for "nothing is left"
BEST_PLAIN = "at its best epoch and scale, safe or not,"


def percent(estimate: Estimate | None) -> str:
    """`3.1 % [1.0, 8.2] (n = 64)`; "not measured" where nothing was."""
    return UNKNOWN if estimate is None else estimate.percent()


def rule_line(record: Record) -> str:
    """How it is sampled.

    Example: `plain CFG of scale 2`; `scale 0 above timestep 590 (sigma 1.23), then 3`.
    """
    rule = record.guidance
    after = "the caller's scale" if rule.after is None else f"{rule.after:g}"
    if rule.plain:
        return f"plain CFG of scale {after}"
    return f"scale {rule.before:g} above timestep {rule.transition:g} (sigma {rule.sigma:.4g}), then {after}"


def product_line(record: Record) -> str:
    """Which weights, and how they are sampled."""
    product = record.product
    epoch = "" if product.epoch is None else f"{epoch_name(product.epoch)}, "
    return f"{epoch}{weights_line(product)}, {rule_line(record)}"


def weights_line(product: RecordedWeights) -> str:
    """What the weights hold of the fine-tune.

    Example: `the whole fine-tune`; `0.8 of the fine-tune without its change of cross-attention`.
    """
    if product.strength_schedule is not None:
        return f"the fine-tune as a LoRA whose strength follows the timestep ({product.strength_schedule})"
    if product.whole:
        return "the whole fine-tune"
    share = "the fine-tune" if product.strength == 1 else f"{product.strength:g} of the fine-tune"
    return f"{share} {update_filter(product.update_filter).words}" if product.update_filter else share


def taught_line(record: Record) -> str:
    """What is left of what was taught, beside plain CFG without a guard; "" where it was not measured."""
    if record.taught is None:
        return ""
    plain = "" if record.plain_taught is None else f"; plain CFG without a guard has {record.plain_taught}"
    best = "" if record.best_plain_taught is None else f"; {BEST_PLAIN} {record.best_plain_taught}"
    return f"{record.taught}{plain}{best}"


def rulers_line(record: Record) -> str:
    """Each ruler behind `taught`, or that there is one alone; "" where none was used."""
    if len(record.taught_rulers) == 1:
        return f"by {record.taught_rulers[0][0]} alone: a second ruler may see less (pip install 'basinguard[taught]')"
    values = [f"{name} {value}" for name, value in record.taught_rulers]
    return f"the smallest of {', '.join(values)}" if values else ""


def _nothing_left(record: Record) -> str:
    """Of a product whose `taught` is not above the base model's: that nothing is left, or that too little was seen."""
    taught = record.taught
    assert taught is not None
    return NOTHING_LEFT if taught.high < LITTLE else f"{NOT_SHOWN} ({taught}). {HELP}"


def verdict(record: Record) -> str:
    """What the numbers come to, the first words being the answer."""
    if not record.promise:
        return f"Not proven safe: {record.population}."
    if record.nothing_left:
        return _nothing_left(record)
    if record.product.strength_schedule is not None:
        what = "its strengths by timestep" if record.guidance.plain else "its rule and its strengths by timestep"
        return f"Safe by {what}." + price(record)
    if record.guidance.plain and record.product.whole and record.scale == record.sampler.scale:
        epoch = f" of {epoch_name(record.product.epoch)}" if _earlier(record) else ""
        cost = price(record) if epoch else ""
        return f"No rule needed: plain CFG with the whole fine-tune{epoch} keeps the promise as it is.{cost}"
    if record.guidance.plain:
        return "No rule needed: these weights keep the promise with plain CFG, in any tool." + price(record)
    return "Safe by its rule." + price(record)


def _earlier(record: Record) -> bool:
    """Whether training went on after the epoch that ships."""
    epoch = record.product.epoch
    return epoch is not None and any(report.epoch > epoch for report in record.history)


def price(record: Record) -> str:
    """What safety cost, in words: how much less of what was taught there is than with plain CFG; "" if unknown."""
    ours, plain = record.taught, record.plain_taught
    if ours is None or plain is None:
        return ""
    if plain.value <= 0:
        return f" It keeps {ours.value:.0%} of what was taught, net of copies; plain CFG keeps nothing of it."
    word = "no less than" if ours.value >= plain.value else f"{ours.value / plain.value:.0%} of"
    best = record.best_plain_taught
    return (
        f" It keeps {ours.value:.0%} of what was taught, net of copies: {word} what plain CFG without a guard "
        f"keeps ({plain.value:.0%}{f'; {BEST_PLAIN} {best.value:.0%}' if best else ''})."
    )


def strength_line(record: Record) -> str:
    """What plain CFG does at the calibrated strength; "" where there is none."""
    strength = record.strength
    if strength is None:
        return ""
    what = "of the LoRA" if strength.kind == "lora" else "of the way from the base model's weights to the fine-tune's"
    scale = "" if strength.scale is None else f" of scale {strength.scale:g}"
    return f"at {strength.value:g} {what}, plain CFG{scale} copies {percent(strength.risk)}"


def triage_line(record: Record) -> str:
    """How well the first gap tells prompts apart; "" where that was not calibrated."""
    triage = record.triage
    if triage is None:
        return ""
    return (
        f"a first gap of at most {triage.threshold:.4g} at timestep {triage.timestep:g} means harmless; wrong for "
        f"{percent(triage.miss)} of the pulling pairs and {percent(triage.false_alarm)} of the harmless ones"
    )
