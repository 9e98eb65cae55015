"""Lanes: which caller gets a context, on which thread a run executes, and how a lane closes. The contexts are plain
names."""

import gc
import random
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.executors import make
from support.fake_npu import FakeNpu, info
from support.waiting import until

from ort_rknn._executor.lanes import Lane, Lease


def refusal():
    return RuntimeError("the lane was closed")


def nothing():
    return None


@pytest.fixture
def lane_of():
    made = []

    def build(*names, **given):
        made.append(Lane([Lease(name, name) for name in names], **given))
        return made[-1]

    before = set(threading.enumerate())
    yield build
    for lane in made:
        lane.close(refusal)
    assert set(threading.enumerate()) <= before


def take(lane, shape_set=None):
    taken = []
    lane.take(taken, shape_set)
    return taken[0] if taken else None


def waiting(lane, number):
    until(lambda: lane.queued() >= number)


def test_contexts_go_round(lane_of):
    lane = lane_of("a", "b")
    first, second = take(lane), take(lane)
    assert (first.label, second.label, take(lane)) == ("a", "b", None)
    lane.give_back(second)
    lane.give_back(first)
    assert [take(lane).label, take(lane).label] == ["b", "a"]
    lane.give_back(first)
    lane.give_back(second)


def test_waiting_calls_run_one_after_the_other_on_one_thread(lane_of):
    lane = lane_of("a")
    seen = []

    def call(k):
        lane.wait_and_run(lambda lease: seen.append((k, lease.label, threading.current_thread().name)))

    held = take(lane)
    with ThreadPoolExecutor(5) as pool:
        calls = []
        for k in range(5):
            calls.append(pool.submit(call, k))
            waiting(lane, k + 1)
        assert seen == []
        lane.give_back(held)
        for done in calls:
            done.result(10)
    assert seen == [(k, "a", "ort_rknn run 0") for k in range(5)]


def test_no_caller_overtakes_a_waiting_one(lane_of):
    lane = lane_of("a")
    held = take(lane)
    gate = threading.Event()
    lane.start(lambda lease: gate.wait(10), nothing)
    lane._idle.append(held)  # idle, and no worker was notified
    assert take(lane) is None
    lane._idle.clear()
    lane.give_back(held)
    gate.set()


def test_a_context_at_the_wanted_shape_is_preferred(lane_of):
    lane = lane_of("a", "b", "c", by_shape=True)
    lane._idle[1].shape_set = 7
    lease = take(lane, 7)
    assert lease.label == "b"
    assert take(lane, 7).label == "a"
    lane.give_back(lease)
    assert [take(lane).label for _ in range(2)] == ["c", "b"]
    lane._idle.extend(Lease(name, name) for name in "abc")


def test_an_error_reaches_its_caller_and_nobody_else(lane_of):
    lane = lane_of("a")
    gc.collect()
    gc.disable()
    try:
        held = take(lane)

        class Buffers:
            pass

        buffers = Buffers()
        dead = weakref.ref(buffers)

        def work(lease, held=buffers):
            raise ValueError("bad")

        bad, good = lane.start(work, nothing), lane.start(lambda lease: None, nothing)
        del work, buffers
        lane.give_back(held)
        with pytest.raises(ValueError, match="bad"):
            bad.result()
        good.result()
        del bad
        assert dead() is None  # no cycle through the traceback
    finally:
        gc.enable()


def test_close_refuses_waiting_callers_and_waits_for_runs(lane_of):
    lane = lane_of("a", "b")
    gate, refused = threading.Event(), []
    running = [lane.start(lambda lease: gate.wait(10), nothing) for _ in range(2)]
    until(lambda: not lane.idle() and not lane.queued())
    late = lane.start(lambda lease: None, lambda: refused.append(1))
    with ThreadPoolExecutor(2) as pool:
        blocked = pool.submit(lane.wait_and_run, lambda lease: None)
        waiting(lane, 2)
        closing = pool.submit(lane.close, refusal)
        with pytest.raises(RuntimeError, match="the lane was closed"):
            blocked.result(10)
        with pytest.raises(RuntimeError, match="the lane was closed"):
            late.result()
        assert refused == [1]
        time.sleep(0.02)
        assert not closing.done()
        gate.set()
        assert closing.result(10)
    for turn in running:
        turn.result()
    assert take(lane) is None
    with pytest.raises(RuntimeError, match="the lane was closed"):
        lane.wait_and_run(lambda lease: None)
    assert lane.close(refusal)


def test_a_worker_that_is_made_while_the_lane_closes_ends_too(lane_of, monkeypatch):
    lane = lane_of("a", "b")
    held = take(lane)
    started, gate, slow = threading.Event(), threading.Event(), threading.Event()

    def first(lease):
        started.set()
        gate.wait(20)

    lane.start(first, nothing)
    assert started.wait(20)
    start = threading.Thread.start

    def slow_start(thread):
        start(thread)
        if thread.name == "ort_rknn run 1":
            slow.wait(20)

    monkeypatch.setattr(threading.Thread, "start", slow_start)
    with ThreadPoolExecutor(2) as pool:
        closing = pool.submit(lane.close, refusal)
        waiting(lane, 1)
        giving = pool.submit(lane.give_back, held)
        until(lambda: any(t.name == "ort_rknn run 1" for t in threading.enumerate()))
        gate.set()  # the first worker serves close(), while the second is still being made
        time.sleep(0.05)
        slow.set()
        closing.result(20)
        giving.result(20)
    assert not [t for t in threading.enumerate() if t.name.startswith("ort_rknn run")]


