"""Files that strangers might send: valid ones, broken in every way hypothesis can think of."""

from __future__ import annotations

import json
import struct

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

TOKENS = (
    *(b"", b"{", b"}", b"[", b"]", b'"', b",", b":", b"\x00", b"\xff\xfe", b"\n", b"\\ud800", b"\\u0000", b"null"),
    *(b"NaN", b"-Infinity", b"1e999", b"-1", b"9" * 30, b"[" * 3000, b'{"a":' * 2000),
    *(b"../../etc/passwd", b"<script>", b"__class__"),
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.sampled_from(["../../etc/passwd", "<script>alert(1)</script>", "\x1b[2J", "os.system", "a" * 5000, "\ud800"]),
)  # fmt: skip
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def damaged(draw, valid: bytes) -> bytes:
    """Bytes of a valid file after a few edits: flips, cuts, copies, insertions."""
    given = bytearray(valid)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(given)))
        span = draw(st.integers(0, 40))
        kind = draw(st.integers(0, 3))
        if kind == 0:
            given[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == 1:
            del given[at : at + span]
        elif kind == 2:
            given[at:at] = given[at : at + span]
        else:
            given[at:at] = draw(st.sampled_from(TOKENS))
    return bytes(given)


def paths_in(value, path=()):
    """Every place in a JSON value."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from paths_in(child, (*path, key))


@st.composite
def twisted(draw, valid) -> bytes:
    """A JSON value of the right shape in which some places hold something else, are missing, or are new."""
    value = json.loads(json.dumps(valid))
    for _ in range(draw(st.integers(1, 3))):
        *above, last = draw(st.sampled_from(list(paths_in(value)))) or ("",)
        if last == "":
            value = draw(JSON)
            break
        owner = value
        for key in above:
            owner = owner[key]
        what = draw(st.integers(0, 2))
        if what == 0:
            owner[last] = draw(JSON)
        elif what == 1:
            del owner[last]
        elif isinstance(owner, dict):
            owner[draw(st.text(max_size=8))] = draw(JSON)
    return json.dumps(value).encode("utf-8", "surrogatepass")


def hostile(valid: bytes, form=None):
    """Anything at all, a damaged file, or (for JSON) a twisted one."""
    kinds = [st.binary(max_size=300), damaged(valid)]
    return st.one_of(*kinds, *([twisted(form)] if form is not None else []))


@st.composite
def tensor_files(draw, header: dict, payload: bytes) -> bytes:
    """A safetensors file whose header is twisted or damaged, or whose length lies."""
    text = draw(st.one_of(twisted(header), damaged(json.dumps(header).encode()), st.binary(max_size=100)))
    length = draw(st.one_of(st.just(len(text)), st.integers(0, 2**64 - 1), st.integers(0, 400)))
    return struct.pack("<Q", length) + text + draw(st.sampled_from([payload, payload[:-1], b""]))


def try_all(strategy, check, cases: int) -> int:
    """Runs a check on that many values, always the same ones; returns how many were tried."""
    tried = 0

    @settings(
        max_examples=cases,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(value):
        nonlocal tried
        tried += 1
        check(value)

    run()
    return tried
