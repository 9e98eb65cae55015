"""Two thousand interrupts for every way to call: afterwards the session works as before, and every place in the queue
is free.

A handler that raises stands for a Ctrl-C that the program catches, and for the timeouts of test runners and servers.
The exceptions are kept, with their tracebacks and what these hold, as a program that logs them may do.
"""

import ast
import os
import sys
from pathlib import Path

import pytest
from support.virtual_sessions import MODELS

import ort_rknn

#: 20,000 with ``tox -e interrupts``.
INTERRUPTS = int(os.environ.get("INTERRUPTS", "2000"))
SECONDS = 60 * max(1, INTERRUPTS // 2000)

SCRIPT = """
import collections, os, random, signal, sys, threading, time
import numpy as np
os.environ["ORT_RKNN_DEVICE"] = "virtual:rk3588"
others = {way!r} == "run among others"
if others:  # no time is spent in C
    os.environ["ORT_RKNN_VIRTUAL_COMPUTE"] = "pattern"
import ort_rknn as ort
import ort_rknn_ez_async as ez
from ort_rknn_virtual.control import virtual_npu

class Tick(Exception):
    pass

npu = virtual_npu("rk3588")
npu.run_time_us = 0 if others else 150
chance, kept, armed = random.Random({way!r}), [], []
feed = {{"x": np.ones((1, 3, 32, 32), np.float32)}}
options = {{"schedule": [0] if others else [0, 1, 2], "submit_timeout_ms": 5000}}
if "face" in {way!r}:
    session = ez.InferenceSession({model!r} + ".rk3588.rknn", provider_options=options)
else:
    session = ort.InferenceSession({model!r} + ".onnx", provider_options=options)

def arm():
    after = chance.choice((0.00005, 0.0002, 0.0005, 0.0015)) * (0.5 + chance.random())
    # And again after 20 ms: what a handler raised before may come out inside of tick(), before it has armed again.
    signal.setitimer(signal.ITIMER_REAL, after, 0.02)

def tick(*args):
    arm()
    if armed:
        armed.clear()
        raise Tick

def with_callback():
    future = session.submit(None, feed)
    future.add_done_callback(lambda done: None)
    if chance.random() < 0.3:
        future.cancel()

def stopped_map():
    for k, _ in enumerate(session.map([feed] * 8)):
        if k == 3:
            break

ways = {{
    "run": lambda: session.run(None, feed),
    "run among others": lambda: [session.run(None, feed) for _ in range(20)],
    "submit": lambda: session.submit(None, feed),
    "submit and wait": lambda: session.submit(None, feed).result(10),
    "submit, callbacks and cancel": with_callback,
    "map": lambda: collections.deque(session.map([feed] * 8), maxlen=0),
    "stopped map": stopped_map,
    "run_pipeline": lambda: session.run_pipeline(feed),
    "run of the face": lambda: session.run(None, feed),
    "run_async of the face": lambda: session.run_async(None, feed, lambda *got: None),
    "run_pipeline of the face": lambda: session.run_pipeline(feed),
}}
call = ways[{way!r}]
call()
over = []
def run_too():
    while not over:
        session.run(None, feed)
threads = [threading.Thread(target=run_too, daemon=True) for _ in range(2 * others)]
for thread in threads:
    thread.start()
signal.signal(signal.SIGALRM, tick)
sys.unraisablehook = lambda args: None  # a tick inside a generator's close()
end = time.monotonic() + {seconds}
arm()
while len(kept) < {interrupts}:
    assert time.monotonic() < end, f"{{len(kept)}} interrupts only"
    try:
        try:
            armed.append(1)
            call()
        finally:
            armed.clear()
    except Tick as error:
        kept.append(error)
    except (ort.capi.onnxruntime_pybind11_state.RuntimeException, RuntimeError) as error:
        assert {way!r}.startswith("run"), repr(error)  # a tick inside a callback of onnxruntime's or the runtime's
        kept.append(error)
signal.signal(signal.SIGALRM, signal.SIG_IGN)
over.append(1)
for thread in threads:
    thread.join(10)
    assert not thread.is_alive(), "a context is lost"
before = time.monotonic()
for _ in range(30):
    call()
if hasattr(session, "submit"):
    assert [len(f.result(10)) for f in [session.submit(None, feed) for _ in range(20)]] == [1] * 20
assert len(session.run(None, feed)) == 1
session.flush()
places = session._core._places if "face" in {way!r} else session._submitters().places
while places.taken():
    assert time.monotonic() - before < 10, "a place is lost"
    time.sleep(0.01)
session.close()
assert time.monotonic() - before < 10
counters = npu.counters()
assert (counters.contexts, counters.models, counters.misuses) == (0, 0, 0), counters
print("as before", flush=True)
"""

WAYS = [
    "run",
    "run among others",
    "submit",
    "submit and wait",
    "submit, callbacks and cancel",
    "map",
    "stopped map",
    "run_pipeline",
    "run of the face",
    "run_async of the face",
    "run_pipeline of the face",
]


def loops_under_locks(path):
    """Lines of ``with`` statements on a lock that have a loop in their body."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.With) or not any("lock" in ast.unparse(i.context_expr).lower() for i in node.items):
            continue
        if any(isinstance(inner, (ast.For, ast.While)) for part in node.body for inner in ast.walk(part)):
            yield node.lineno


@pytest.mark.parametrize("folder", ["_concurrency", "_executor", "_session"])
def test_no_loop_while_a_lock_is_held(folder):
    """CPython 3.12 and 3.13 compile some jumps back outside what gives the lock back, and a handler may raise there:
    see Places._claim. A loop goes into a function that is called under the lock."""
    modules = sorted((Path(ort_rknn.__file__).parent / folder).glob("*.py"))
    assert modules
    assert [f"{m.name}:{line}" for m in modules for line in loops_under_locks(m)] == []


@pytest.mark.skipif(sys.version_info < (3, 11), reason="3.10 runs signal handlers between any two instructions")
@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_a_handlers_exception_leaves_no_lock_taken(python, kind):
    """On 3.14 a ``threading.Lock`` in a ``with`` statement was left taken some 80 times a second."""
    code = f"""
import signal
from ort_rknn import _locks

class Tick(Exception):
    pass

def tick(*args):
    raise Tick

lock = _locks.{kind}()
signal.signal(signal.SIGALRM, tick)
for _ in range(1000):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0003)
        while True:
            with lock:
                pass
    except Tick:
        pass
    assert "unlocked" in repr(lock), lock
"""
    python(code)


@pytest.mark.wall_clock
@pytest.mark.timeout(60 + SECONDS)
@pytest.mark.parametrize("way", WAYS)
def test_interrupts_cost_nothing(python, way):
    if sys.version_info < (3, 11) and way not in ("run", "run among others"):
        pytest.skip("3.10 runs signal handlers between any two instructions")
    code = SCRIPT.format(way=way, model=str(MODELS / "conv_f16"), interrupts=INTERRUPTS, seconds=SECONDS)
    said = python(
        code, args=("-W", "ignore"), env={"ORT_RKNN_VIRTUAL_COMPUTE": "pattern"}, quiet=False, timeout=40 + SECONDS
    )
    assert said.splitlines()[-1] == "as before"
