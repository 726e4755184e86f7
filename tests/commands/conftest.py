"""The pipelines, records and testbeds that commands are tried on."""

from support.testbed_fixtures import batch, testbed, own_testbed
from support.export_fixtures import pipe, record, samples, tuned

__all__ = ["batch", "testbed", "own_testbed", "pipe", "record", "samples", "tuned"]
