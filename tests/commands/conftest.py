"""The pipelines, records and testbeds that commands are tried on."""

from support.export_fixtures import pipe, record, samples, tuned
from support.testbed_fixtures import batch, own_testbed, testbed

__all__ = ["batch", "testbed", "own_testbed", "pipe", "record", "samples", "tuned"]
