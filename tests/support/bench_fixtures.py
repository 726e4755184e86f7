"""A bench and a batch for every test of this folder."""

import pytest

from basinguard.mitigations.base import Batch
from support.benches import build_bench


@pytest.fixture(scope="session")
def bench(tiny_pipeline_dir):
    """Shared: whoever changes it must put it back."""
    return build_bench(tiny_pipeline_dir)


@pytest.fixture
def own_bench(tiny_pipeline_dir):
    return build_bench(tiny_pipeline_dir)


@pytest.fixture
def batch():
    return Batch(("a ball", "a star"), (1, 2))
