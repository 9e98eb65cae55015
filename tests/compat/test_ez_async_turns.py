"""Whose turn it is: nobody is forgotten, the order is kept, the end comes."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ort_rknn_ez_async._turns import Pipe, Turns


def test_a_free_context_runs_on_the_callers_own_thread():
    turns = Turns(1, lambda: threading.current_thread())
    for _ in range(3):
        assert turns.run() is threading.current_thread()
    assert turns._workers == []
    turns.close()


def test_never_more_at_once_than_contexts_and_everyone_gets_their_own():
    running, most, lock = 0, 0, threading.Lock()

    def work(k):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.0005)
        with lock:
            running -= 1
        if k % 7 == 0:
            raise ValueError(k)
        return k

    def call(k):
        try:
            return turns.run(k)
        except ValueError as error:
            return error.args[0]

    turns = Turns(3, work)
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(call, range(2000))) == list(range(2000))
    assert most == 3
    turns.close()


def test_calls_that_return_at_once_run_in_order():
    seen, over = [], []
    turns = Turns(1, seen.append)
    slots = [turns.start((k,), lambda: over.append(1)) for k in range(200)]
    for slot in slots:
        slot.wait()
    assert seen == list(range(200))
    assert len(over) == 200
    turns.close()


def test_started_and_blocking_calls_together_are_all_served():
    turns = Turns(2, lambda k: k)

    def mixed(k):
        pipe = Pipe(3)
        got = [turns.run(k)]
        for n in range(20):
            got.append(pipe.push(turns.start((n,))))
            turns.run(n)
        return got[4:] + pipe.flush()

    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(mixed, range(100)):
            assert result == list(range(20))
    turns.close()


def test_the_end_waits_for_what_was_started_and_refuses_the_rest():
    turns = Turns(2, time.sleep)
    slots = [turns.start((0.02,)) for _ in range(8)]
    turns.close()
    turns.close()
    for slot in slots:
        slot.wait()
    for call in (lambda: turns.run(0), lambda: turns.start((0,)).wait()):
        with pytest.raises(RuntimeError, match="closed"):
            call()
    assert not any(w.is_alive() for w in turns._workers)


def test_callers_that_race_with_the_end_are_served_or_told():
    for _ in range(50):
        turns = Turns(2, lambda: time.sleep(0.0001) or 1)

        def call(_, turns=turns):
            try:
                return turns.run()
            except RuntimeError as error:
                return str(error)

        with ThreadPoolExecutor(6) as pool:
            results = pool.map(call, range(40))
            turns.close()
            assert set(results) <= {1, "the session was closed"}


def test_flush_raises_the_first_error_after_all_have_ended():
    def work(k):
        if k in (1, 2):
            raise ValueError(k)
        return k

    turns, pipe = Turns(1, work), Pipe(5)
    for k in range(4):
        assert pipe.push(turns.start((k,))) is None
    with pytest.raises(ValueError, match="1"):
        pipe.flush()
    assert pipe.flush() == []
    turns.close()
