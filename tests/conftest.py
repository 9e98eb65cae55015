"""Fixtures for all tests."""

import contextlib
import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy
import onnxruntime
import pytest
from support.counted_reruns import pytest_sessionfinish, pytest_terminal_summary  # noqa: F401
from support.failed_tests import pytest_runtest_logreport, pytest_runtest_setup  # noqa: F401

TESTS = Path(__file__).parent


def pytest_report_header(config):
    import ort_rknn

    python = sys.version.split()[0]
    ours = f"{ort_rknn.package_version} in {Path(ort_rknn.__file__).parent}"
    return f"python {python}, onnxruntime {onnxruntime.__version__}, numpy {numpy.__version__}, ort_rknn {ours}"


def pytest_collection_modifyitems(items):
    """A time limit means nothing while another program uses the CPU: only one missed five times is a failure."""
    for item in items:
        if item.get_closest_marker("wall_clock"):
            item.add_marker(pytest.mark.flaky(reruns=4, reruns_delay=1, only_rerun="AssertionError"))


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    """Remove NPU settings from the environment in which the tests run."""
    for name in [name for name in os.environ if name.startswith("ORT_RKNN_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def models():
    """The folder of the test models."""
    return TESTS / "models"


@pytest.fixture
def npu(monkeypatch):
    """A fake RK3588 as the only NPU of this process. Everything opened on it is closed when the test ends."""
    from support.fake_npu import FakeNpu, install

    from ort_rknn._ep import unregister

    gc.collect()
    with contextlib.suppress(Exception):  # sessions left by a failed test may use it
        unregister()  # a session of an earlier test may have registered another device
    npu = install(FakeNpu(), monkeypatch.setattr)
    yield npu
    gc.collect()
    assert (npu.open_models, npu.open_contexts) == (0, 0)
    unregister()


@pytest.fixture
def descriptors():
    """Counts the open descriptors of this process, after collecting the garbage of earlier tests."""

    def count():
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    return count


@pytest.fixture
def python():
    """Runs code in a separate process, which must succeed and print nothing to stderr; returns its stdout."""

    def run(code, *, env=None, expect=0, quiet=True, args=(), timeout=60):
        paths = [*sys.path, str(TESTS)]
        environ = {k: v for k, v in os.environ.items() if not k.startswith("ORT_RKNN_")}
        environ |= {"PYTHONPATH": os.pathsep.join(p for p in paths if p), **(env or {})}
        done = subprocess.run(
            [sys.executable, "-W", "error", *args, "-c", code],
            env=environ,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        if quiet:
            assert done.stderr == "", done.stderr
        return done.stdout

    return run
