"""Shared by the tests of hostile input: the number of examples, and how a valid input is damaged.

Environment variable ``HOSTILE_EXAMPLES``: examples per test. By default they are few and always the same.
"""

from __future__ import annotations

import copy
import json
import os
import tracemalloc
from contextlib import contextmanager

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("HOSTILE_EXAMPLES", "0"))
careful = settings(
    max_examples=EXAMPLES or 100,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
#: For tests that create a session or write several files.
slow = settings(careful, max_examples=max(EXAMPLES // 10, 12))

texts = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["", "\0", "../x", "/etc/passwd", "\x1b[2J", "9" * 5000, "nan", "x" * 5000]),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 2**31, 2**63, 2**64, 10**400, 1e400, -1e400, float("nan"), -0.0, 1e-320]),
    st.floats(),
    texts,
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=8,
)


def spots(tree, path=()):
    """Every place in a tree of JSON."""
    yield path
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in children:
        yield from spots(child, (*path, key))


def replaced(tree, path, value):
    if not path:
        return value
    out = copy.deepcopy(tree)
    inner = out
    for key in path[:-1]:
        inner = inner[key]
    if value is MISSING:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return out


MISSING = object()


@st.composite
def damaged_json(draw, good):
    """``good`` with some values removed or replaced, as bytes; sometimes with bytes changed."""
    tree = good
    for _ in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from(list(spots(tree))))
        tree = replaced(tree, path, draw(st.one_of(values, st.just(MISSING)) if path else values))
    content = json.dumps(tree).encode()
    return draw(damaged_bytes(content)) if draw(st.integers(0, 3)) == 0 else content


@st.composite
def damaged_bytes(draw, good):
    """``good`` with bytes changed, removed or inserted, or truncated."""
    out = bytearray(good)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(len(out) - 1, 0)))
        how = draw(st.integers(0, 4))
        if how == 0:
            out[at : at + draw(st.integers(1, 16))] = b""
        elif how == 1:
            out[at:at] = draw(st.binary(max_size=16))
        elif how == 2:
            out[at : at + 4] = draw(st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\0\0\0\x80", b"\xff\xff\xff\x7f"]))
        elif how == 3 and out:
            out[at] = draw(st.integers(0, 255))
    return bytes(out[: draw(st.integers(0, len(out)))] if draw(st.integers(0, 5)) == 0 else out)


@contextmanager
def at_most(megabytes):
    """The block may not use more memory than this, as far as Python's allocators see it."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1] >> 20
    finally:
        tracemalloc.stop()
    assert peak <= megabytes, f"{peak} MiB"
