"""No memory, threads, descriptors or room on the disk, and thousands of sessions: an error, and then all is as before.

A part of it; with ``INTERRUPTS`` set (``tox -e interrupts``) all of it, with 10,000 sessions.
"""

import os
import resource
import signal
import subprocess
import sys
import textwrap

import pytest
from support.virtual_sessions import MODELS

EVERYTHING = "INTERRUPTS" in os.environ
SESSIONS = 10_000 if EVERYTHING else 100

BEGIN = f"""
import contextlib, gc, os, resource, sys, threading, time
import numpy as np
import ort_rknn as ort
from ort_rknn_virtual.control import virtual_npu
ort.set_default_logger_severity(4)
MODEL = {str(MODELS / "conv_f16.onnx")!r}
FEED = {{"x": np.ones((1, 3, 32, 32), np.float32)}}

def session(so=None, **options):
    return ort.InferenceSession(MODEL, so, provider_options={{"device": "virtual:rk3588", **options}})

def descriptors():
    return len(os.listdir("/proc/self/fd"))

def has_no_more_descriptors_than(before):
    # onnxruntime 1.32 opens and closes some on a thread of its own, for its telemetry.
    end = time.monotonic() + 20
    while descriptors() > before and time.monotonic() < end:
        time.sleep(0.05)
    return descriptors() <= before

def kib(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))

def as_before():
    gc.collect()
    with session(schedule="0,1,2") as made:
        assert len(made.run(None, FEED)) == 1
        assert len(made.submit(None, FEED).result(60)) == 1
        assert [len(r) for r in made.map([FEED] * 6)] == [1] * 6
    counters = npu.counters()
    assert (counters.contexts, counters.models, counters.outputs, counters.misuses) == (0, 0, 0, 0), counters

npu = virtual_npu("rk3588")
"""


def run(python, body, **given):
    env = {"ORT_RKNN_VIRTUAL_COMPUTE": "pattern", "ORT_RKNN_NO_TOP": "1", **given.pop("env", {})}
    args = ("-W", "ignore")
    return python(BEGIN + textwrap.dedent(body), args=args, env=env, quiet=False, timeout=100 + SESSIONS, **given)


def test_no_more_descriptors(python):
    said = run(
        python,
        """
        as_before()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        before, failed = descriptors(), 0
        first_free = os.dup(0)
        os.close(first_free)
        for more in range(25):
            resource.setrlimit(resource.RLIMIT_NOFILE, (first_free + more, hard))
            try:
                with session(schedule="0,1,2") as made:
                    assert len(made.run(None, FEED)) == 1
            except Exception as error:
                failed += 1
                text = f"{type(error).__name__}: {error}"
                del error
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            gc.collect()
            assert has_no_more_descriptors_than(before), (more, descriptors(), before)
        as_before()
        print("failed", failed)
        """,
    )
    assert "failed" in said


@pytest.mark.parametrize("nth", [1, 2, 3, 5])
def test_no_more_threads(python, nth):
    """From the nth on, no thread can be started: what needs one fails or does without it, and nothing waits forever."""
    run(
        python,
        f"""
        as_before()
        import _thread
        start, left = threading.Thread.start, [{nth} - 1]

        def refused(self):
            if not left[0]:
                raise RuntimeError("can't start new thread")
            left[0] -= 1
            start(self)

        threading.Thread.start = refused
        for options in {{}}, {{"schedule": "0,1,2"}}, {{"run_timeout_ms": 20000}}:
            made = session(**options)
            for call in (
                lambda: made.run(None, FEED),
                lambda: made.submit(None, FEED).result(30),
                lambda: list(made.map([FEED] * 4)),
                made.close,
            ):
                with contextlib.suppress(RuntimeError, ort.capi.onnxruntime_pybind11_state.RuntimeException):
                    call()
        threading.Thread.start = start
        made = None
        as_before()
        """,
    )


@pytest.mark.skipif(not EVERYTHING, reason="a part that only tox -e interrupts runs")
def test_memory_that_is_refused(python):
    """The limit of the address space grows a little each time: there is an exception, and the process survives.

    With one thread of onnxruntime: if it has no memory for the stacks of more, its constructor never returns.
    """
    said = run(
        python,
        """
        as_before()
        big = {"x": np.ones((1, 3, 32, 32), np.float32)}
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        failed = 0
        for more in range(0, 48, 3):
            resource.setrlimit(resource.RLIMIT_AS, ((kib("VmSize") + (more << 10)) << 10, hard))
            try:
                arrays = ort.empty((1 << 20,), np.uint8, device="virtual:rk3588")
                memory = np.empty(12 << 20, np.uint8)
                options = ort.SessionOptions()
                options.intra_op_num_threads = 1
                with session(options, schedule="0,1,2") as made:
                    made.run(None, FEED)
            except Exception as error:
                failed += 1
                del error
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
            arrays = memory = made = None
        assert failed
        as_before()
        print("failed", failed)
        """,
    )
    assert "failed" in said


