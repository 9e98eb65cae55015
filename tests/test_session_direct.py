"""Calls that go past onnxruntime: the same results; everything else is left to onnxruntime."""

import json
import sys
import warnings
from ctypes import c_bool
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from ort_rknn.capi.onnxruntime_pybind11_state import InvalidArgument, RuntimeException
from support.virtual_sessions import reset_rk3588

import ort_rknn as ort
from ort_rknn._executor import run_settings
from ort_rknn._session import direct

MODELS = Path(__file__).parent / "models"
NPU = {"device": "virtual:rk3588", "schedule": "0,1,2"}
X = {"x": np.arange(3 * 32 * 32, dtype=np.float32).reshape(1, 3, 32, 32) / 512}

#: onnxruntime's own way, to compare with.
by_onnxruntime = onnxruntime.InferenceSession.run

npu = pytest.fixture(reset_rk3588)


@pytest.fixture
def through_onnxruntime(npu, monkeypatch):
    """Our sessions' calls of onnxruntime's own ``run``, in order: the names of the outputs asked for."""
    calls = []
    run = direct._run

    def counted(session, names, feed, options=None):
        calls.append(names)
        return run(session, names, feed, options)

    monkeypatch.setattr(direct, "_run", counted)
    return calls


def make(name="conv_f16.onnx", kind=ort.InferenceSession, so=None, **options):
    return kind(MODELS / name, so, provider_options={**NPU, **options})


def of(session, feed, names=None, **more):
    """The results of one call, once by each way to call."""
    first = session.run(names, feed)
    future = session.submit(names, feed, **more).result(20)
    (second,) = session.map([feed], output_names=names, **more)
    assert session.run_pipeline(feed, 1, output_names=names, **more) is None
    (third,) = session.flush()
    for other in (future, second, third):
        assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(first, other, strict=True))
    return first


def same(results, expected):
    for a, b in zip(results, expected, strict=True):
        assert type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)


MODEL_NAMES = sorted(path.name for path in MODELS.glob("*.onnx") if path.with_suffix(".rk3588.rknn").exists())


def random_feed(session, seed=0, free=2):
    rng = np.random.default_rng(seed)
    feed = {}
    for value in session.get_inputs():
        shape = [dim if isinstance(dim, int) else free for dim in value.shape]
        dtype = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int64)": np.int64,
                 "tensor(bool)": np.bool_, "tensor(float16)": np.float16, "tensor(int8)": np.int8,
                 "tensor(int32)": np.int32}[value.type]  # fmt: skip
        feed[value.name] = rng.integers(0, 2, shape).astype(dtype)
    return feed


