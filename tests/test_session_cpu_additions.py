"""What our session adds to onnxruntime's, without an NPU: close, with, explain and some properties."""

import inspect

import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state
from support.cpu_sessions import CPU, feed, two_io, without_npu

import ort_rknn

no_npu = pytest.fixture(without_npu, autouse=True)
path = pytest.fixture(two_io)

#: Ours are: the constructor and set_providers, which plan; close and what goes with it, and run_async, which it waits
#: for.
CHANGED = {"set_providers", "run", "run_async"}


def test_other_methods_are_onnxruntimes_own_functions():
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
    assert session.quantization == {}


def test_signature_of_the_constructor():
    assert str(inspect.signature(ort_rknn.InferenceSession).parameters.keys()) == str(
        inspect.signature(onnxruntime.InferenceSession).parameters.keys()
    )
