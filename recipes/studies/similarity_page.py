"""The page of `similarity_table.py`: one table for each source and size, one column for each detector."""

from __future__ import annotations

from typing import Any


def markdown(result: dict[str, Any]) -> str:
    """Everything that was measured, with 95 % Wilson intervals."""
    lines = ["# Who recognises an edited copy, measured", ""]
    for head in result.get("nulls", {}).values():
        lines += [f"Null of {head['embedder']} ({head['what']}; n={head['scenes']}): 0.999 quantile "
                  f"{show(head['quantile_0.999'])}; shipped threshold {head['shipped_threshold']} is exceeded by "
                  f"{show(head['above_shipped_threshold'])}.", ""]  # fmt: skip
    for source, part in result.get("figure_null", {}).items():
        quantiles = f"0.99 quantile {show(part['quantile_0.99'])}, 0.999 quantile {show(part['quantile_0.999'])}"
        lines += [f"Null of {part['embedder']} on {source} ({part['what']}; n={part['pictures']}): {quantiles}; "
                  f"shipped threshold {part['shipped_threshold']} is exceeded by "
                  f"{show(part['above_shipped_threshold'])}.", ""]  # fmt: skip
    for source, part in result["table"].items():
        lines += source_table(source, part)
    return "\n".join(lines) + "\n"


def source_table(source: str, part: dict[str, Any]) -> list[str]:
    """Recall of each detector, and of what "auto" chose, by edit."""
    columns = dict(part["detectors"])
    if "recall" in part["auto"]:
        columns["auto"] = part["auto"]
    halves = (
        f"{part['tuning']} strangers set the thresholds, {part['strangers']} others test them, n = {part['testing']} "
        "pictures are edited. Recall at 1 % false positives; 95 % Wilson intervals."
    )
    lines = [f"## {source}", "", halves, "", choice(part), ""]
    lines += ["| edit | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name in next(iter(columns.values()))["recall"]:
        lines.append(row(name, [show(column["recall"][name]) for column in columns.values()]))
    lines.append(row("(strangers called copies)", [show(c["false_positives"]) for c in columns.values()]))
    lines.append(row("(threshold)", [threshold(column) for column in columns.values()]))
    return [*lines, "", *at_published(part["detectors"])]


def at_published(detectors: dict[str, Any]) -> list[str]:
    """Recall at the thresholds that are published."""
    gallery = {name: column["published"] for name, column in detectors.items() if "published" in column}
    lines = ["At the published thresholds:", ""]
    lines += ["| edit | " + " | ".join(f"{name} at {p['threshold']:g}" for name, p in gallery.items()) + " |"]
    lines += ["|---|" + "---|" * len(gallery)]
    for name in next(iter(gallery.values()))["recall"]:
        lines.append(row(name, [show(column["recall"][name]) for column in gallery.values()]))
    lines.append(row("(strangers called copies)", [show(column["false_positives"]) for column in gallery.values()]))
    return [*lines, ""]


def choice(part: dict[str, Any]) -> str:
    """What "auto" took, and what it said that it would find of its own edits."""
    auto = part["auto"]
    if "refused" in auto:
        return f"auto refused: {auto['refused']}"
    expected = ", ".join(f"{name} {show(estimate)}" for name, estimate in auto["expected"].items())
    return (
        f"auto chose {auto['chosen']} in {auto['processor_seconds']:g} s of processor time; of its own edits it "
        f"expects to find: {expected}."
    )


def row(name: str, cells: list[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def threshold(column: dict[str, Any]) -> str:
    if "thresholds" in column:
        return " or ".join(f"{value:.3g}" for value in column["thresholds"].values())
    value = column["threshold"]
    return show(value) if isinstance(value, dict) else f"{value:.3g}"


def show(estimate: dict[str, Any]) -> str:
    return f"{estimate['value']:.3g} [{estimate['low']:.3g}, {estimate['high']:.3g}]"
