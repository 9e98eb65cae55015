"""One program with EZ RKNN Async itself and with our implementation of its API, on the same virtual NPU: the same
results.

Needs the wheel ``ztu-somemodelruntime-ez-rknn-async`` 0.11.0, in this environment or in that of the interpreter that
ORT_RKNN_PEER_PYTHON names (which has numpy). It is only installed and run.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PEER = "ztu_somemodelruntime_ez_rknn_async"
VERSION = "0.11.0"
SCRIPT = Path(__file__).parent / "ez_async_script.py"
PYTHON = os.environ.get("ORT_RKNN_PEER_PYTHON", "")


def peer_python():
    """The interpreter that has the peer; None if there is none."""
    if PYTHON:
        return PYTHON
    try:
        return sys.executable if importlib.metadata.version(PEER) == VERSION else None
    except importlib.metadata.PackageNotFoundError:
        return None


pytestmark = pytest.mark.skipif(
    peer_python() is None,
    reason=f"{PEER} {VERSION} is not installed here (tox -e peer), and ORT_RKNN_PEER_PYTHON is not set",
)


def run(python, module, folder, library):
    file = folder / f"{module}.npz"
    environ = {k: v for k, v in os.environ.items() if not k.startswith("ORT_RKNN_")}
    environ |= {"ZTU_RKNPU2_RUNTIME_LIBRARY": str(library)}
    if module != PEER:
        environ["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [python, str(SCRIPT), module, str(file)], env=environ, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(file) as loaded:
        arrays = dict(loaded)
    return arrays, json.loads(arrays.pop("facts").tobytes())


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    from ort_rknn_virtual._build import library

    folder = tmp_path_factory.mktemp("both")
    found = library("rk3588")
    return run(sys.executable, "ort_rknn_ez_async", folder, found), run(peer_python(), PEER, folder, found)


def test_the_arrays_are_equal_bit_by_bit(both):
    (ours, _), (theirs, _) = both
    assert sorted(ours) == sorted(theirs)
    assert len(ours) > 300
    for label, array in theirs.items():
        assert (ours[label].dtype, ours[label].shape) == (array.dtype, array.shape), label
        assert np.array_equal(ours[label], array, equal_nan=array.dtype.kind == "f"), label


def test_names_counts_and_metadata_are_equal(both):
    (_, ours), (_, theirs) = both
    assert sorted(ours) == sorted(theirs)
    for label, fact in theirs.items():
        if not label.startswith("refusal/"):
            assert ours[label] == fact, label


#: Where our words are others, on purpose.
REWORDED = {"bound type", "bound shape", "bind_input"}


def test_what_is_refused_is_refused_in_the_same_words(both):
    (_, ours), (_, theirs) = both
    refusals = {label: fact for label, fact in theirs.items() if label.startswith("refusal/")}
    assert len(refusals) > 40
    differing = []
    for label, (kind, text) in refusals.items():
        assert kind != "accepted", label
        same_words = text.rstrip(".") in ours[label][1] or label.removeprefix("refusal/") in REWORDED
        if ours[label][0] != kind or not same_words:
            differing.append((label, (kind, text), ours[label]))
    assert differing == []
