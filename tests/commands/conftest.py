"""The pipelines, records and benches that commands are tried on."""

from support.bench_fixtures import batch, bench, own_bench
from support.export_fixtures import pipe, record, samples, tuned

__all__ = ["batch", "bench", "own_bench", "pipe", "record", "samples", "tuned"]
