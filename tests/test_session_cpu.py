"""Where no NPU is, our session behaves as onnxruntime's own. Plain onnxruntime is the control throughout."""

import copy
import gc
import inspect
import io
import json
import logging
import pickle
import re
import sys
import threading
import warnings
import weakref
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from fake_npu import FakeNpu, install
from onnxruntime.capi import onnxruntime_pybind11_state as state

import ort_rknn
from ort_rknn import FallbackWarning, NpuUnavailable, OptionError

OURS = "RKNNExecutionProvider"
CPU = "CPUExecutionProvider"


@pytest.fixture(autouse=True)
def no_npu(monkeypatch):
    """One adapter, which sees no device."""
    npu = FakeNpu()
    npu.present = False
    return install(npu, monkeypatch.setattr)


@pytest.fixture(params=[onnxruntime, ort_rknn], ids=["onnxruntime", "ort_rknn"])
def ort(request):
    return request.param


@pytest.fixture
def path(models):
    return str(models / "two_io.onnx")


def feed(**changes):
    out = {"a": np.zeros((1, 3, 16, 16), np.float32), "b": np.zeros((1, 16), np.float32), **changes}
    return {name: value for name, value in out.items() if value is not None}


def control(path):
    return onnxruntime.InferenceSession(path, providers=[CPU])


# The same exceptions, texts, warnings and prints -------------------------------------------------------------------

A = np.zeros((1, 3, 16, 16), np.float32)
REFUSED = {
    "missing file": ("NoSuchFile", lambda m, p: m.InferenceSession(p + ".not-there")),
    "a folder": (Exception, lambda m, p: m.InferenceSession(str(Path(p).parent))),
    "garbage": ("InvalidProtobuf", lambda m, p: m.InferenceSession(b"garbage" * 9)),
    "no bytes": ("InvalidArgument", lambda m, p: m.InferenceSession(b"")),
    "no path": (TypeError, lambda m, p: m.InferenceSession("")),
    "bytearray": (TypeError, lambda m, p: m.InferenceSession(bytearray(b"x"))),
    "memoryview": (TypeError, lambda m, p: m.InferenceSession(memoryview(b"x"))),
    "BytesIO": (TypeError, lambda m, p: m.InferenceSession(io.BytesIO(b"x"))),
    "None": (TypeError, lambda m, p: m.InferenceSession(None)),
    "no argument": (TypeError, lambda m, p: m.InferenceSession()),
    "wrong options": (TypeError, lambda m, p: m.InferenceSession(p, 3)),
    "wrong dtype": ("InvalidArgument", lambda m, p: m.InferenceSession(p).run(None, feed(a=A.astype(np.float64)))),
    "wrong rank": ("InvalidArgument", lambda m, p: m.InferenceSession(p).run(None, feed(a=A[0]))),
    "wrong dims": ("InvalidArgument", lambda m, p: m.InferenceSession(p).run(None, feed(a=A[:, :2, :8]))),
    "unknown output": ("InvalidArgument", lambda m, p: m.InferenceSession(p).run(["nothing"], feed())),
    "missing inputs": (ValueError, lambda m, p: m.InferenceSession(p).run(None, {"c": A})),
    "extra input": ("InvalidArgument", lambda m, p: m.InferenceSession(p).run(None, feed(c=A))),
    "None fed": (Exception, lambda m, p: m.InferenceSession(p).run(None, {**feed(), "a": None})),
    "complex fed": (RuntimeError, lambda m, p: m.InferenceSession(p).run(None, feed(a=A.astype(np.complex64)))),
    "a list for a feed": (AttributeError, lambda m, p: m.InferenceSession(p).run(None, [A])),
    "outputs as text": (TypeError, lambda m, p: m.InferenceSession(p).run("map", feed())),
    "wrong run options": (TypeError, lambda m, p: m.InferenceSession(p).run(None, feed(), 3)),
    "arrays for OrtValues": (
        AttributeError,
        lambda m, p: m.InferenceSession(p).run_with_ort_values(None, feed()),
    ),
    "nothing bound": (RuntimeError, lambda m, p: _run_unbound(m.InferenceSession(p))),
    "run_async without user data": (TypeError, lambda m, p: m.InferenceSession(p).run_async(None, feed(), print)),
}


