"""One tiny pipeline and its record for all of this folder."""

from support.export_fixtures import pipe, record, samples, tuned

__all__ = ["pipe", "record", "samples", "tuned"]
