"""A node of ComfyUI's API format."""

from __future__ import annotations

from typing import Any

Nodes = dict[str, dict[str, Any]]
Link = list[Any]  # [a node's name, which of its outputs]


def node(kind: str, title: str, **inputs: Any) -> dict[str, Any]:
    """A node.

    Args:
        kind: ComfyUI's name of its class.
        title: what its window shows.
        inputs: values, and links to other nodes' outputs.
    """
    return {"class_type": kind, "_meta": {"title": title}, "inputs": inputs}
