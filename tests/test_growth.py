"""The measure of the tests that say "leaves nothing behind"."""

import mmap

import pytest
from support.growth import assert_no_growth


def pages():
    """20 MiB from the system: a freed block of the heap may still be resident."""
    memory = mmap.mmap(-1, 20 << 20)
    memory.write(bytes(20 << 20))
    return memory


def test_a_leak_is_found():
    leak = []
    with pytest.raises(AssertionError, match=r"grew by \[\d+, \d+, \d+\] in as many rounds, expected less than 10000"):
        assert_no_growth(lambda: leak.append(bytearray(20_000)), traced=10_000)
    with pytest.raises(AssertionError, match="expected less than 4096"):
        assert_no_growth(lambda: leak.append(pages()), resident=4096)


def test_what_is_allocated_once_is_none():
    once = []

    def repeat():
        if not once:
            once.append((pages(), bytearray(20_000)))

    assert_no_growth(repeat, traced=10_000)
    once.clear()
    assert_no_growth(repeat, resident=4096)
