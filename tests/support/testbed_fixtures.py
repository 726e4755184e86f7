"""A testbed and a batch for every test of this folder."""

import pytest

from basinguard.mitigations.testbed import Batch
from support.testbeds import build_testbed


@pytest.fixture(scope="session")
def testbed(tiny_pipeline_dir):
    """Shared: whoever changes it must put it back."""
    return build_testbed(tiny_pipeline_dir)


@pytest.fixture
def own_testbed(tiny_pipeline_dir):
    return build_testbed(tiny_pipeline_dir)


@pytest.fixture
def batch():
    return Batch(("a ball", "a star"), (1, 2))