@pytest.mark.parametrize("name", MODEL_NAMES)
@pytest.mark.parametrize("options", [{}, {"output_dtype": "native"}, {"on_missing_shape": "cpu"}], ids=str)
def test_every_model_gives_what_run_gives(through_onnxruntime, name, options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        session = make(name, **options)
    with session:
        for seed in range(2):
            feed = random_feed(session, seed)
            try:
                expected = by_onnxruntime(session, None, feed)
            except InvalidArgument as error:  # this shape was not compiled
                for call in (session.run, lambda *given: session.submit(*given).result(20)):
                    with pytest.raises(InvalidArgument) as found:
                        call(None, feed)
                    assert str(found.value) == str(error)
                continue
            same(of(session, feed), expected)
            names = [output.name for output in session.get_outputs()][::-1]
            same(of(session, feed, names), expected[::-1])
            same(of(session, feed, names[:1]), expected[-1:])


def test_only_the_first_call_of_a_kind_runs_in_onnxruntime(through_onnxruntime):
    with make() as session:
        expected = by_onnxruntime(session, None, X)
        for _ in range(3):
            same(of(session, X), expected)
        assert through_onnxruntime == [None]
        same(of(session, X, ["y"]), expected)
        assert through_onnxruntime == [None, ["y"]]


def test_the_stats_count_such_runs(npu):
    with make() as session:
        for _ in session.map([X] * 12):
            pass
        (model,) = session.stats().models
        assert [core.runs for core in model.cores.values()] == [4, 4, 4]
    assert [event.core_mask for event in npu.events() if event.kind == "run"].count(1) == 4


REJECTED = {
    "dtype": {"x": X["x"].astype(np.float64)},
    "rank": {"x": X["x"][0]},
    "shape": {"x": np.zeros((1, 3, 16, 32), np.float32)},
    "name": {"z": X["x"]},
    "nothing": {},
    "one more": {**X, "z": X["x"]},
    "None": {"x": None},
    "text": {"x": "picture.jpg"},
}


@pytest.mark.parametrize("feed", REJECTED.values(), ids=REJECTED)
def test_what_onnxruntime_rejects_stays_rejected(npu, feed):
    with make() as session:
        of(session, X)
        with pytest.raises(Exception) as expected:
            by_onnxruntime(session, None, feed)
        for call in (session.run, lambda *given: session.submit(*given).result(20)) * 2:
            with pytest.raises(type(expected.value)) as found:
                call(None, feed)
            assert str(found.value) == str(expected.value)
        same(of(session, X), by_onnxruntime(session, None, X))


@pytest.mark.parametrize("names", [["nope"], "y", [b"y"], [["y"]], ["y", "nope"], iter("y")], ids=repr)
def test_odd_output_names(npu, names):
    with make() as session:
        of(session, X)
        try:
            expected = by_onnxruntime(session, names, X)
        except Exception as error:
            for call in (session.run, lambda *given: session.submit(*given).result(20)) * 2:
                with pytest.raises(type(error)):
                    call(names, X)
        else:
            same(session.submit(names, X).result(20), expected)


@pytest.mark.parametrize("names", [[], (), None, ("y",)], ids=repr)
def test_output_names_that_mean_all(npu, names):
    with make() as session:
        for _ in range(2):
            same(session.run(names, X), by_onnxruntime(session, None, X))
            same(session.submit(names, X).result(20), by_onnxruntime(session, None, X))


def test_an_output_asked_for_twice_is_left_to_onnxruntime(through_onnxruntime):
    with make() as session:
        expected = by_onnxruntime(session, ["y", "y"], X)
        for _ in range(3):
            same(session.run(["y", "y"], X), expected)
            same(session.submit(["y", "y"], X).result(20), expected)
        assert through_onnxruntime == [["y", "y"]] * 6


def test_results_are_fresh(npu):
    with make() as session:
        results = [session.submit(None, X).result(20)[0] for _ in range(4)]
        results += [session.run(None, X)[0] for _ in range(4)]
        assert not any(np.may_share_memory(a, b) for k, a in enumerate(results) for b in results[:k])
        assert all(result.flags.owndata and result.flags.writeable for result in results[1:])


FORMS = {
    "Fortran order": lambda x: np.asfortranarray(x),
    "a slice": lambda x: np.concatenate([x, x], axis=3)[..., ::2],
    "reversed": lambda x: x[..., ::-1],
    "not aligned": lambda x: np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape),
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "big-endian": lambda x: x.astype(">f4"),
    "a list": lambda x: x.tolist(),
    "an OrtValue": onnxruntime.OrtValue.ortvalue_from_numpy,
    "a subclass": lambda x: x.view(type("Picture", (np.ndarray,), {})),
}  # fmt: skip


