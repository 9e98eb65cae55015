"""The runs of a batch on several threads, and signals in the middle."""

import gc
import signal
import threading
import time
import weakref

import pytest

from ort_rknn._executor.sample_runs import SampleRuns


class Interrupted(BaseException):
    """Raised by the signal's handler."""


@pytest.fixture
def runs():
    made = SampleRuns(3)
    yield made
    made.close()


@pytest.fixture
def interrupts():
    """Signals whose handler raises."""

    def handler(number, frame):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, handler)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def main_thread():
    return threading.current_thread() is threading.main_thread()


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


def test_an_interrupt_waits_for_the_other_threads(runs, interrupts):
    """They write to buffers that are freed then."""
    working, began = set(), threading.Event()

    def one(k):
        if main_thread():
            began.wait(60)
            return
        working.add(k)
        began.set()
        time.sleep(0.3)
        working.discard(k)

    signal.setitimer(signal.ITIMER_REAL, 0.1)
    with pytest.raises(Interrupted):
        try:
            runs.run_all(one, 4)
            time.sleep(60)  # it came too late
        finally:
            left = set(working)
    assert left == set()


def test_many_interrupts_leave_the_threads_at_work(runs, interrupts):
    for _ in range(300):
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0005)
            while True:
                runs.run_all(lambda k: None, 9)
        except Interrupted:
            pass
    test_every_run_once_on_several_threads(runs)


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