def _run_unbound(session):
    session.run_with_iobinding(session.io_binding())


def outcome(call):
    try:
        return None, call()
    except Exception as error:
        return type(error), re.sub(" at 0x[0-9a-f]+", "", str(error))


@pytest.mark.parametrize("case", REFUSED)
def test_what_onnxruntime_refuses_we_refuse_in_its_words(case, path):
    expected, call = REFUSED[case]
    expected = getattr(state, expected) if isinstance(expected, str) else expected
    theirs = outcome(lambda: call(onnxruntime, path))
    ours = outcome(lambda: call(ort_rknn, path))
    assert theirs[0] is not None
    assert issubclass(theirs[0], expected)
    assert ours == theirs


SPELLINGS = {
    "none": {},
    "empty": {"providers": []},
    "a name": {"providers": [CPU]},
    "a tuple of names": {"providers": (CPU,)},
    "with options": {"providers": [(CPU, {"x": 1})]},
    "options apart": {"providers": [CPU], "provider_options": [{"x": "1"}]},
    "twice": {"providers": [CPU, CPU]},
    "not built in": {"providers": ["CUDAExecutionProvider", CPU]},
    "unknown": {"providers": ["NoSuchExecutionProvider"]},
    "a bare string": {"providers": CPU},
    "a set": {"providers": {CPU}},
    "a list for a tuple": {"providers": [[CPU, {}]]},
    "one in a tuple": {"providers": [(CPU,)]},
    "None for options": {"providers": [(CPU, None)]},
    "a number among names": {"providers": [CPU, 3]},
    "lengths differ": {"providers": [CPU], "provider_options": [{}, {}]},
    "options not dicts": {"providers": [CPU], "provider_options": [3]},
    "options no list": {"providers": [CPU], "provider_options": 3},
    "options in both": {"providers": [(CPU, {})], "provider_options": [{}]},
    "unknown keyword": {"nonsense": 3},
    "optimisers": {"disabled_optimizers": ["ConstantFolding"]},
    "a number": {"providers": 3},
    "fallback off, unknown": {"providers": ["NoSuchExecutionProvider"], "enable_fallback": 0},
    "fallback off, malformed": {"providers": [(CPU,)], "enable_fallback": False},
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_providers_are_taken_as_onnxruntime_takes_them(case, path, capfd):
    def make(module):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                session = module.InferenceSession(path, **SPELLINGS[case])
                end = (session.get_providers(), session.get_provider_options(), session._enable_fallback)
            except Exception as error:
                end = (type(error), str(error))
        said = [(w.category, str(w.message)) for w in caught]
        return end, said, capfd.readouterr().out

    theirs = make(onnxruntime)
    assert make(ort_rknn) == theirs
    if case in ("unknown", "a set", "lengths differ"):
        assert "EP Error" in theirs[2]  # so the comparison is one of something
    if case in ("twice", "not built in", "unknown"):
        assert theirs[1]


def test_a_warning_about_providers_points_at_the_same_place(path):
    def where(module):
        with pytest.warns(UserWarning, match="not in available provider names") as caught:
            module.InferenceSession(path, providers=["CUDAExecutionProvider"])
        return caught[0].filename, caught[0].lineno

    assert where(ort_rknn) == where(onnxruntime)


# Running -------------------------------------------------------------------------------------------------------------


def test_results_are_onnxruntimes(ort, path):
    rng = np.random.default_rng(0)
    given = feed(a=rng.random((1, 3, 16, 16), np.float32), b=rng.random((1, 16), np.float32))
    session = ort.InferenceSession(path)
    wanted = control(path).run(None, given)
    for got, want in zip(session.run(None, given), wanted, strict=True):
        np.testing.assert_array_equal(got, want)
        assert got.flags.c_contiguous and got.flags.writeable
    vector, again = session.run(["vector", "vector"], given)
    np.testing.assert_array_equal(vector, wanted[1])
    np.testing.assert_array_equal(again, wanted[1])
    assert session.get_inputs() is session.get_inputs()
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("a", "tensor(float)", [1, 3, 16, 16]),
        ("b", "tensor(float)", [1, 16]),
    ]