@pytest.mark.parametrize("copy", [True, False], ids=["copied", "as it is"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_arrays_of_every_form(npu, form, copy):
    feed = {"x": form(X["x"])}
    with make() as session:
        of(session, X)
        if form is FORMS["big-endian"]:  # onnxruntime misreads its bytes
            expected = by_onnxruntime(session, None, X)
        else:
            expected = by_onnxruntime(session, None, feed)
        same(of(session, feed, copy=copy), expected)


def test_a_subclass_and_a_replaced_run_are_called(npu):
    class Twice(ort.InferenceSession):
        def run(self, output_names, input_feed, run_options=None):
            return [2 * result for result in super().run(output_names, input_feed, run_options)]

    with make() as plain:
        (expected,) = plain.run(None, X)
        with make(kind=Twice) as session:
            for _ in range(3):
                assert np.array_equal(of(session, X)[0], 2 * expected)
        of(plain, X)
        plain.run = lambda *_: ["mine"]
        assert plain.submit(None, X).result(20) == ["mine"]


def test_a_run_of_the_instance_stays(npu):
    class Traced(ort.InferenceSession):
        def __init__(self, *given, **options):
            self.run = lambda *_: ["mine"]
            super().__init__(*given, **options)

    with make(kind=Traced) as session:
        for providers in (None, ["CPUExecutionProvider"], None):
            assert session.run(None, X) == session.submit(None, X).result(20) == ["mine"]
            session.set_providers(providers, NPU if providers is None else None)
        assert session.run(None, X) == ["mine"]


def test_run_options_reach_onnxruntime(through_onnxruntime):
    with make() as session:
        of(session, X)
        del through_onnxruntime[:]
        options = ort.RunOptions()
        options.terminate = True
        for call in (session.run, lambda *given: session.submit(*given).result(20)):
            with pytest.raises(Exception, match="terminate"):
                call(None, X, options)
        assert through_onnxruntime == [None] * 2


def test_options_that_an_interrupted_call_left_behind_do_not_apply(npu):
    """A signal handler that raised at the start of a call with RunOptions; these are gone by now."""
    with make() as session:
        expected = of(session, X)
        run_settings.begin(run_settings.RunSettings(c_bool(True), leaves=True, timeout_ms=1))
        try:
            for _ in range(2):
                same(session.run(None, X), expected)
            assert run_settings.current() is None
        finally:
            run_settings.end()


def test_a_profile_has_every_run(npu, tmp_path):
    so = ort.SessionOptions()
    so.enable_profiling, so.profile_file_prefix = True, str(tmp_path / "profile")
    with make(so=so) as session:
        for _ in session.map([X] * 9):
            session.run(None, X)
        events = json.loads(Path(session.end_profiling()).read_text())
    assert sum(event["name"] == "model_run" for event in events) == 18


def test_free_batches_and_shape_sets(through_onnxruntime):
    with make("free_batch.onnx", split_batch=True) as session:
        for n in (1, 5, 0, 2, 5):
            feed = {"x": np.random.default_rng(n).random((n, 3, 16, 16), np.float32)}
            same(of(session, feed), by_onnxruntime(session, None, feed))
    with make("dynamic.onnx") as session:
        for group in (*session.shape_sets, *session.shape_sets):
            feed = {i.name: np.ones(shape, np.float32) for i, shape in zip(session.get_inputs(), group)}
            same(of(session, feed), by_onnxruntime(session, None, feed))


def test_a_shape_that_the_cpu_serves(npu):
    with make("dynamic.onnx", on_missing_shape="cpu") as session:
        (shape, *_), *_ = session.shape_sets
        feed = {session.get_inputs()[0].name: np.ones([dim + 8 if k > 1 else dim for k, dim in enumerate(shape)], "f4")}
        for _ in range(2):
            same(of(session, feed), by_onnxruntime(session, None, feed))


def test_a_failed_run_names_model_core_and_code(npu):
    with make(retries=0) as session:
        of(session, X)
        npu.fault("rknn_run", code=-1, times=1)
        with pytest.raises(RuntimeException, match=r"conv_f16.*core \d.*RKNN error code -1"):
            [session.submit(None, X).result(20) for _ in range(3)]
        npu.fault("rknn_run", code=-1, times=1)
        with pytest.raises(RuntimeException, match=r"conv_f16.*core \d.*RKNN error code -1"):
            [session.run(None, X) for _ in range(3)]
        npu.reset()
        same(of(session, X), by_onnxruntime(session, None, X))


def test_after_set_providers_and_close(npu):
    session = make()
    expected = of(session, X)
    session.set_providers(["CPUExecutionProvider"])
    assert np.allclose(of(session, X)[0], expected[0], atol=1e-2)
    session.set_providers(None, NPU)
    same(of(session, X), by_onnxruntime(session, None, X))
    session.close()
    for call in (session.run, lambda *given: session.submit(*given).result(20)):
        with pytest.raises(RuntimeException, match="the session was closed"):
            call(None, X)


def test_providers_that_change_during_a_call(npu, monkeypatch):
    """The call ends on the CPU, which takes a shape that was not compiled."""
    session, run = make("dynamic.onnx"), direct._run

    def changed(*given):
        monkeypatch.setattr(direct, "_run", run)
        session.set_providers(["CPUExecutionProvider"])
        return run(*given)

    monkeypatch.setattr(direct, "_run", changed)
    with session:
        feed = {"x": np.ones((1, 3, 20, 20), np.float32)}
        same(session.run(None, feed), by_onnxruntime(session, None, feed))


def test_a_session_is_freed_with_its_last_reference(npu):
    session = make()
    of(session, X)
    executor = session._npu.executor
    del session
    assert executor.closed


def test_near_the_end_of_the_stack_a_run_ends_with_a_recursion_error(npu):
    def deeper(session):
        try:
            deeper(session)
        except RecursionError:
            pass
        session.run(None, X)  # raises where there is no room, further up it runs

    with make(schedule="0") as session:
        of(session, X)
        with pytest.raises(RecursionError):
            deeper_still = [lambda: session.run(None, X)]
            for _ in range(sys.getrecursionlimit()):
                deeper_still.append(lambda call=deeper_still[-1]: call())
            deeper_still[-1]()
        deeper(session)
        same(of(session, X), by_onnxruntime(session, None, X))
