"""What is rejected, the order of checks, and the messages: on the NPU as on onnxruntime's CPU."""

import re

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state
from support.targets import MODELS, TARGETS

A, B = np.zeros((1, 3, 16, 16), np.float32), np.zeros((1, 16), np.float32)
GOOD = {"a": A, "b": B}


class Custom:
    def __array__(self, dtype=None, copy=None):
        return A


#: name: (the class that onnxruntime raises, arguments of run)
REFUSED = {
    "no feed": (ValueError, (None, {})),
    "one missing": (ValueError, (None, {"a": A})),
    "misspelled": (ValueError, (None, {"A": A, "b": B})),
    "missing and extra": (ValueError, (None, {"b": B, "z": B})),
    "missing and unknown output": (ValueError, (["nothing"], {"b": B})),
    "missing and wrong dtype": (ValueError, (None, {"b": B.astype(np.int32)})),
    "extra": (state.InvalidArgument, (None, {**GOOD, "z": B})),
    "extra and wrong dtype": (state.InvalidArgument, (None, {**GOOD, "a": A.astype(np.float64), "z": B})),
    "wrong dtype": (state.InvalidArgument, (None, {**GOOD, "a": A.astype(np.float16)})),
    "wrong dtype and rank": (state.InvalidArgument, (None, {**GOOD, "a": A[0].astype(np.int8)})),
    "wrong rank": (state.InvalidArgument, (None, {**GOOD, "a": A[0]})),
    "0-d": (state.InvalidArgument, (None, {**GOOD, "b": np.array(1, np.float32)})),
    "wrong dims": (state.InvalidArgument, (None, {**GOOD, "a": A[:, :2, :, :8]})),
    "no elements": (state.InvalidArgument, (None, {**GOOD, "b": B[:0]})),
    "both wrong": (state.InvalidArgument, (None, {"a": A[0], "b": B[0]})),
    "unknown output": (state.InvalidArgument, (["map", "nothing"], GOOD)),
    "an input as output": (state.InvalidArgument, (["a"], GOOD)),
    "no name": (state.InvalidArgument, ([""], GOOD)),
    "unknown output and wrong rank": (state.InvalidArgument, (["nothing"], {**GOOD, "a": A[0]})),
    "output as text": (TypeError, ("map", GOOD)),
    "output as number": (TypeError, ([3], GOOD)),
    "a list of the wrong rank": (state.InvalidArgument, (None, {**GOOD, "b": [0.0] * 16})),
    "text": (Exception, (None, {**GOOD, "b": "text"})),
    "a scalar": (RuntimeError, (None, {**GOOD, "b": 3.0})),
    "a memoryview": (RuntimeError, (None, {**GOOD, "b": memoryview(B)})),
    "an object with __array__": (RuntimeError, (None, {**GOOD, "a": Custom()})),
    "a tuple": (RuntimeError, (None, {**GOOD, "b": (0.0,) * 16})),
    "None": (Exception, (None, {**GOOD, "b": None})),
    "complex": (RuntimeError, (None, {**GOOD, "b": B.astype(np.complex64)})),
    "objects": (Exception, (None, {**GOOD, "b": B.astype(object)})),
    "wrong run options": (TypeError, (None, GOOD, "tag")),
    "a number for a feed's name": (Exception, (None, {**GOOD, 3: B})),
}


def outcome(session, arguments):
    try:
        session.run(*arguments)
    except Exception as error:
        # Found by a kernel: releases differ in the class, and the text names the node and a place in its source.
        missing = re.search(r"Status Message: .*(Missing Input: \w+)", str(error))
        if missing:
            return Exception, missing[1]
        return type(error), re.sub(" at 0x[0-9a-f]+", "", str(error))
    return None, ""


@pytest.fixture(scope="module")
def control():
    return onnxruntime.InferenceSession(MODELS / "two_io.onnx", providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module", params=[name for name in TARGETS if name != "onnxruntime"])
def session(request):
    target = TARGETS[request.param]()
    yield target.session()
    target.close()


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_the_same_words(session, control, case):
    expected, arguments = REFUSED[case]
    theirs = outcome(control, arguments)
    assert theirs[0] is not None, "onnxruntime takes it"
    assert issubclass(theirs[0], expected)
    assert outcome(session, arguments) == theirs
    assert len(session.run(None, GOOD)) == 2  # and the session still works


def test_a_list_for_a_feed_is_refused_in_more_words(session, control):
    theirs, ours = outcome(control, (None, [A, B])), outcome(session, (None, [A, B]))
    assert ours[0] is theirs[0] is AttributeError
    assert ours[1].startswith(f"{theirs[1]}: input_feed is a dict of arrays by input name, {{'a': ..., 'b': ...")
    assert len(session.run(None, GOOD)) == 2


class Array(np.ndarray):
    pass


def _reversed_twice(a):
    return np.ascontiguousarray(a[..., ::-1])[..., ::-1]


def _readonly(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def _unaligned(a):
    raw = np.empty(a.nbytes + 1, np.uint8)[1:]
    out = raw.view(np.float32).reshape(a.shape)
    out[:] = a
    return out


TAKEN = {
    "as it is": lambda a: a,
    "Fortran": np.asfortranarray,
    "negative strides": _reversed_twice,
    "every second of more": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "read-only": _readonly,
    "unaligned": _unaligned,
    "a subclass": lambda a: a.view(Array),
    "nested lists": lambda a: a.tolist(),
    "masked": np.ma.masked_array,
    "broadcast": lambda a: np.broadcast_to(a[..., :1], a.shape),
}


@pytest.mark.parametrize("case", TAKEN)
def test_accepted_feeds(session, control, case):
    random = np.random.default_rng(2)
    given = {n: TAKEN[case](random.standard_normal(v.shape, dtype=np.float32)) for n, v in GOOD.items()}
    for got, want in zip(session.run(None, given), control.run(None, given), strict=True):
        assert got.dtype == want.dtype
        assert np.abs(got - want).max() < 1e-2


@pytest.mark.parametrize("names", [None, [], (), ["vector"], ("vector", "map"), ["map", "map"]], ids=str)
def test_outputs_in_the_requested_form(session, control, names):
    got, want = session.run(names, GOOD), control.run(names, GOOD)
    assert isinstance(got, list)
    assert [g.shape for g in got] == [w.shape for w in want]


def test_results_are_the_callers_own(session):
    first = session.run(None, GOOD)
    second = session.run(None, GOOD)
    for one, other in zip(first, second, strict=True):
        assert one.flags.c_contiguous and one.flags.writeable and type(one) is np.ndarray
        assert not np.shares_memory(one, other)
        one[:] = np.nan
    assert all(np.isfinite(r).all() for r in second)


def test_a_feed_is_not_changed(session):
    given = {name: np.ones_like(value) for name, value in GOOD.items()}
    session.run(None, given)
    assert all((value == 1).all() for value in given.values())


def test_any_mapping_is_a_feed(session):
    from collections import ChainMap, OrderedDict
    from types import MappingProxyType

    taken = []
    for kind in (OrderedDict, MappingProxyType, ChainMap):
        taken.append(outcome(session, (None, kind(GOOD)))[0])
    plain = onnxruntime.InferenceSession(MODELS / "two_io.onnx", providers=["CPUExecutionProvider"])
    assert taken == [outcome(plain, (None, kind(GOOD)))[0] for kind in (OrderedDict, MappingProxyType, ChainMap)]