def test_io_binding(ort, path):
    session = ort.InferenceSession(path)
    for binding in (session.io_binding(), ort.IOBinding(session)):
        for name, value in feed().items():
            binding.bind_cpu_input(name, value)
        binding.bind_output("vector")
        session.run_with_iobinding(binding)
        (got,) = binding.copy_outputs_to_cpu()
        np.testing.assert_array_equal(got, control(path).run(["vector"], feed())[0])
    with pytest.raises(RuntimeError):
        binding.bind_cpu_input("nothing", A)


def test_run_async(ort, path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    session = ort.InferenceSession(path, options)
    ended, done = [], threading.Event()

    def callback(results, data, problem):
        ended.append((results, data, problem))
        done.set()

    assert session.run_async(None, feed(), callback, "mine") is None
    assert done.wait(20)
    ((results, data, problem),) = ended
    assert (len(results), data, problem) == (2, "mine", "")
    done.clear()
    session.run_async(["nothing"], feed(), callback, 7)
    assert done.wait(20)
    results, data, problem = ended[1]
    assert (results, data) == ([], 7)
    assert problem.startswith("Invalid output name")


def test_run_with_ort_values(ort, path):
    session = ort.InferenceSession(path)
    values = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in feed().items()}
    (got,) = session.run_with_ort_values(["vector"], values)
    assert isinstance(got, ort.OrtValue)
    np.testing.assert_array_equal(got.numpy(), control(path).run(["vector"], feed())[0])
    plain = session.run(["vector"], values)[0]
    np.testing.assert_array_equal(plain, got.numpy())


def test_terminate(ort, path):
    session, options = ort.InferenceSession(path), ort.RunOptions()
    options.terminate = True
    with pytest.raises(state.Fail, match="terminate flag"):
        session.run(None, feed(), options)


def test_profiling(ort, path, tmp_path):
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = ort.InferenceSession(path, options)
    session.run(None, feed())
    assert session.get_profiling_start_time_ns() > 0
    name = session.end_profiling()
    assert name.startswith(str(tmp_path))
    assert any(event.get("cat") == "Node" for event in json.loads(Path(name).read_text()))


# What a session is ---------------------------------------------------------------------------------------------------


def test_model_as_path_and_bytes(ort, path):
    by_text, by_path = ort.InferenceSession(path), ort.InferenceSession(Path(path))
    content = Path(path).read_bytes()
    by_bytes = ort.InferenceSession(content)
    assert by_text._model_path == by_path._model_path == path
    assert by_text._model_bytes is None
    assert by_bytes._model_path is None
    assert by_bytes._model_bytes is content
    for session in (by_text, by_path, by_bytes):
        assert len(session.run(None, feed())) == 2


def test_attributes_that_programs_reach_for(ort, path):
    options = ort.SessionOptions()
    session = ort.InferenceSession(path, options)
    assert isinstance(session._sess, state.InferenceSession)
    assert session._sess_options_initial is options
    assert session._sess_options is not options
    assert session.get_session_options() is session._sess_options
    assert session._providers == [CPU]
    session.my_own = 3
    assert session.my_own == 3
    assert len(session._sess.run(["map"], feed(), None)) == 1
    assert ort.InferenceSession.__mro__[-3].__module__ == "onnxruntime.capi.onnxruntime_inference_collection"
    assert isinstance(session, onnxruntime.InferenceSession)


def properties(options):
    names = [n for n in dir(options) if not n.startswith("_") and not callable(getattr(options, n))]
    return {n: getattr(options, n) for n in names}


def test_session_options_are_never_changed(ort, path, tmp_path):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    before = properties(options)
    for _ in range(2):
        session = ort.InferenceSession(path, options)
        assert session.get_session_options().log_severity_level == 3
    assert properties(options) == before
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert not options.has_providers()
    assert (tmp_path / "optimised.onnx").exists()


