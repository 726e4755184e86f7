"""The JSON form of every rule: its name and its numbers, for records, rule files and guiders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from .core import Constant, Rule, SwitchAt
from .dynamic import DETECTORS, Drop, LocalMinimum, SwitchAfter
from .schedules import Interval, Schedule
from .triage import Triage

NUMBERS = frozenset({"scale", "transition", "before", "after"})  # of a rule's JSON form; a stranger may write anything
RULES: dict[str, type] = {
    "constant": Constant,
    "switch_at": SwitchAt,
    "switch_after": SwitchAfter,
    "schedule": Schedule,
    "interval": Interval,
}


def rule_to_dict(rule: Rule) -> dict[str, Any]:
    """The JSON form of a rule: its name and its numbers."""
    if isinstance(rule, Triage):
        numbers = {"threshold": rule.threshold, "after": rule.after, "timestep": rule.timestep}
        return {"rule": "triage", "inner": rule_to_dict(rule.rule), **numbers}
    name = next((name for name, kind in RULES.items() if type(rule) is kind), None)
    if name is None:
        raise TypeError(f"{rule!r} has no JSON form; rules that do: {', '.join(RULES)}, triage")
    form = {"rule": name, **asdict(rule)}  # type: ignore[call-overload]
    detector = getattr(rule, "detector", None)
    if detector is not None and type(detector) is not LocalMinimum:
        kind = next((name for name, kind in DETECTORS.items() if type(detector) is kind), None)
        if kind is None:
            raise TypeError(f"{detector!r} has no JSON form; detectors that do: {', '.join(DETECTORS)}")
        form["detector"] = {"detector": kind, **form["detector"]}
    return form


def rule_from_dict(form: Mapping[str, Any]) -> Rule:
    """Reads what `rule_to_dict` wrote.

    Raises:
        ValueError: an unknown rule, or a number it does not take.

    Example:
        >>> rule_from_dict(rule_to_dict(SwitchAt(600.0, -2.0, 7.5)))
        SwitchAt(transition=600.0, before=-2.0, after=7.5)
    """
    if not isinstance(form, Mapping):
        raise ValueError(f"a rule is an object such as {rule_to_dict(SwitchAt(600.0))}, given {form!r:.80}")
    if form.get("rule") == "triage":
        return _triage(form)
    numbers = dict(form)
    name = numbers.pop("rule", None)
    if not isinstance(name, str) or name not in RULES:
        raise ValueError(f"unknown rule {name!r:.80}; known: {', '.join(RULES)}, triage")
    try:
        if isinstance(numbers.get("transition"), list):
            numbers["transition"] = tuple(map(_number, numbers["transition"]))
        if isinstance(numbers.get("detector"), Mapping):
            numbers["detector"] = _detector(numbers["detector"])
        for key in NUMBERS & numbers.keys():
            if not isinstance(numbers[key], tuple | None):
                _number(numbers[key])
        rule: Rule = RULES[name](**numbers)
    except TypeError as error:
        raise ValueError(f"rule {name!r}: {error!s:.200}") from None
    return rule


def _triage(form: Mapping[str, Any]) -> Triage:
    try:
        return Triage(rule_from_dict(form["inner"]), form["threshold"], form["after"], form.get("timestep"))
    except (KeyError, TypeError) as error:
        raise ValueError(f"rule 'triage': {error!r} in {dict(form)}") from None


def _detector(form: Mapping[str, Any]) -> LocalMinimum | Drop:
    """A detector from its JSON form; one without a name is the paper's."""
    numbers = dict(form)
    kind = numbers.pop("detector", "local_minimum")
    if not isinstance(kind, str) or kind not in DETECTORS:
        raise ValueError(f"unknown detector {kind!r:.80}; known: {', '.join(DETECTORS)}")
    options = {key: None if value is None else _number(value) for key, value in numbers.items()}
    detector: LocalMinimum | Drop = DETECTORS[kind](**options)
    return detector


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise TypeError(f"{value!r:.80} is no finite number")
    return value
