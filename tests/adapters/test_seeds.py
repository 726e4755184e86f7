"""One seed, many streams: torch's CPU generator sees only 32 bits, so each must differ in those."""

import torch

from basinguard.adapters.seeds import stream


def test_streams_differ_on_the_cpu():
    pairs = [(seed, count) for seed in range(40) for count in range(40)]
    first = [int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(stream(*pair)))) for pair in pairs]
    assert len(set(first)) == len(pairs)


def test_a_stream_is_always_the_same():
    assert stream(7, 3) == stream(7, 3)
    assert 0 <= stream(2**31 - 1, 10**9, 8) < 2**32
