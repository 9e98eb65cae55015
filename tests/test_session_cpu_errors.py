"""Without an NPU, our session's errors, warnings and output are exactly onnxruntime's."""

import io
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state
from support.cpu_sessions import CPU, A, feed, outcome, two_io, without_npu

import ort_rknn

no_npu = pytest.fixture(without_npu, autouse=True)
path = pytest.fixture(two_io)

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
