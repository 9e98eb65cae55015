"""Our rknnlite compared with the original: the same constants, signatures and results.

The original is the vendor's package with ``RKNNLITE_UNDER_TEST=real``, else a stand-in for it.
"""

import logging
import os
import warnings

import numpy as np
import pytest
from support.rknnlite_models import CONV, MANIFEST, MODELS, X, feed_of, started, virtual_rk3588

from ort_rknn_lite2._logging import logging_untouched
from ort_rknn_rknnlite.api import RKNNLite
from ort_rknn_virtual.control import VirtualNpu, virtual_npu

npu = pytest.fixture(virtual_rk3588)

REAL = os.environ.get("RKNNLITE_UNDER_TEST") == "real"
BOARD = "/usr/lib/librknnrt.so"


@pytest.fixture(scope="module")
def original():
    """The vendor's class on the board's library, or the stand-in; both are virtual NPUs with the face's pattern."""
    if REAL:
        with logging_untouched(), warnings.catch_warnings():  # other tests come after this one
            warnings.simplefilter("ignore")
            import rknnlite.api

            return rknnlite.api.RKNNLite
    from support import fake_rknnlite

    fake_rknnlite.LIBRARY = str(virtual_npu("rk3588").library)
    if not fake_rknnlite.log.handlers:
        fake_rknnlite.log.addHandler(logging.NullHandler())
    return fake_rknnlite.RKNNLite


def test_the_constants_and_signatures_are_the_original_s(original):
    import inspect

    for name in ("AUTO", "0", "1", "2", "0_1", "0_1_2", "ALL"):
        assert getattr(RKNNLite, f"NPU_CORE_{name}") == getattr(original, f"NPU_CORE_{name}")
    ours, theirs = ({name for name in dir(kind) if not name.startswith("_")} for kind in (RKNNLite, original))
    assert theirs == ours - {"raise_errors"} if REAL else theirs < ours
    methods = ["__init__", *(name for name in theirs if not name.startswith("NPU_"))]
    for name in methods:
        ours, theirs = (inspect.signature(getattr(kind, name)).parameters.values() for kind in (RKNNLite, original))
        assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in theirs]


@pytest.mark.parametrize("name", sorted(n for n in MANIFEST if ".rk3588." in n))
def test_the_results_are_the_original_s(npu, original, monkeypatch, name):
    """Same library, same pattern: the very same arrays, of the same types and shapes."""
    monkeypatch.setenv("ORT_RKNN_VIRTUAL_COMPUTE", "pattern")
    for library in (npu, VirtualNpu("rk3588", library=BOARD) if REAL else npu):
        library.attributes_follow(True)
    ours, theirs = started(MODELS / name), original()
    assert theirs.load_rknn(str(MODELS / name)) == 0
    assert theirs.init_runtime() == 0
    for golden in MANIFEST[name]["golden"]:
        feed = feed_of(np.load(MODELS / golden["file"]), name)
        a, b = ours.inference(inputs=list(feed)), theirs.inference(inputs=list(feed))
        for mine, its in zip(a, b, strict=True):
            assert (mine.dtype, mine.shape) == (its.dtype, its.shape)
            np.testing.assert_array_equal(mine, its)
    ours.release()
    theirs.release()


@pytest.mark.parametrize(
    "arguments",
    [
        {"inputs": [X.transpose(0, 3, 1, 2)], "data_format": "nchw"},
        {"inputs": [X.transpose(0, 3, 1, 2)], "data_format": ["nchw"]},
        {"inputs": [(X * 50).astype(np.int8)]},
        {"inputs": [(X * 50).astype(np.uint8)], "data_type": "uint8"},
        {"inputs": [X.astype(np.float16)], "inputs_pass_through": [1]},
        {"inputs": [X.astype(np.float16).transpose(0, 3, 1, 2)], "data_format": "nchw", "inputs_pass_through": [1]},
        {"inputs": X},
        {"inputs": [X.astype(np.float64)]},
        {"inputs": [X.astype(">f4")]},
        {"inputs": [X], "get_frame_id": True},
        {"inputs": [X[0]]},
        {"inputs": [X[:, :16].copy()]},
    ],
    ids=lambda a: ",".join(a),
)
def test_forms_are_the_original_s(npu, original, monkeypatch, arguments):
    monkeypatch.setenv("ORT_RKNN_VIRTUAL_COMPUTE", "pattern")
    results = []
    for kind in (RKNNLite, original):
        made = kind()
        assert (made.load_rknn(str(CONV)), made.init_runtime(core_mask=2)) == (0, 0)
        given = {k: list(v) if isinstance(v, list) else v for k, v in arguments.items()}
        results.append(made.inference(**given))
        made.release()
    ours, theirs = results
    if theirs is None:
        assert ours is None
    else:
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert ours[1:] == theirs[1:]