def test_no_room_for_what_is_written(python, tmp_path):
    """RLIMIT_FSIZE stands for a full disk: the write fails, no half-written file replaces a model, and the session
    continues."""
    run(
        python,
        f"""
        folder = {str(tmp_path)!r}
        sys.dont_write_bytecode = True  # Python keeps what it could write of a module's, and fails on it later
        as_before()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        # A model with its compiled one inside.
        options = ort.SessionOptions()
        options.add_session_config_entry("ep.context_enable", "1")
        options.add_session_config_entry("ep.context_file_path", folder + "/out_ctx.onnx")
        options.add_session_config_entry("ep.context_embed_mode", "1")
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        try:
            ort.InferenceSession(MODEL, options, provider_options={{"device": "virtual:rk3588"}})
        except Exception as error:
            text = str(error)
            del error
        else:
            raise AssertionError("it was written")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not os.path.exists(folder + "/out_ctx.onnx"), os.listdir(folder)
        # A profile: onnxruntime's own file, which is cut short, and the session's calls go on.
        options = ort.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = folder + "/profile"
        made = ort.InferenceSession(MODEL, options, provider_options={{"device": "virtual:rk3588"}})
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        try:
            assert len(made.run(None, FEED)) == 1
            with contextlib.suppress(Exception):
                made.end_profiling()
            assert len(made.run(None, FEED)) == 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        made.close()
        made = None
        as_before()
        """,
    )


@pytest.mark.timeout(120 + SESSIONS)
def test_many_sessions(python):
    said = run(
        python,
        f"""
        for _ in range(20):
            as_before()
        threads, rss, files = threading.active_count(), kib("VmRSS"), descriptors()
        for k in range({SESSIONS}):
            with session(schedule="0,1,2") as made:
                made.run(None, FEED)
                if k % 10 == 0:
                    made.submit(None, FEED).result(60)
        as_before()
        grown = kib("VmRSS") - rss
        print("sessions", {SESSIONS}, "KiB more", grown)
        assert threading.active_count() <= threads
        assert descriptors() <= files
        assert grown < 20_000 + 2 * {SESSIONS}, grown
        """,
    )
    print(said)


PENDING = """
npu.run_time_us = 20_000
made = session(schedule="0,1,2")
made.run(None, FEED)
{work}
print("ready", flush=True)
{end}
"""
WORK = {
    "submit": "futures = [made.submit(None, FEED) for _ in range(30)]",
    "map": "results = made.map([FEED] * 30); next(results)",
    "run_pipeline": "[made.run_pipeline(FEED, depth=8) for _ in range(8)]",
    "threads": "[threading.Thread(target=made.run, args=(None, FEED)).start() for _ in range(12)]",
    "a session that is dropped": "futures = [made.submit(None, FEED) for _ in range(30)]; del made",
}
#: What ends the process, and its exit codes.
ENDS = {
    "its last line": ("", (0,)),
    "sys.exit(3)": ("sys.exit(3)", (3,)),
    "an exception": ("raise ValueError", (1,)),
    "os._exit(4)": ("os._exit(4)", (4,)),
    "SIGTERM": ("time.sleep(60)", (-signal.SIGTERM,)),
    "Ctrl-C": ("time.sleep(60)", (-signal.SIGINT, 1, 130)),
    "Ctrl-C twice": ("time.sleep(60)", (-signal.SIGINT, 1, 130, 0)),
    "Ctrl-C all the time": ("time.sleep(60)", (-signal.SIGINT, 1, 130, 0)),
}


#: Python waits for its threads, and a second Ctrl-C ends that wait inside onnxruntime.
ALL = [(work, end) for work in WORK for end in ENDS if work != "threads" or not end.startswith("Ctrl-C ")]
CASES = ALL if EVERYTHING else [(w, e) for w, e in ALL if e == "its last line" or (w == "submit" and "all" not in e)]


@pytest.mark.parametrize(("work", "end"), CASES)
def test_the_process_ends_with_work_pending(work, end):
    """In seconds, with the exit code that it should have, and not by a crash."""
    code, expected = ENDS[end]
    env = {**os.environ, "ORT_RKNN_NO_TOP": "1", "ORT_RKNN_VIRTUAL_COMPUTE": "pattern"}
    program = BEGIN + PENDING.format(work=WORK[work], end=code)
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        if end == "SIGTERM":
            process.terminate()
        elif end.startswith("Ctrl-C"):
            process.send_signal(signal.SIGINT)
            for _ in range({"Ctrl-C twice": 1, "Ctrl-C all the time": 50}.get(end, 0)):
                try:
                    process.wait(0.05)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode in expected, said
    assert "Fatal" not in said, said


def test_the_limits_were_those_of_children():
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
