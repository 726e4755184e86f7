"""A bench and a batch for all of this folder."""

from support.bench_fixtures import batch, bench, own_bench

__all__ = ["batch", "bench", "own_bench"]
