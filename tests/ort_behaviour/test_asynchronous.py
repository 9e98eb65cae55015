"""run_async, threads, processes."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
from support.targets import MODELS, TESTS, VIRTUAL, Target, version

import ort_rknn
from ort_rknn_virtual.control import virtual_npu


class Ended:
    """A callback that remembers, and can be waited for."""

    def __init__(self, count=1):
        self.calls = []
        self._left = threading.Semaphore(0)
        self._count = count

    def __call__(self, results, data, problem):
        self.calls.append((results, data, problem, threading.current_thread()))
        self._left.release()

    def wait(self):
        for _ in range(self._count):
            assert self._left.acquire(timeout=30)
        return self.calls


#: Native sessions of these tests. One that goes while a callback still returns waits for it with the GIL held, which
#: the callback needs: a deadlock of onnxruntime's own, seen with 1.23.1.
_kept = []


@pytest.fixture(scope="module", autouse=True)
def let_go_in_the_end():
    yield
    time.sleep(0.5)
    _kept.clear()


def threaded(target, **given):
    """A session with threads for run_async."""
    options = target.ort.SessionOptions()
    options.intra_op_num_threads = 3
    session = target.session(options=options, **given)
    _kept.append(session._sess)
    return session


def test_results_by_callback(target, feed, wanted):
    ended = Ended()
    data = object()
    session = threaded(target)
    assert session.run_async(["vector", "map"], feed, ended, data) is None
    ((results, got, problem, thread),) = ended.wait()
    assert got is data
    assert problem == ""
    assert thread is not threading.main_thread()
    assert target.same(results[0], wanted["vector"])
    assert target.same(results[1], wanted["map"])


def test_many_at_once(target, feed, wanted):
    session = threaded(target)
    ended = Ended(20)
    for k in range(20):
        session.run_async(["map"], feed, ended, k)
    calls = ended.wait()
    assert sorted(data for _, data, _, _ in calls) == list(range(20))
    assert all(target.same(results[0], wanted["map"]) for results, *_ in calls)


@pytest.mark.parametrize(
    ("outputs", "change", "text"),
    [
        (["nothing"], {}, "Invalid output name"),
        (None, {"a": np.zeros((1, 3, 16, 16))}, "Unexpected input data type"),
        (None, {"a": np.zeros((3, 16, 16), np.float32)}, "Invalid rank"),
        (None, {"z": np.zeros(1, np.float32)}, "Invalid input name"),
    ],
)
def test_errors_by_callback(target, feed, outputs, change, text):
    ended = Ended()
    session = threaded(target)
    session.run_async(outputs, {**feed, **change}, ended, "mine")
    ((results, data, problem, _),) = ended.wait()
    assert (results, data) == ([], "mine")
    assert problem.startswith(text)
    assert "[ONNXRuntimeError]" not in problem


def test_missing_inputs_raise_at_once(target, feed):
    ended = Ended(0)
    with pytest.raises(ValueError, match="Required inputs"):
        session = threaded(target)
        session.run_async(None, {"a": feed["a"]}, ended, None)
    assert ended.calls == []


def test_user_data_is_wanted(target, feed):
    with pytest.raises(TypeError, match="user_data"):
        session = threaded(target)
        session.run_async(None, feed, print)


def test_one_thread_is_not_enough(target, feed):
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

    options = target.ort.SessionOptions()
    options.intra_op_num_threads = 1
    with pytest.raises(InvalidArgument, match="at least one thread for RunAsync"):
        target.session(options=options).run_async(None, feed, print, None)


def test_terminate_by_callback(target, feed):
    options = target.ort.RunOptions()
    options.terminate = True
    ended = Ended()
    session = threaded(target)
    session.run_async(None, feed, ended, None, options)
    ((results, _, problem, _),) = ended.wait()
    assert results == []
    assert "terminate" in problem


@pytest.mark.skipif(
    version() < (1, 32), reason="seen with 1.23.1 to 1.28: onnxruntime loses the exception and a thread"
)
def test_an_exception_in_the_callback_is_reported_and_the_session_goes_on(target, feed, wanted, monkeypatch):
    told, seen = [], threading.Event()

    def hook(unraisable):
        told.append(unraisable.exc_type)
        seen.set()

    monkeypatch.setattr(sys, "unraisablehook", hook)

    def callback(results, data, problem):
        raise LookupError

    session = threaded(target)
    session.run_async(None, feed, callback, None)
    assert seen.wait(30)
    assert told == [LookupError]
    assert target.same(session.run(["map"], feed)[0], wanted["map"])


def test_an_error_on_the_npu_by_callback(feed):
    npu = virtual_npu("rk3588")
    npu.reset()
    target = Target("ours, NPU", ort_rknn, npu=True)
    session = threaded(target, provider_options={**VIRTUAL, "schedule": [1]})
    with session:
        npu.fault("rknn_run", -2, times=1)
        ended = Ended()
        session.run_async(None, feed, ended, None)
        ((results, _, problem, _),) = ended.wait()
        assert results == []
        assert "RKNN_ERR_TIMEOUT" in problem and "core 1" in problem
        assert len(session.run(None, feed)) == 2
    npu.reset()


def test_one_session_from_many_threads(target, feed, wanted):
    session = target.session()
    feeds = [{"a": feed["a"] * k, "b": feed["b"]} for k in range(8)]
    plain = onnxruntime.InferenceSession(MODELS / "two_io.onnx", providers=["CPUExecutionProvider"])
    expected = [plain.run(["map"], one)[0] for one in feeds]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            got = list(pool.map(lambda one: session.run(["map"], one)[0], feeds))
            for mine, theirs in zip(got, expected, strict=True):
                assert np.abs(mine - theirs).max() < 0.02


def test_sessions_made_in_threads(target, feed, wanted):
    def work(_):
        return target.session().run(["map"], feed)[0]

    with ThreadPoolExecutor(4) as pool:
        assert all(target.same(got, wanted["map"]) for got in pool.map(work, range(4)))


def test_the_gil_is_free_while_it_runs(target, feed):
    """A Python thread makes progress during runs."""
    session = target.session()
    stop, count = threading.Event(), [0]

    def tick():
        while not stop.is_set():
            count[0] += 1

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        for _ in range(50):
            session.run(None, feed)
    finally:
        stop.set()
        thread.join()
    assert count[0] > 0


PROCESS = """
import sys, os, numpy as np
import onnxruntime, ort_rknn
options = {"providers": ["CPUExecutionProvider"]}
if sys.argv[2] == "npu":
    options = {"provider_options": {"device": "virtual:rk3588"}}