@pytest.mark.parametrize("false", [None, {}, 0, False])
def test_false_session_options_are_none(ort, path, false):
    assert len(ort.InferenceSession(path, false).run(None, feed())) == 2


def test_providers_on_the_session_options(ort, path):
    options = ort.SessionOptions()
    options.add_provider(CPU, {}) if hasattr(options, "add_provider") else None
    session = ort.InferenceSession(path, options)
    assert session.get_providers() == [CPU]
    if ort is ort_rknn and options.has_providers():
        assert "SessionOptions chose" in session.explain()


def test_shallow_copy_but_no_deep_one_and_no_pickle(ort, path):
    session = ort.InferenceSession(path)
    twin = copy.copy(session)
    assert twin._sess is session._sess
    del session
    assert len(twin.run(None, feed())) == 2
    with pytest.raises(TypeError):
        copy.deepcopy(twin)
    with pytest.raises(TypeError):
        pickle.dumps(twin)


def test_new_without_arguments_then_init(ort, path):
    session = ort.InferenceSession.__new__(ort.InferenceSession)
    session.__init__(path, providers=[CPU])
    assert len(session.run(None, feed())) == 2
    session.__init__(path)  # and again
    assert len(session.run(None, feed())) == 2


@pytest.fixture
def pickable(ort):
    class PickableInferenceSession(ort.InferenceSession):
        """The recipe that insightface and others use."""

        def __init__(self, model_path, **kwargs):
            super().__init__(model_path, **kwargs)
            self.model_path = model_path

        def __getstate__(self):
            return {"model_path": self.model_path}

        def __setstate__(self, values):
            model_path = values["model_path"]
            self.__init__(model_path)

    PickableInferenceSession.__qualname__ = "Pickable"
    PickableInferenceSession.__name__ = "Pickable"
    globals()["Pickable"] = PickableInferenceSession
    yield PickableInferenceSession
    del globals()["Pickable"]


def test_subclass_with_the_pickling_recipe(pickable, path):
    session = pickable(path, providers=[CPU])
    again = pickle.loads(pickle.dumps(session))
    assert type(again) is pickable
    assert again.model_path == path
    np.testing.assert_array_equal(again.run(None, feed())[0], session.run(None, feed())[0])
    assert copy.deepcopy(session).model_path == path


def test_a_session_dies_with_its_last_reference(ort, path):
    gc.collect()
    gc.disable()
    try:
        session = ort.InferenceSession(path)
        session.run(None, feed())
        ref, held = weakref.ref(session), session._sess
        del session
        assert ref() is None
        assert sys.getrefcount(held) == 2  # nobody else keeps the native session
    finally:
        gc.enable()


# Providers, later ----------------------------------------------------------------------------------------------------


def test_set_providers(ort, path):
    session = ort.InferenceSession(path)
    session.set_providers([CPU])
    assert session.get_providers() == [CPU]
    assert session.get_provider_options() == {CPU: {}}
    assert [i.name for i in session.get_inputs()] == ["a", "b"]
    session.set_providers()
    assert len(session.run(None, feed())) == 2
    from_bytes = ort.InferenceSession(Path(path).read_bytes())
    from_bytes.set_providers([CPU], [{}])
    assert len(from_bytes.run(None, feed())) == 2


def test_set_providers_that_fails(ort, path):
    session = ort.InferenceSession(path, enable_fallback=0)
    with pytest.raises(RuntimeError, match="Unknown Provider Type"), pytest.warns(UserWarning):
        session.set_providers(["NoSuchExecutionProvider"])
    with pytest.raises(ValueError, match="should be a sequence"):
        session.set_providers({CPU})
    if ort is onnxruntime:
        assert session.get_inputs() is None  # why ours is other than that
    else:
        assert len(session.run(None, feed())) == 2
        assert session.get_providers() == [CPU]
    session.set_providers([CPU])
    assert len(session.run(None, feed())) == 2


