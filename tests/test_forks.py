"""Sessions and forks: a child can use what it inherited, and destroys nothing of the parent's."""

import os
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

START = """
import gc, multiprocessing, os, queue, shutil, signal, sys, tempfile, threading, time, warnings
import numpy as np
import numpy.testing  # now: a child could inherit its import by a thread, half done
import ort_rknn
from ort_rknn_virtual.control import virtual_npu
warnings.simplefilter("ignore")
models = {models!r}
npu = virtual_npu("rk3588")
X = {{"x": np.linspace(-1, 1, 3 * 32 * 32, dtype=np.float32).reshape(1, 3, 32, 32)}}

def make(name="conv_f16.onnx", **options):
    options = {{"device": "virtual:rk3588", "schedule": "0,1,2", **options}}
    return ort_rknn.InferenceSession(f"{{models}}/{{name}}", provider_options=options)

def child(function, *args):
    '''Its exit code: 0 where the function returns, of a process that ends as one does.'''
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        signal.alarm(25)
        function(*args)
        assert npu.counters().misuses == 0, npu.counters()
        sys.exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def same(session, inherited=True):
    np.testing.assert_array_equal(session.run(None, X)[0], want)

def untouched(contexts):
    counters = npu.counters()
    assert (counters.contexts, counters.misuses) == (contexts, 0), counters
"""


@pytest.fixture
def forked(python, models):
    """Runs code that forks; every child must end with 0."""

    def run(code, **more):
        out = python(START.format(models=str(models)) + code + "\nprint('ok')", quiet=False, timeout=90, **more)
        assert out.strip().splitlines()[-1:] == ["ok"], out

    return run


IN_THE_CHILD = {
    "runs": "same(s)",
    "runs in threads": """
ts = [threading.Thread(target=same, args=(s,)) for _ in range(8)]
[t.start() for t in ts]; [t.join() for t in ts]
""",
    "maps": "assert all(np.array_equal(r[0], want) for r in s.map([X] * 9))",
    "submits": "assert np.array_equal(s.submit(None, X).result(20)[0], want)",
    "runs asynchronously": """
got = queue.SimpleQueue()
for _ in range(9):
    s.run_async(None, X, lambda *told: got.put(told), "mine")
for _ in range(9):
    results, mine, problem = got.get(timeout=20)
    assert (mine, problem) == ("mine", "") and np.array_equal(results[0], want)
s.run_async(None, {"x": X["x"][0]}, lambda *told: got.put(told), "mine")
results, mine, problem = got.get(timeout=20)
assert (results, mine) == ([], "mine") and problem.startswith("Invalid rank"), problem
for feed, error in (({}, ValueError), ([X], AttributeError)):
    try:
        s.run_async(None, feed, print, None)
    except error:
        pass
    else:
        raise AssertionError
""",
    "runs asynchronously when planned again": """
s.set_providers(['RKNNExecutionProvider'], [{'device': 'virtual:rk3588'}])
got = queue.SimpleQueue()
s.run_async(None, X, lambda *told: got.put(told), 1)
assert np.array_equal(got.get(timeout=20)[0][0], want)
""",
    "binds": """
binding = s.io_binding()
binding.bind_cpu_input("x", X["x"]); binding.bind_output(s.get_outputs()[0].name)
s.run_with_iobinding(binding)
assert np.array_equal(binding.copy_outputs_to_cpu()[0], want)
""",
    "binds what was bound before": """
s.run_with_iobinding(bound)
assert np.array_equal(bound.copy_outputs_to_cpu()[0], want)
""",
    "runs and closes": "same(s); assert npu.counters().contexts == 3; s.close(); assert npu.counters().contexts == 0",
    "drops it": "global s; del s; gc.collect()",
    "replaces it": "global s; s = make(); same(s)",
    "closes it": """
s.close()
try:
    s.run(None, X)
except Exception as error:
    assert "the session was closed" in str(error)
else:
    raise AssertionError
assert npu.counters().contexts == 0
""",
    "plans it again": "s.set_providers(['CPUExecutionProvider']); s.run(None, X)",
    "plans it again on the NPU": "s.set_providers(['RKNNExecutionProvider'], [{'device': 'virtual:rk3588'}]); same(s)",
    "lends its weights": """
other = ort_rknn.InferenceSession(
    f"{models}/conv_f16.onnx", provider_options={"device": "virtual:rk3588"}, use_weight_from=s)
same(other)
""",
    "forks again": "assert child(same, s) == 0; same(s); assert child(same, s) == 0",
    "explains": "assert 'NPU' in s.explain(); same(s); assert 'NPU' in s.explain()",
    "does nothing": "",
}


