"""What a failed test left open in its traceback is closed before the next test starts, which may count what is open."""

import contextlib
import gc
import sys

import pytest

failed = False


def pytest_runtest_logreport(report):
    global failed
    failed = failed or report.outcome in ("failed", "rerun")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    global failed
    if failed:
        failed = False
        for name in ("last_exc", "last_value", "last_traceback"):  # pytest keeps the last exception for debuggers
            with contextlib.suppress(AttributeError):
                delattr(sys, name)
        gc.collect()
