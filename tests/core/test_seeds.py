"""Ranges of seeds never meet; one seed gives many streams, which differ in the 32 bits that torch's generator reads."""

from itertools import combinations

import torch

from basinguard.core import seeds
from basinguard.core.seeds import stream


def test_streams_differ_on_the_cpu():
    pairs = [(seed, count) for seed in range(40) for count in range(40)]
    first = [int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(stream(*pair)))) for pair in pairs]
    assert len(set(first)) == len(pairs)


def test_a_stream_is_always_the_same():
    assert stream(7, 3) == stream(7, 3)
    assert 0 <= stream(2**31 - 1, 10**9, 8) < 2**32


def test_no_two_purposes_share_a_seed():
    for (one, a), (other, b) in combinations(seeds.RANGES.items(), 2):
        assert a.stop <= b.start or b.stop <= a.start, f"{one} and {other} share seeds"


def test_every_seed_of_the_table_begins_a_range_of_its_own():
    named = {name: value for name, value in vars(seeds).items() if name.isupper() and isinstance(value, int)}
    assert sorted(named.values()) == sorted(part.start for part in seeds.RANGES.values())
