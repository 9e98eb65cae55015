"""Fixtures for the tests of the execution provider: a compiled model, and both kinds of session on it.

A problem that no test here can reach: under qemu-user 7.2 for aarch64, onnxruntime 1.28 and later crash when they are
imported (their cpuinfo reads the host's /proc/cpuinfo); that environment needs its own /proc/cpuinfo.
"""

import pytest
from support.ep_models import OURS, plain_session, quiet

import ort_rknn


@pytest.fixture
def blob(models):
    """A real compiled model. The test decides what the fake NPU computes for it."""
    return (models / "nd.rk3588.rknn").read_bytes()


@pytest.fixture(params=["ort_rknn", "onnxruntime"])
def session_on(request):
    """Creates a session on an EPContext model: ours, and the unmodified onnxruntime's with our provider."""
    if request.param == "onnxruntime":
        return plain_session
    return lambda content, given=None: ort_rknn.InferenceSession(content, quiet(), [(OURS, given or {})])
