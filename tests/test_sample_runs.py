"""The runs of a batch on several threads, and signals in the middle."""

import gc
import threading
import time
import weakref

import pytest

from ort_rknn._executor.sample_runs import SampleRuns


@pytest.fixture
def runs():
    made = SampleRuns(3)
    yield made
    made.close()


#: Signals whose handler raises, for a process of its own: in that of the tests, pytest-timeout has this timer, and what
#: a handler raises in hypothesis' callback of the collector is lost.
INTERRUPTS = """
import signal, threading, time
from ort_rknn._executor.sample_runs import SampleRuns

class Interrupted(BaseException):
    pass

def handler(number, frame):
    raise Interrupted

signal.signal(signal.SIGALRM, handler)
runs = SampleRuns(3)
"""


def test_every_run_once_on_several_threads(runs):
    seen, together = [], threading.Barrier(3)

    def one(k):
        if k < 3:
            together.wait(60)
        seen.append(k)

    for _ in range(3):
        runs.run_all(one, 10)
    assert sorted(seen) == sorted([*range(10)] * 3)


def test_the_first_error_stops_it_and_is_raised(runs):
    seen = []

    def one(k):
        seen.append(k)
        raise ValueError(k)

    for _ in range(3):
        with pytest.raises(ValueError):
            runs.run_all(one, 1000)
    assert len(seen) <= 9


def test_an_interrupt_waits_for_the_other_threads(python):
    """They write to buffers that are freed then."""
    python(
        INTERRUPTS
        + """
working, began = set(), threading.Event()

def one(k):
    if threading.current_thread() is threading.main_thread():
        began.wait(60)
        return
    working.add(k)
    began.set()
    time.sleep(0.3)
    working.discard(k)

left = None
signal.setitimer(signal.ITIMER_REAL, 0.1)
try:
    try:
        runs.run_all(one, 4)
        time.sleep(60)  # it came too late
    finally:
        left = set(working)
except Interrupted:
    pass
assert left == set(), left
"""
    )


def test_many_interrupts_leave_the_threads_at_work(python):
    python(
        INTERRUPTS
        + """
interrupted = 0

def until_interrupted():
    end = time.monotonic() + 60
    signal.setitimer(signal.ITIMER_REAL, 0.0005)
    while time.monotonic() < end:
        runs.run_all(lambda k: None, 9)
    raise AssertionError("an interrupt was lost")

for _ in range(300):
    try:
        until_interrupted()
    except Interrupted:
        interrupted += 1
assert interrupted == 300

seen, together = [], threading.Barrier(3)

def one(k):
    if k < 3:
        together.wait(60)
    seen.append(k)

runs.run_all(one, 10)
assert sorted(seen) == [*range(10)], seen
runs.close()
"""
    )


def test_after_close_the_caller_runs_them_all():
    runs, seen = SampleRuns(3), []
    runs.run_all(seen.append, 5)
    runs.close()
    runs.close()
    runs.run_all(seen.append, 5)
    assert sorted(seen) == sorted([*range(5)] * 2)


def test_nothing_of_a_call_stays(runs):
    class Buffer:
        """What a call writes to."""

    buffer = Buffer()
    gone = weakref.ref(buffer)

    def call(buffer):
        runs.run_all(lambda k: buffer, 50)

    gc.disable()
    try:
        call(buffer)
        del buffer
        ends = time.monotonic() + 60
        while gone() is not None and time.monotonic() < ends:  # a thread may be about to let go
            time.sleep(0.01)
        assert gone() is None
    finally:
        gc.enable()
