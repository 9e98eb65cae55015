"""An exception of a signal handler during a run reaches the program; and runs near the end of the stack."""

import pytest

START = """
import os, signal, sys, threading, time
import numpy as np
import onnxruntime, ort_rknn
from support import fake_npu
onnxruntime.set_default_logger_severity(4)
npu = fake_npu.install(fake_npu.FakeNpu())
s = ort_rknn.InferenceSession({path!r})
feed = {{"x": np.ones((1, 3, 32, 32), np.float32)}}
s.run(None, feed)
binding = s.io_binding()
binding.bind_cpu_input("x", feed["x"])
binding.bind_output(s.get_outputs()[0].name)

class TimeIsUp(Exception):
    pass

class Leave(BaseException):
    pass

calls = []
def handler(number, frame):
    calls.append(number)
    raise raised

def later(number, seconds):
    threading.Timer(seconds, lambda: os.kill(os.getpid(), number)).start()
"""


@pytest.fixture
def start(models):
    return START.format(path=str(models / "conv_f16.onnx"))


WAYS = {
    "run": "s.run(None, feed)",
    "iobinding": "s.run_with_iobinding(binding)",
    "ort values": "s.run_with_ort_values(None, {'x': onnxruntime.OrtValue.ortvalue_from_numpy(feed['x'])})",
}
RAISED = {
    "KeyboardInterrupt": ("SIGINT", "signal.default_int_handler", "KeyboardInterrupt"),
    "an exception": ("SIGALRM", "handler", "TimeIsUp"),
    "SystemExit": ("SIGTERM", "handler", "SystemExit"),
    "a BaseException": ("SIGUSR1", "handler", "Leave"),
    "an error that onnxruntime has": ("SIGALRM", "handler", "ValueError"),
}


@pytest.mark.parametrize(
    ("way", "raised", "then"),
    [
        *(("run", raised, "time.sleep(20)") for raised in RAISED),
        *((way, "an exception", "lock.acquire(timeout=20)") for way in WAYS),
        *(("iobinding", "KeyboardInterrupt", then) for then in ("threading.Event().wait(20)", "pass")),
    ],
)
def test_what_a_handler_raises_is_not_lost(python, start, raised, way, then):
    """Also if the program catches what the run raised, and waits."""
    number, handler, kind = RAISED[raised]
    out = python(
        start
        + f"""
lock = threading.Lock()
lock.acquire()
raised = None if {handler!r} != "handler" else {kind}("of the handler")
signal.signal(signal.{number}, {handler})
npu.delays[0] = 20
begin = time.monotonic()
later(signal.{number}, 0.3)
try:
    try:
        {WAYS[way]}
    except (RuntimeError, onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException,
            onnxruntime.capi.onnxruntime_pybind11_state.EPFail):
        {then}
        time.sleep(0)
except {kind} as error:
    assert raised is None or error is raised, error
else:
    print("lost")
assert time.monotonic() - begin < 10
assert len(calls) == (raised is not None), calls
npu.delays.clear()
assert len(s.run(None, feed)) == 1
time.sleep(0.1)
print("ok")
"""
    )
    assert out.strip() == "ok"


def test_run_raises_the_exception_itself(python, start):
    out = python(
        start
        + """
signal.signal(signal.SIGALRM, handler)
npu.delays[0] = 20
for kind in (TimeIsUp, Leave, SystemExit):
    raised = kind("of the handler")
    later(signal.SIGALRM, 0.2)
    try:
        s.run(None, feed)
    except kind as error:
        assert error is raised
print("ok")
"""
    )
    assert out.strip() == "ok"


def test_a_loop_that_catches_everything_else_is_left_at_once(python, start):
    out = python(
        start
        + """
npu.delays[0] = 0.001
npu.errors[0] = lambda: RuntimeError("always")
later(signal.SIGINT, 0.3)
begin = time.monotonic()
try:
    while time.monotonic() - begin < 15:
        try:
            s.run(None, feed)
        except Exception:
            pass
    print("lost")
except KeyboardInterrupt:
    print("ok")
"""
    )
    assert out.strip() == "ok"


def test_a_session_that_is_made(python, start):
    """Compile and GetCapability are callbacks too."""
    out = python(
        start
        + """
signal.signal(signal.SIGALRM, handler)
made = 0
end = time.monotonic() + 2
got = lost = 0
while time.monotonic() < end:
    raised = TimeIsUp(str(got))
    calls.clear()
    try:
        try:
            held = None  # the last one goes before the next alarm
            signal.setitimer(signal.ITIMER_REAL, 0.0005 + 0.0003 * (got % 20))
            held = ort_rknn.InferenceSession(PATH)
        except TimeIsUp:
            raise
        except Exception as error:
            pass
        while not calls:
            time.sleep(0.001)
        lost += 1  # Python itself drops what is raised in a finalizer
    except TimeIsUp as error:
        assert error is raised
        got += 1
print("ok" if got > 5 and lost * 20 < got else (got, lost))
""".replace("PATH", "s._model_path"),
        args=("-W", "ignore"),
        quiet=False,  # Python writes what a handler raises in a finalizer
    )
    assert out.strip() == "ok"