@pytest.mark.parametrize("what", IN_THE_CHILD)
def test_a_child_and_its_parents_session(forked, what):
    body = "\n    ".join(IN_THE_CHILD[what].strip().splitlines()) or "pass"
    forked(
        f"""
s = make()
want = s.run(None, X)[0]
bound = s.io_binding()
bound.bind_cpu_input("x", X["x"]); bound.bind_output(s.get_outputs()[0].name)
def work():
    {body}
for _ in range(2):
    assert child(work) == 0
    untouched(3)
    same(s)
"""
    )


SESSIONS = {
    "of bytes": """
onnx = open(f"{models}/conv_f16.onnx", "rb").read()
s = ort_rknn.InferenceSession(onnx, provider_options={
    "device": "virtual:rk3588", "rknn_model": f"{models}/conv_f16.rk3588.rknn"})
""",
    "of a compiled file that is gone": """
folder = tempfile.mkdtemp()
for name in ("conv_f16.onnx", "conv_f16.rk3588.rknn"):
    shutil.copy(f"{models}/{name}", folder)
s = ort_rknn.InferenceSession(f"{folder}/conv_f16.onnx", provider_options={"device": "virtual:rk3588"})
os.unlink(f"{folder}/conv_f16.rk3588.rknn")
""",
    "of a compiled model in memory": """
s = ort_rknn.InferenceSession(open(f"{models}/conv_f16.rk3588.rknn", "rb").read(), provider_options={
    "device": "virtual:rk3588", "onnx_model": f"{models}/conv_f16.onnx"})
""",
    "paced": "s = make(enable_pacing=True)",
    "with a context on the first idle core": "s = make(schedule='auto', threads_per_core=2)",
    "without a dup": "s = make(disable_dup_context=True)",
    "that never ran": "s = make()",
}


@pytest.mark.parametrize("what", SESSIONS)
def test_sessions_of_all_kinds(forked, what):
    forked(
        SESSIONS[what]
        + """
first = s.get_inputs()[0].name
X = {first: next(iter(X.values()))}
want = s.run(None, X)[0] if WARM else make().run(None, {"x": X[first]})[0]
contexts = npu.counters().contexts
assert child(same, s) == 0
untouched(contexts)
same(s)
""".replace("WARM", str("never" not in what))
    )


def test_missing_shapes_on_the_cpu(forked):
    forked("""
s = make("dynamic.onnx", on_missing_shape="cpu")
name = s.get_inputs()[0].name
odd = {name: np.ones((1, 3, 40, 40), np.float32)}
even = {name: np.ones(s.shape_sets[0][0], np.float32)}
wants = [s.run(None, feed)[0] for feed in (odd, even)]
def work():
    for feed, want in zip((odd, even), wants):
        np.testing.assert_array_equal(s.run(None, feed)[0], want)
assert child(work) == 0
""")


def test_batches_over_the_cores(forked):
    forked("""
s = make("free_batch.onnx")
feed = {"x": np.random.default_rng(0).standard_normal((6, 3, 16, 16)).astype(np.float32)}
want = s.run(None, feed)[0]
assert child(lambda: np.testing.assert_array_equal(s.run(None, feed)[0], want)) == 0
""")


def test_refused(forked):
    forked("""
s = make(after_fork="refuse")
want = s.run(None, X)[0]
def work():
    try:
        s.run(None, X)
    except Exception as error:
        assert "forked" in str(error) and "after_fork" in str(error), error
    else:
        raise AssertionError
    assert npu.counters().contexts == 0
assert child(work) == 0
same(s)
""")


def test_a_model_that_changed(forked):
    """Loading it in the child raises an error that says so; the parent continues."""
    forked("""
folder = tempfile.mkdtemp()
for name in ("conv_f16.onnx", "conv_f16.rk3588.rknn"):
    shutil.copy(f"{models}/{name}", folder)
s = ort_rknn.InferenceSession(f"{folder}/conv_f16.onnx", provider_options={"device": "virtual:rk3588"})
want = s.run(None, X)[0]
with open(f"{folder}/conv_f16.rk3588.rknn", "r+b") as file:
    file.write(b"x")
def work():
    for _ in range(2):
        try:
            s.run(None, X)
        except Exception as error:
            assert "cannot be opened in the forked process" in str(error), error
        else:
            raise AssertionError
assert child(work) == 0
untouched(1)
same(s)
""")


