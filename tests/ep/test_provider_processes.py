"""The provider in its own process: exit, signals, forks, and growth."""

import pytest

START = """
import sys, os, threading, time, gc, builtins, atexit, signal
import numpy as np
import onnxruntime, ort_rknn
from support import fake_npu
onnxruntime.set_default_logger_severity(4)  # a kernel's errors are logged besides
npu = fake_npu.install(fake_npu.FakeNpu())
PATH = {path!r}
feed = {{"x": np.ones((1, 3, 32, 32), np.float32)}}
"""


@pytest.fixture
def start(models):
    return START.format(path=str(models / "conv_f16.onnx"))


ENDINGS = {
    "a global": "s = ort_rknn.InferenceSession(PATH); s.run(None, feed)",
    "never run": "s = ort_rknn.InferenceSession(PATH)",
    "deleted": "s = ort_rknn.InferenceSession(PATH); s.run(None, feed); del s",
    "closed": "s = ort_rknn.InferenceSession(PATH); s.run(None, feed); s.close()",
    "closed and unregistered": "s = ort_rknn.InferenceSession(PATH); s.close(); del s; ort_rknn.unregister()",
    "two": "s = [ort_rknn.InferenceSession(PATH) for _ in range(2)]; [x.run(None, feed) for x in s]; del s[0]",
    "in a cycle": "s = ort_rknn.InferenceSession(PATH); s.me = s; s.run(None, feed); gc.disable(); del s",
    "in builtins": "builtins.s = ort_rknn.InferenceSession(PATH); builtins.s.run(None, feed)",
    "in sys": "sys.s = ort_rknn.InferenceSession(PATH)",
    "used at exit": "s = ort_rknn.InferenceSession(PATH); atexit.register(lambda: s.run(None, feed))",
    "closed at exit": "s = ort_rknn.InferenceSession(PATH); s.run(None, feed); atexit.register(s.close)",
    "made at exit": "atexit.register(lambda: ort_rknn.InferenceSession(PATH).run(None, feed))",
    "sys.exit": "s = ort_rknn.InferenceSession(PATH); s.run(None, feed); sys.exit(0)",
    "native kept": "s = ort_rknn.InferenceSession(PATH)._sess",
    "binding kept": "b = ort_rknn.InferenceSession(PATH).io_binding()",
    "registered alone": "ort_rknn.register()",
    "modules dropped": """
s = ort_rknn.InferenceSession(PATH)
[sys.modules.pop(n) for n in list(sys.modules) if "ort_rknn" in n]
""",
    "a thread at work": """
s = ort_rknn.InferenceSession(PATH)
npu.delays[0] = 0.05
t = threading.Thread(target=lambda: [s.run(None, feed) for _ in range(5)])
t.start()
""",
    "threads of batches": """
s = ort_rknn.InferenceSession(PATH.replace("conv_f16", "free_batch"), provider_options={"schedule": "0,1,2"})
s.run(None, {"x": np.ones((6, 3, 16, 16), np.float32)})
""",
    "run_async at work": """
s = ort_rknn.InferenceSession(PATH)
done = threading.Event()
s.run_async(None, feed, lambda *args: done.set(), None)
assert done.wait(20)
""",
    "a session of plain onnxruntime": """
ort_rknn.register()
o = onnxruntime.SessionOptions()
o.add_provider_for_devices([d for d in onnxruntime.get_ep_devices() if d.ep_name == "RKNNExecutionProvider"], {})
s = onnxruntime.InferenceSession(PATH, o)
s.run(None, feed)
assert npu.log
""",
    "after an error": """
s = ort_rknn.InferenceSession(PATH)
npu.errors[0] = RuntimeError("x")  # its traceback, and that of the one that is kept, hold the session
try:
    s.run(None, feed)
except Exception as error:
    kept = error
""",
}


@pytest.mark.parametrize("case", ENDINGS)
def test_a_process_ends_well(python, start, case):
    python(start + ENDINGS[case])


def test_a_process_that_ends_by_an_error(python, start):
    python(start + "s = ort_rknn.InferenceSession(PATH)\nsys.exit(3)", expect=3)
    python(start + "s = ort_rknn.InferenceSession(PATH)\nraise KeyError", expect=1, quiet=False)


def test_keyboard_interrupt(python, start):
    """Ctrl-C inside a kernel reaches the caller: at once, or just after the failed run's exception."""
    out = python(
        start
        + """
s = ort_rknn.InferenceSession(PATH)
s.run(None, feed)
npu.delays[0] = 30
begin = time.monotonic()
try:
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        s.run(None, feed)
    except Exception as error:
        assert "KeyboardInterrupt" in str(error), error
        print("failed first")
        time.sleep(5)
    else:
        print("not interrupted")
except KeyboardInterrupt:
    print("interrupted")
assert time.monotonic() - begin < 10
npu.delays.clear()
assert len(s.run(None, feed)) == 1
"""
    )
    # The interrupt may come in the middle of the other line.
    assert out.endswith("interrupted\n") and "not interrupted" not in out