def test_set_providers_does_not_fall_back(ort, path, capfd):
    """As onnxruntime's: it has no fallback, whatever ``enable_fallback`` says."""
    session = ort.InferenceSession(path)
    with pytest.raises(RuntimeError, match="Unknown Provider Type"), pytest.warns(UserWarning):
        session.set_providers(["NoSuchExecutionProvider"])
    assert capfd.readouterr().out == ""


def test_enable_and_disable_fallback(ort, path):
    session = ort.InferenceSession(path)
    assert session._enable_fallback is True
    assert session.disable_fallback() is None
    assert session._enable_fallback is False
    assert session.enable_fallback() is None
    assert session._enable_fallback is True
    assert ort.InferenceSession(path, enable_fallback=0)._enable_fallback is False


# What ours has besides -----------------------------------------------------------------------------------------------

#: Ours are: the constructor and set_providers, which plan; close and what goes with it.
CHANGED = {"set_providers"}


def test_run_and_its_siblings_are_onnxruntimes_own_functions():
    names = [n for n in dir(onnxruntime.InferenceSession) if not n.startswith("_")]
    assert len(names) >= 20
    for name in set(names) - CHANGED:
        assert getattr(ort_rknn.InferenceSession, name) is getattr(onnxruntime.InferenceSession, name), name


def test_close(path):
    session = ort_rknn.InferenceSession(path)
    session.close()
    session.close()
    with pytest.raises(state.RuntimeException, match="the session was closed"):
        session.run(None, feed())
    with pytest.raises(state.RuntimeException, match="the session was closed"):
        session.run_async(None, feed(), print, None)
    assert [i.name for i in session.get_inputs()] == ["a", "b"]
    with pytest.raises(state.RuntimeException, match="the session was closed"):
        session.set_providers([CPU])
    session.__init__(path)  # another one, in the same object
    assert len(session.run(None, feed())) == 2


def test_with(path):
    with ort_rknn.InferenceSession(path) as session:
        assert len(session.run(None, feed())) == 2
    with pytest.raises(state.RuntimeException, match="closed"):
        session.run(None, feed())
    with pytest.raises(KeyError), ort_rknn.InferenceSession(path) as session:
        raise KeyError
    with pytest.raises(state.RuntimeException, match="closed"):
        session.run(None, feed())


def test_a_closed_session_ends_bindings_too(path):
    session = ort_rknn.InferenceSession(path)
    binding = session.io_binding()
    binding.bind_output("vector")
    session.close()
    # Recent releases look first whether the binding is the session's own.
    with pytest.raises((state.RuntimeException, ValueError), match=r"closed|IOBinding must be used with"):
        session.run_with_iobinding(binding)
    with pytest.raises((state.RuntimeException, TypeError), match="the session was closed"):
        session.io_binding()


def test_explain(path):
    told = ort_rknn.InferenceSession(path).explain()
    assert "given:     two_io.onnx (onnx)" in told
    assert "on onnxruntime's CPU session" in told
    assert onnxruntime.__version__ in told
    assert "fell back: no NPU: the fake NPU is switched off. switch it on" in told
    assert "/dev/fake" in told
    named = ort_rknn.InferenceSession(path, providers=[CPU]).explain()
    assert "fell back" not in named
    assert "do not include the NPU" in named


def test_explain_before_init(path):
    session = ort_rknn.InferenceSession.__new__(ort_rknn.InferenceSession)
    assert "__init__ was not called" in session.explain()
    session.close()
    session.__init__(path)
    assert "onnxruntime's CPU session" in session.explain()


def test_properties_on_the_cpu(path):
    session = ort_rknn.InferenceSession(path)
    assert session.shape_sets == ()
    assert session.quantisation == {}


def test_signature_of_the_constructor():
    assert str(inspect.signature(ort_rknn.InferenceSession).parameters.keys()) == str(
        inspect.signature(onnxruntime.InferenceSession).parameters.keys()
    )


# Falling back is never a secret --------------------------------------------------------------------------------------


