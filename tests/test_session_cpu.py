"""Without an NPU, our session behaves like onnxruntime's. Plain onnxruntime is always the control."""

import copy
import gc
import json
import pickle
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state
from support.cpu_sessions import CPU, A, feed, two_io, without_npu

import ort_rknn

no_npu = pytest.fixture(without_npu, autouse=True)
path = pytest.fixture(two_io)


@pytest.fixture(params=[onnxruntime, ort_rknn], ids=["onnxruntime", "ort_rknn"])
def ort(request):
    return request.param


def control(path):
    return onnxruntime.InferenceSession(path, providers=[CPU])


# Running ----------------------------------------------------------------------------------------------------------


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


# What a session is ------------------------------------------------------------------------------------------------


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
        alone = object()
        assert sys.getrefcount(held) == sys.getrefcount(alone)  # nobody else keeps the native session
    finally:
        gc.enable()


# Providers, later -------------------------------------------------------------------------------------------------


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
    """Like onnxruntime's, it has no fallback, even with ``enable_fallback``."""
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