module = onnxruntime if sys.argv[3] == "theirs" else ort_rknn
def make():
    return module.InferenceSession(os.path.join(sys.argv[1], "models", "two_io.onnx"), **options)
feed = {"a": np.ones((1, 3, 16, 16), np.float32), "b": np.ones((1, 16), np.float32)}
"""
WHERE = {"onnxruntime": ("cpu", "theirs"), "ours, CPU": ("cpu", "ours"), "ours, NPU": ("npu", "ours")}


@pytest.fixture(params=WHERE)
def process(request, python):
    """Runs code after PROCESS in its own process; see the fixture python."""

    def run(code, **given):
        where, whose = WHERE[request.param]
        start = f"import sys\nsys.argv = ['', {str(TESTS)!r}, {where!r}, {whose!r}]\n"
        return python(start + PROCESS + code, **given)

    return run


def test_exit_with_a_live_session(process):
    assert process("s = make()\ns.run(None, feed)\nprint('fine')") == "fine\n"


def test_exit_by_an_exception(process):
    out = process("s = make()\ns.run(None, feed)\nprint('last')\nraise SystemExit(4)", expect=4)
    assert out == "last\n"


def test_a_forked_child_makes_its_own_session(process):
    code = """
pid = os.fork()
if not pid:
    os._exit(0 if len(make().run(None, feed)) == 2 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert process(code) == "0\n"


def test_a_child_of_spawn(process, tmp_path):
    """The start method that onnxruntime supports: nothing of the parent's session is in the child."""
    (tmp_path / "work.py").write_text(
        "import numpy as np, onnxruntime, ort_rknn\n"
        "def work(path, ours, options, feed):\n"
        "    module = ort_rknn if ours else onnxruntime\n"
        "    return module.InferenceSession(path, **options).run(None, feed)[0]\n"
    )
    code = f"""
import multiprocessing
sys.path.insert(0, {str(tmp_path)!r})
from work import work
path = os.path.join(sys.argv[1], "models", "two_io.onnx")
here = make().run(None, feed)[0]
with multiprocessing.get_context("spawn").Pool(1) as pool:
    there = pool.apply(work, (path, sys.argv[3] == "ours", options, feed))
print(np.array_equal(here, there))
"""
    assert process(code) == "True\n"