def test_threads_that_run_meanwhile(forked):
    """The parent runs the executor directly: a lock of onnxruntime that is held at the fork stays locked in the child,
    with plain onnxruntime too."""
    forked("""
npu.run_time_us = 300
parent = os.getpid()
class Session(ort_rknn.InferenceSession):
    def run(self, names, feed, options=None):
        if os.getpid() == parent and threading.current_thread() is not threading.main_thread():
            return self._npu.executor.run([feed["x"]])
        return super().run(names, feed, options)
s = Session(f"{models}/conv_f16.onnx", provider_options={
    "device": "virtual:rk3588", "schedule": "0,1,2", "max_queue_size": 20})
want = s.run(None, X)[0]
over = False
def work():
    while not over:
        same(s)
        list(s.map([X] * 4))
ts = [threading.Thread(target=work) for _ in range(5)]
[t.start() for t in ts]
def mine():
    for _ in range(3):
        same(s)
    assert all(np.array_equal(r[0], want) for r in s.map([X] * 6))
codes = [child(mine) for _ in range(8)]
over = True
[t.join() for t in ts]
assert codes == [0] * 8, codes
untouched(3)
""")


IMPORTED_BY = {
    "ort_rknn._concurrency.stream": "list(s.map([X]))",
    "ort_rknn._concurrency.submitter": "s.submit(None, X).result(20)",
    "ort_rknn._executor.numbered": "s.submit(None, X).result(20)",
    "ort_rknn._session.explain": "s.explain()",
}


@pytest.mark.parametrize("module", IMPORTED_BY)
def test_a_module_that_another_thread_imports_at_the_fork(forked, module):
    """Its lock is that thread's, which is not in the child."""
    forked(
        f"""
import importlib.abc, importlib.machinery
s = make("free_batch.onnx")
X = {{"x": np.ones((1, 3, 16, 16), np.float32)}}
assert {module!r} not in sys.modules
begun = threading.Event()
class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            begun.set()
            time.sleep(0.5)
sys.meta_path.insert(0, Slow())
def use():
    {IMPORTED_BY[module]}
other = threading.Thread(target=use)
other.start()
assert begun.wait(20)
assert child(use) == 0
other.join()
"""
    )


def test_a_child_imports_nothing_for_what_it_inherited(forked):
    forked("""
s = make("free_batch.onnx")
X = {"x": np.ones((1, 3, 16, 16), np.float32)}
import asyncio
def work():
    before = set(sys.modules)
    s.run(None, X)
    s.run(None, {"x": np.ones((6, 3, 16, 16), np.float32)})
    s.submit(None, X).result(20)
    list(s.map([X] * 4))
    s.run_pipeline(X)
    s.flush()
    asyncio.run(s.run_awaitable(None, X))
    s.explain()
    s.close()
    new = {name for name in set(sys.modules) - before if not name.startswith("asyncio")}
    assert not new, new
assert child(work) == 0
""")


@pytest.mark.parametrize("code", [0, 3])
def test_the_childs_exit_code_and_output(forked, code):
    forked(f"""
s = make()
read, write = os.pipe()
pid = os.fork()
if not pid:
    os.dup2(write, 1)
    print("said by Python")
    import atexit, ctypes
    atexit.register(print, "at exit")
    ctypes.CDLL(None).puts(b"said by C")
    sys.exit({code})
os.close(write)
said = os.fdopen(read).read().splitlines()
assert sorted(said) == ["at exit", "said by C", "said by Python"], said
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == {code}
""")


def test_multiprocessing(forked):
    forked("""
s = make()
want = s.run(None, X)[0]
def work(scale):
    return s.run(None, {"x": X["x"] * scale})[0]
with multiprocessing.get_context("fork").Pool(3) as pool:
    for k, got in enumerate(pool.map(work, range(12))):
        np.testing.assert_array_equal(got, work(k))
untouched(3)
""")


def test_run_async_of_a_session_on_the_cpu(forked):
    forked("""
so = ort_rknn.SessionOptions()
so.intra_op_num_threads = 2
s = ort_rknn.InferenceSession(f"{models}/conv_f16.onnx", so, providers=["CPUExecutionProvider"])
told = []
def work():
    done = threading.Event()
    s.run_async(None, X, lambda *given: (told.append(given), done.set()), "mine")
    assert done.wait(20)
    s.close()
assert child(work) == 0
work()
(results, data, error), = told
assert (data, error) == ("mine", "") and results
""")


def test_a_session_on_the_cpu_is_released(forked):
    """Closing onnxruntime's session would wait for its threads forever."""
    forked("""
s = ort_rknn.InferenceSession(f"{models}/conv_f16.onnx", providers=["CPUExecutionProvider"])
want = s.run(None, X)[0]
def drop():
    global s
    same(s)
    s = ort_rknn.InferenceSession(f"{models}/conv_f16.onnx", providers=["CPUExecutionProvider"])
    same(s)
assert child(drop) == 0
same(s)
""")


