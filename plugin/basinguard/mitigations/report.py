"""The comparison for people: one HTML file that opens offline, with figure, tables and samples."""

from __future__ import annotations