NEAR_THE_END = """
want = [r.copy() for r in s.run(None, feed)]
def at(depth, call):
    return call() if depth <= 0 else at(depth - 1, call)
def bound():
    s.run_with_iobinding(binding)
    return binding.copy_outputs_to_cpu()
counts = {}
for call in (lambda: s.run(None, feed), bound):
    for k in range(2, 80):
        try:
            got = at(sys.getrecursionlimit() - k, call)
            assert all(map(np.array_equal, got, want)), k
            what = "right"
        except RecursionError:
            what = "RecursionError"
        except Exception as error:
            assert call is bound and "RecursionError" in str(error), (k, error)
            what = "RecursionError"
        counts[what] = counts.get(what, 0) + 1
assert counts["right"] > 40 and counts["RecursionError"] > 10, counts
assert len(s.run(None, feed)) == 1
print("ok")
"""


@pytest.mark.parametrize("limit", [None, 200, 3000])
def test_near_the_end_of_the_stack(python, start, limit):
    """A RecursionError, never a hang, a crash or other numbers."""
    change = "" if limit is None else f"sys.setrecursionlimit({limit})\n"
    out = python(start + change + NEAR_THE_END)
    assert out.strip() == "ok"


def test_near_the_end_of_the_stack_where_a_twin_computes(python, models):
    start = START.replace("npu = fake_npu", "fake_npu").replace("fake_npu.install(fake_npu.FakeNpu())", "")
    out = python(
        start.format(path=str(models / "conv_f16.onnx")) + NEAR_THE_END, env={"ORT_RKNN_DEVICE": "virtual:rk3588"}
    )
    assert out.strip() == "ok"


@pytest.mark.parametrize("where", ["main", "another"])
def test_the_first_run_of_a_thread_near_the_end_of_the_stack(python, start, where):
    """The lookups that happen once per thread have no room either."""
    first = "thread = threading.Thread(target=s.run, args=(None, feed)); thread.start(); thread.join()"
    assert "s.run(None, feed)\nbinding" in start
    out = python(
        (start.replace("s.run(None, feed)\nbinding", f"{first}\nbinding") if where == "main" else start)
        + f"""
WHERE = {where!r}
def at(depth):
    return s.run(None, feed) if depth <= 0 else at(depth - 1)
told = []
def near_the_end():
    for k in range(4, 60):
        try:
            at(sys.getrecursionlimit() - k)
            told.append("right")
        except RecursionError:
            told.append("RecursionError")
        except BaseException as error:
            told.append((k, repr(error)))
if WHERE == "main":
    near_the_end()
else:
    thread = threading.Thread(target=near_the_end)
    thread.start()
    thread.join()
others = [one for one in told if one not in ("right", "RecursionError")]
assert not others, others
assert told.count("right") > 10 and told.count("RecursionError") > 5, told
print("ok")
"""
    )
    assert out.strip() == "ok"


@pytest.mark.parametrize("way", WAYS)
def test_more_runs_at_one_depth_than_there_are_spare_statuses(python, start, way):
    """If one callback takes all of them, no other callback creates new ones."""
    out = python(
        start
        + f"""
def at(depth):
    return {WAYS[way]} if depth <= 0 else at(depth - 1)
"""
        + """
def again_and_again():
    for k in range(4, 24):
        for _ in range(600):
            try:
                at(sys.getrecursionlimit() - k)
            except RecursionError:
                pass
            except Exception as error:
                assert "RecursionError" in str(error), error
again_and_again()
thread = threading.Thread(target=again_and_again)
thread.start()
thread.join()
assert len(s.run(None, feed)) == 1
print("ok")
""",
        timeout=300,
    )
    assert out.strip() == "ok"


def test_more_runs_at_the_end_of_the_stack_than_there_are_spare_statuses(python, start):
    out = python(
        start
        + """
def at(depth):
    return s.run(None, feed) if depth <= 0 else at(depth - 1)
for round in range(120):
    for k in range(4, 24):
        try:
            at(sys.getrecursionlimit() - k)
        except RecursionError:
            pass
assert len(s.run(None, feed)) == 1
print("ok")
""",
        timeout=300,
    )
    assert out.strip() == "ok"
