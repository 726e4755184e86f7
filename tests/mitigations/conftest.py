"""A testbed and a batch for all of this folder."""

from support.testbed_fixtures import batch, own_testbed, testbed

__all__ = ["batch", "own_testbed", "testbed"]
