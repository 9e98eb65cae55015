"""How much a process grows while something is repeated.

Other threads and the collector allocate when they like, once. A leak shows up in every round: it takes up to three
rounds, until one stays below the bound.
"""

import gc
import os
import tracemalloc

ROUNDS = 3


def assert_no_growth(repeat, *, traced=None, resident=None):
    """``repeat()`` leaves behind less than ``traced`` bytes in Python's allocators, or adds less than ``resident`` KiB
    to the memory of the process."""
    measure, bound = (_traced, traced) if resident is None else (_resident, resident)
    grown = []
    while not grown or (grown[-1] >= bound and len(grown) < ROUNDS):
        grown.append(measure(repeat))
    assert grown[-1] < bound, f"grew by {grown} in as many rounds, expected less than {bound}"


def _traced(repeat):
    gc.collect()
    tracemalloc.start(1)
    try:
        before = tracemalloc.get_traced_memory()[0]
        repeat()
        if gc.isenabled():
            gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def _resident(repeat):
    before = resident_kib()
    repeat()
    return resident_kib() - before


def resident_kib():
    """The resident memory of this process in KiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
