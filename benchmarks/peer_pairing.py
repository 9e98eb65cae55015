"""Shared by the comparisons with EZ RKNN Async: both libraries in one process, on one virtual NPU, alternating.

The other library is the wheel ztu-somemodelruntime-ez-rknn-async 0.11.0 for x86_64. It is installed in this environment
(tox -e peer), or in that of the interpreter named by ORT_RKNN_PEER_PYTHON, which then runs the benchmark and also needs
numpy, onnxruntime and pluggy.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import sys
import threading
import time

os.environ["ORT_RKNN_VIRTUAL_COMPUTE"] = "pattern"

from measure import DEVICE, MODELS, SOC

PEER = "ztu_somemodelruntime_ez_rknn_async"
CONV = MODELS / f"conv_f16.{SOC}.rknn"


def both():
    """(the peer's module, our implementation of its API, the virtual NPU). May not return: the process is replaced, or
    exits with 3."""
    if importlib.util.find_spec(PEER) is None:
        python = os.environ.get("ORT_RKNN_PEER_PYTHON")
        if not python or os.environ.get("_IN_PEER_PYTHON"):
            print(f"not measured: {PEER} is not installed here, and ORT_RKNN_PEER_PYTHON names no Python that has it")
            sys.exit(3)
        environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        os.execve(python, [python, *sys.argv], {**environ, "_IN_PEER_PYTHON": "1"})
    from ort_rknn_virtual.control import virtual_npu

    npu = virtual_npu(SOC)
    npu.reset()
    os.environ["ZTU_RKNPU2_RUNTIME_LIBRARY"] = str(npu.library)  # what the peer opens: the same NPU
    peer = importlib.import_module(PEER)
    os.environ["ORT_RKNN_DEVICE"] = DEVICE
    import ort_rknn_ez_async as face

    return peer, face, npu


def session_of_ours(model=CONV, **options):
    """Our own session, through onnxruntime."""
    import ort_rknn

    session = ort_rknn.InferenceSession(model, provider_options=[{"device": DEVICE, **options}])
    assert session.get_providers()[0] == "RKNNExecutionProvider", session.explain()
    return session


def ones(session):
    """A feed of ones for any of the sessions."""
    import numpy as np

    return {i.name: np.ones(i.shape, np.float32) for i in session.get_inputs()}


def throughput(run, callers, seconds):
    """Calls per second of ``callers`` threads that call ``run`` concurrently."""
    counts = [0] * callers
    failed = []
    begin = threading.Barrier(callers + 1)
    end = float("inf")

    def call(k):
        begin.wait()
        try:
            while time.perf_counter() < end:
                run()
                counts[k] += 1
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=call, args=(k,)) for k in range(callers)]
    for thread in threads:
        thread.start()
    begin.wait()
    start = time.perf_counter()
    end = start + seconds
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return sum(counts) / (time.perf_counter() - start)


def in_turns(ours, theirs, turns):
    """Median of ours / theirs over the turns, and both medians; the order changes with every turn."""
    pairs = []
    for turn in range(turns):
        if turn % 2:
            b = theirs()
            a = ours()
        else:
            a, b = ours(), theirs()
        pairs.append((a, b))
    return (
        statistics.median(a / b for a, b in pairs),
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
    )
