"""The measure of the tests that say "leaves nothing behind"."""

import pytest
from support.growth import assert_no_growth


def test_a_leak_is_found():
    leak = []
    with pytest.raises(AssertionError, match=r"grew by \[\d+, \d+, \d+\] in as many rounds, expected less than 10000"):
        assert_no_growth(lambda: leak.append(bytearray(20_000)), traced=10_000)
    with pytest.raises(AssertionError, match="expected less than 4096"):
        assert_no_growth(lambda: leak.append(b"x" * (20 << 20)), resident=4096)


def test_what_is_allocated_once_is_none():
    once = []

    def repeat():
        if not once:
            once.append(b"x" * (20 << 20))

    assert_no_growth(repeat, traced=10_000)
    once.clear()
    assert_no_growth(repeat, resident=4096)