def test_where_no_thread_can_be_had_runs_still_end(lane_of, monkeypatch):
    """Python 3.12 and later start none while the interpreter ends."""

    def no_thread(self):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    lane = lane_of("a")
    seen = []
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    lane.start(lambda lease: seen.append(threading.current_thread()), nothing).result()
    held = take(lane)
    turn = lane.start(lambda lease: seen.append(threading.current_thread()), nothing)
    lane.give_back(held)
    turn.result()
    assert seen == [threading.current_thread()] * 2


def test_ctrl_c_ends_the_waiting_but_never_a_run(python):
    out = python(
        """
import os, signal, threading, time
from ort_rknn._executor.lanes import Lane, Lease

signal.signal(signal.SIGINT, signal.default_int_handler)

def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)

lane, seen = Lane([Lease("a", "a")]), []
taken = []
lane.take(taken)
held = taken[0]
try:
    threading.Timer(0.2, ctrl_c).start()  # on a busy machine it fires before there is somebody to wait
    lane.wait_and_run(lambda lease: seen.append("it ran"))
except KeyboardInterrupt:
    seen.append("interrupted")
lane.give_back(held)

def long(lease):
    ctrl_c()
    time.sleep(0.3)
    seen.append("it ended")

lane.take(taken)
held = taken[-1]
threading.Timer(0.1, lane.give_back, [held]).start()
try:
    lane.wait_and_run(long)
except KeyboardInterrupt:
    seen.append("interrupted")
lane.wait_and_run(lambda lease: seen.append(lease.label))
lane.close(RuntimeError)
print(seen)
"""
    )
    assert out == "['interrupted', 'it ended', 'interrupted', 'a']\n"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="3.10 runs signal handlers between any two instructions")
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_signal_handler_that_raises_costs_no_context(python, dynamic):
    """A lost context would make the next run, and close(), wait forever."""
    out = python(
        f"""
import signal, time
import numpy as np
from support.fake_npu import FakeNpu, info
from support.executors import make

class Tick(Exception):
    pass

def tick(*args):
    if armed:
        armed.clear()
        raise Tick

armed = []
npu = FakeNpu(inputs=(info("in", (1, 4)),), outputs=(info("out", (1, 4)),), compute=lambda arrays: arrays)
npu.watched = False
executor = make(npu, schedule="0", threads_per_core=32)
(lane,) = executor._lanes
if {dynamic}:
    lane._by_shape = True
call, x, y = executor.static_call, np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32)
signal.signal(signal.SIGALRM, tick)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.00037)
ticks = 0
end = time.monotonic() + 1.5
while time.monotonic() < end:
    try:
        try:
            armed.append(1)
            executor.execute(call, [x.ctypes.data], [y.ctypes.data])
        finally:
            armed.clear()
    except Tick:
        ticks += 1
signal.setitimer(signal.ITIMER_REAL, 0)
assert ticks > 20, ticks
assert len(lane._idle) == 32, (len(lane._idle), ticks)
executor.close()
print("ok")
""",
        args=("-W", "ignore"),
    )
    assert out.strip() == "ok"


def test_no_waiting_caller_is_forgotten(lane_of):
    """Callers and workers acquire and release three contexts as fast as they can; none waits forever."""
    lane = lane_of("a", "b", "c")
    users = {"a": [], "b": [], "c": []}

    def work(lease):
        users[lease.label].append(1)
        assert len(users[lease.label]) == 1
        if random.random() < 0.1:
            time.sleep(0.0001)
        users[lease.label].clear()

    def calls(k):
        for _ in range(500):
            lease = take(lane)
            if lease is None:
                lane.wait_and_run(work)
                continue
            try:
                work(lease)
            finally:
                lane.give_back(lease)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(calls, range(8)))
    assert len(lane._idle) == 3
    assert not lane._waiting


def test_callers_that_race_with_close_are_served_or_refused():
    for _ in range(30):
        lane = Lane([Lease("a", "a"), Lease("b", "b")])
        served, told = [], []

        def call(_, lane=lane, served=served, told=told):
            try:
                for _ in range(50):
                    lane.wait_and_run(served.append)
            except RuntimeError as error:
                told.append(str(error))

        with ThreadPoolExecutor(4) as pool:
            calls = pool.map(call, range(4))
            time.sleep(0.0005)
            lane.close(refusal)
            list(calls)
        assert set(told) <= {"the lane was closed"}


def test_an_executor_that_ends_on_its_own_worker():
    """The collector may run there: it cannot wait for itself."""
    npu = FakeNpu(inputs=(info("in", (1, 4)),), outputs=(info("out", (1, 4)),), compute=lambda arrays: arrays)
    executor = make(npu, schedule="0")
    lane = executor._lanes[0]
    lane.start(lambda lease: executor.close(), nothing).result()
    for _ in range(1000):
        if (npu.open_models, npu.open_contexts) == (0, 0):
            break
        time.sleep(0.01)
    assert (npu.open_models, npu.open_contexts) == (0, 0)
    assert executor.closed
    executor.close()
    for thread in threading.enumerate():
        if thread.name == "ort_rknn close":  # it closed the model last, and may still be about to end
            thread.join()
    before = set(threading.enumerate())
    with pytest.raises(Exception, match="the session was closed"):
        executor.run([np.zeros((1, 4), np.float32)])
    assert set(threading.enumerate()) <= before