def test_nobody_asked(path, caplog, no_npu):
    """No warning (warnings are errors here) and one INFO record."""
    caplog.set_level(logging.DEBUG, "ort_rknn")
    ort_rknn.InferenceSession(path)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "the fake NPU is switched off. switch it on" in record.getMessage()


def test_others_were_named(path, caplog, no_npu):
    caplog.set_level(logging.DEBUG, "ort_rknn")
    ort_rknn.InferenceSession(path, providers=[CPU])
    assert not caplog.records
    assert not no_npu.queries  # no adapter is bothered


ASKED = {
    "named": ({"providers": [OURS]}, {}),
    "named with the CPU": ({"providers": [OURS, CPU]}, {}),
    "named bare": ({"providers": OURS}, {}),
    "named after the CPU": ({"providers": [CPU, OURS]}, {}),
    "an alias": ({"providers": ["RKNPU2ExecutionProvider"]}, {}),
    "options in a tuple": ({"providers": [(OURS, {"schedule": [0, 1]}), CPU]}, {}),
    "options apart": ({"providers": [OURS, CPU], "provider_options": [{"tp_mode": "all"}, {}]}, {}),
    "options alone, a dict": ({"provider_options": {"schedule": "0,1"}}, {}),
    "options alone, a list": ({"provider_options": [{"schedule": "0,1"}]}, {}),
    "no options alone": ({"provider_options": {}}, {}),
    "ORT_RKNN_DEVICE": ({}, {"ORT_RKNN_DEVICE": "rk3588"}),
    "ORT_RKNN_POLICY": ({}, {"ORT_RKNN_POLICY": "prefer"}),
    "ORT_RKNN_POLICY over names": ({"providers": [CPU]}, {"ORT_RKNN_POLICY": "prefer"}),
}


@pytest.mark.parametrize("case", ASKED)
def test_who_asked_gets_one_warning_and_one_record(case, path, caplog, monkeypatch, capfd):
    caplog.set_level(logging.DEBUG, "ort_rknn")
    arguments, environment = ASKED[case]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        line = sys._getframe().f_lineno + 1
        session = ort_rknn.InferenceSession(path, **arguments)
    (warning,) = caught
    assert warning.category is FallbackWarning
    assert (warning.filename, warning.lineno) == (__file__, line)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(warning.message) == record.getMessage()
    assert record.getMessage() == "this session runs on the CPU: no NPU: the fake NPU is switched off. switch it on"
    assert session.get_providers() == [CPU]
    assert len(session.run(None, feed())) == 2
    out = capfd.readouterr()
    assert (out.out, out.err) == ("", "")


def test_the_warning_points_at_a_subclass_constructor(path):
    class Mine(ort_rknn.InferenceSession):
        def __init__(self, path):
            self.line = sys._getframe().f_lineno + 1
            super().__init__(path, providers=[OURS])

    with pytest.warns(FallbackWarning) as caught:
        mine = Mine(path)
    assert (caught[0].filename, caught[0].lineno) == (__file__, mine.line)


def test_the_warning_points_at_set_providers(path):
    session = ort_rknn.InferenceSession(path, providers=[CPU])
    with pytest.warns(FallbackWarning) as caught:
        line = sys._getframe().f_lineno + 1
        session.set_providers([OURS])
    assert (caught[0].filename, caught[0].lineno) == (__file__, line)
    assert "fell back" in session.explain()


def test_the_warning_can_be_made_an_error_and_leaves_no_session(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FallbackWarning, match="switch it on"):
            ort_rknn.InferenceSession(path, providers=[OURS])


STRICT = {
    "ORT_RKNN_STRICT": ({}, {"ORT_RKNN_STRICT": "1"}, "ORT_RKNN_STRICT=1"),
    "ORT_RKNN_STRICT, named": ({"providers": [OURS]}, {"ORT_RKNN_STRICT": "1"}, "ORT_RKNN_STRICT=1"),
    "policy only": ({}, {"ORT_RKNN_POLICY": "only"}, "ORT_RKNN_POLICY=only"),
    "policy only over names": ({"providers": [CPU]}, {"ORT_RKNN_POLICY": "only"}, "ORT_RKNN_POLICY=only"),
}