def test_signal_handlers_that_raise(python, start):
    """A signal may fire anywhere, in the error path too: never more than a failed run."""
    out = python(
        start
        + """
class Tick(Exception):
    pass

def tick(*args):
    if armed:
        armed.clear()
        raise Tick("tick")

armed = []
# Of many contexts, because on Python 3.10 a handler that raises just where one is taken costs it.
s = ort_rknn.InferenceSession(PATH, provider_options={"threads_per_core": 64})
s.run(None, feed)
npu.watched = False
npu.delays[0] = 0.001
npu.errors[0] = lambda: RuntimeError("Boom")
signal.signal(signal.SIGALRM, tick)
signal.setitimer(signal.ITIMER_REAL, 0.0007, 0.0007)
ticks = booms = 0
end = time.monotonic() + 2
while time.monotonic() < end:
    try:
        try:
            armed.append(1)
            s.run(None, feed)
        finally:
            armed.clear()
    except Exception as error:
        ticks += "tick" in str(error)
        booms += "Boom" in str(error)
signal.setitimer(signal.ITIMER_REAL, 0)
npu.errors.clear()
npu.delays.clear()
assert len(s.run(None, feed)) == 1
assert ticks > 20, (ticks, booms)
print("ok")
"""
    )
    assert out.strip() == "ok"


def test_ctrl_c_while_a_cpu_node_runs(python, start, models):
    """The handler then runs at the entry of our callback, before any ``try``."""
    out = python(
        start
        + """
from support.ep_models import *
from support import fake_npu
from onnx import numpy_helper
shape = (1, 32, 96, 96)
npu.inputs, npu.outputs = (fake_npu.image("in", shape),), (fake_npu.info("out", shape),)
npu.compute = lambda arrays: arrays
weights = numpy_helper.from_array(np.zeros((32, 32, 9, 9), np.float32), "w")
nodes = [helper.make_node("Conv", ["X", "w"], ["a"], pads=[4, 4, 4, 4])]
nodes += [context_node(["a"], ["Y"], open(PATH.replace(".onnx", ".rk3588.rknn"), "rb").read())]
content = model(nodes, [tensor("X", shape)], [tensor("Y", shape)], initializers=[weights])
s = ort_rknn.InferenceSession(content)
x = np.zeros(shape, np.float32)
s.run(None, {"X": x})
begin = time.monotonic()
s.run(None, {"X": x})
took = time.monotonic() - begin
for k in range(3):
    timer = threading.Timer(took * (k + 1) / 4, lambda: os.kill(os.getpid(), signal.SIGINT))
    try:
        timer.start()  # on a busy machine it fires before this has returned
        try:
            s.run(None, {"X": x})
        except Exception as error:
            assert "KeyboardInterrupt" in str(error)
        time.sleep(3)
        print("missed")
    except KeyboardInterrupt:
        pass
assert len(s.run(None, {"X": x})) == 1
print("ok")
""",
        args=("-W", "ignore::ResourceWarning"),
    )
    assert out.strip() == "ok"


def test_fork(python, start):
    """An inherited session is reopened at its first use in the child; the parent's is unaffected."""
    out = python(
        start
        + """
s = ort_rknn.InferenceSession(PATH)
s.run(None, feed)
child = os.fork()
if not child:
    s.run(None, feed)
    mine = npu.loads
    s.close()
    os._exit(0 if (mine, npu.ended) == (2, ["context", "model"]) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert len(s.run(None, feed)) == 1
print("ok")
""",
        args=("-W", "ignore::DeprecationWarning"),
    )
    assert out.strip() == "ok"


def test_fork_before_the_first_session(python, start):
    python(
        start
        + """
child = os.fork()
s = ort_rknn.InferenceSession(PATH)
assert len(s.run(None, feed)) == 1
if not child:
    os._exit(0)  # onnxruntime's own end of a forked process aborts, without us too (seen with 1.32)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    )


def test_a_child_that_forks_and_makes_its_own(python, start):
    python(
        start
        + """
s = ort_rknn.InferenceSession(PATH)
s.run(None, feed)
child = os.fork()
if not child:
    mine = ort_rknn.InferenceSession(PATH)
    ok = len(mine.run(None, feed)) == 1
    os._exit(0 if ok else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
""",
        args=("-W", "ignore::DeprecationWarning"),
    )


def test_no_growth(python, start):
    """Creating and closing sessions, and runs, leak nothing."""
    out = python(
        start
        + """
import resource
def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
def sessions(n):
    for _ in range(n):
        s = ort_rknn.InferenceSession(PATH)
        del s
sessions(30)
a = rss()
sessions(150)
b = rss()
npu.compute = lambda arrays: [np.zeros((1, 8, 16, 16), np.float32)]
s = ort_rknn.InferenceSession(PATH)
def runs(n):
    for _ in range(n):
        s.run(None, feed)
        npu.log.clear(); npu.forms.clear()
runs(500)
c = rss()
runs(5000)
print((b - a) // 1024, (rss() - c) // 1024)
"""
    )
    by_sessions, by_runs = map(int, out.split())
    assert by_sessions < 6000, "kB in 150 sessions"
    assert by_runs < 2000, "kB in 5000 runs"