def test_faces_after_a_fork(forked):
    forked("""
os.environ["ORT_RKNN_DEVICE"] = "virtual:rk3588"
import ort_rknn_ez_async, ort_rknn_rknnlite.api
path = f"{models}/conv_f16.rk3588.rknn"
ez = ort_rknn_ez_async.InferenceSession(path)
lite = ort_rknn_rknnlite.api.RKNNLite()
assert lite.load_rknn(path) == 0 and lite.init_runtime() == 0
nhwc = np.ascontiguousarray(X["x"].transpose(0, 2, 3, 1))
want = lite.inference([nhwc])[0]
contexts = npu.counters().contexts
def run():
    np.testing.assert_array_equal(lite.inference([nhwc])[0], want)
    lite.release()
def drop():
    global ez, lite
    del ez, lite
    gc.collect()
for work in (run, drop):
    assert child(work) == 0
    untouched(contexts)
np.testing.assert_array_equal(lite.inference([nhwc])[0], want)
""")


EZ_IN_THE_CHILD = {
    "runs": "assert np.array_equal(ez.run(None, X)[0], want)",
    "runs asynchronously": """
got = queue.SimpleQueue()
for _ in range(9):
    ez.run_async(None, X, lambda *told: got.put(told), "mine")
for _ in range(9):
    results, mine, problem = got.get(timeout=20)
    assert (mine, problem) == ("mine", "") and np.array_equal(results[0], want)
""",
    "has a pipeline of its own": """
try:
    ez.flush()
except RuntimeError as error:
    assert "the parent's" in str(error)
else:
    raise AssertionError
assert ez.run_pipeline(X, 1) is None
assert np.array_equal(ez.run_pipeline(X, 1)[0], want)
assert len(ez.flush()) == 1
""",
    "closes": """
ez.close()
try:
    ez.run(None, X)
except RuntimeError as error:
    assert "closed" in str(error)
else:
    raise AssertionError
""",
    "runs and closes": "ez.run(None, X); ez.close(); assert npu.counters().contexts == 0",
    "forks again": """
def again():
    assert np.array_equal(ez.run(None, X)[0], want)
again()
assert child(again) == 0
again()
""",
}


@pytest.mark.parametrize("what", EZ_IN_THE_CHILD)
@pytest.mark.parametrize("where", ["npu", "cpu"])
def test_the_ez_face_in_a_child(forked, where, what):
    body = "\n    ".join(EZ_IN_THE_CHILD[what].strip().splitlines())
    forked(
        f"""
import ort_rknn_ez_async
if {where == "npu"}:
    os.environ["ORT_RKNN_DEVICE"] = "virtual:rk3588"
    path = f"{{models}}/conv_f16.rk3588.rknn"
    ez = ort_rknn_ez_async.InferenceSession(path, provider_options={{"schedule": [0, 1, 2]}})
else:
    one = ort_rknn.SessionOptions()
    one.intra_op_num_threads = 1
    ez = ort_rknn_ez_async.InferenceSession(f"{{models}}/conv_f16.onnx", one, ["CPUExecutionProvider"])
X = X["x"]
want = ez.run(None, X)[0]
ez.run_pipeline(X, 2)
contexts = npu.counters().contexts
def work():
    {body}
assert child(work) == 0
untouched(contexts)
assert len(ez.flush()) == 1
assert np.array_equal(ez.run(None, X)[0], want)
"""
    )


def test_handles_know_their_process(forked):
    """Code that uses an adapter without an executor is safe too."""
    forked("""
from ort_rknn._planning.discovery import query_for, survey
from ort_rknn._options import read_options
from ort_rknn.adapter import LoadSettings, ModelSource
found = survey(query_for(read_options({"device": "virtual:rk3588"}))).found[0]
model = found.adapter.load(found.device, ModelSource(path=f"{models}/conv_f16.rk3588.rknn"), LoadSettings())
contexts = [model.context(0), model.context(1)]
def work():
    contexts[1].close()
    model.close()
    assert npu.counters().misuses == 0
    os._exit(0)  # onnxruntime alone would not end
assert child(work) == 0
untouched(2)
""")


def test_a_subinterpreter_is_refused_with_a_message(python):
    """Callbacks from C would reach the main interpreter, and wait forever."""
    code = """
try:
    import ort_rknn
except ImportError as error:
    print("subinterpreter" in str(error))
"""
    module = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    how = "'legacy'" if sys.version_info >= (3, 13) else "isolated=False"
    out = python(
        f"import {module} as i, os; i.run_string(i.create({how}), {code!r}); os._exit(0)",
        args=("-u", "-W", "ignore"),
        quiet=False,
        timeout=30,
    )
    assert out.strip() == "True"