@pytest.mark.parametrize("case", STRICT)
def test_strict(case, path, monkeypatch):
    arguments, environment, by = STRICT[case]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(NpuUnavailable, match="switch it on") as caught:
        ort_rknn.InferenceSession(path, **arguments)
    assert by in str(caught.value)
    assert isinstance(caught.value, state.Fail)


def test_strict_leaves_alone_who_named_others(path, monkeypatch):
    monkeypatch.setenv("ORT_RKNN_STRICT", "1")
    assert ort_rknn.InferenceSession(path, providers=[CPU]).get_providers() == [CPU]


@pytest.mark.parametrize("arguments", [{"providers": [OURS]}, {"provider_options": {"tp_mode": "0"}}])
def test_no_cpu_in_the_session_config(path, arguments):
    options = ort_rknn.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    with pytest.raises(NpuUnavailable, match=r"session\.disable_cpu_ep_fallback=1"):
        ort_rknn.InferenceSession(path, options, **arguments)


def test_no_cpu_in_the_session_config_when_nobody_asked(path):
    """Then it is onnxruntime's to judge, in whose words the CPU provider is not a fallback when it is all there is."""
    options = ort_rknn.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    theirs = outcome(lambda: type(onnxruntime.InferenceSession(path, options).get_providers()))
    assert outcome(lambda: type(ort_rknn.InferenceSession(path, options).get_providers())) == theirs


def test_bad_options_are_errors_without_an_npu_too(path):
    with pytest.raises(OptionError, match="unknown provider option 'sechdule'"):
        ort_rknn.InferenceSession(path, providers=[(OURS, {"sechdule": "0"})])
    with pytest.raises(ValueError, match="exclude each other"):
        ort_rknn.InferenceSession(path, provider_options={"schedule": 0, "tp_mode": "all"})


def test_bad_policy(path, monkeypatch):
    monkeypatch.setenv("ORT_RKNN_POLICY", "always")
    with pytest.raises(OptionError, match="respect, prefer, only"):
        ort_rknn.InferenceSession(path)


def test_a_compiled_model_runs_its_onnx_on_the_cpu(models):
    with pytest.warns(FallbackWarning):
        session = ort_rknn.InferenceSession(models / "two_io.rk3588.rknn", providers=[OURS])
    assert session._model_path == str(models / "two_io.rk3588.rknn")
    assert len(session.run(None, feed())) == 2
    assert "two_io.onnx" in session.explain()
    session.set_providers([CPU])
    assert session._model_path == str(models / "two_io.rk3588.rknn")


def test_a_compiled_model_alone_is_an_error_that_says_what_was_looked_for(models, tmp_path):
    alone = tmp_path / "alone.rk3588.rknn"
    alone.write_bytes((models / "two_io.rk3588.rknn").read_bytes())
    with pytest.raises(NpuUnavailable, match=r"looked for alone\.onnx, alone\.rk3588\.onnx") as caught:
        ort_rknn.InferenceSession(alone)
    assert "switch it on" in str(caught.value)
    with pytest.raises(NpuUnavailable, match="in memory has no file beside it"):
        ort_rknn.InferenceSession(alone.read_bytes())
    with pytest.warns(FallbackWarning):
        session = ort_rknn.InferenceSession(alone, provider_options={"onnx_model": str(models / "two_io.onnx")})
    assert len(session.run(None, feed())) == 2


def test_disabled(path, monkeypatch):
    monkeypatch.setenv("ORT_RKNN_DISABLE", "1")
    session = ort_rknn.InferenceSession(path)
    assert len(session.run(None, feed())) == 2
    assert "ORT_RKNN_DISABLE=1" in session.explain()
    with pytest.raises(state.InvalidProtobuf):
        ort_rknn.InferenceSession(path.replace(".onnx", ".rk3588.rknn"))
    session.close()
    with pytest.raises(state.RuntimeException, match="closed"):
        session.run(None, feed())
