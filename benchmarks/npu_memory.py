"""A frame in NPU memory costs less CPU time than one in an ordinary array, and a stream of them does not increase
memory.

One input of 1x640x640x3 uint8, which the model normalizes itself, is fed as an ordinary array, as an array in NPU
memory, and as such an array with the output in NPU memory too. The virtual NPU does in software, inside ``rknn_run``,
what the NPU does to a bound frame. That time is measured separately (in the runtime's events) and subtracted; the rest
is the program's CPU cost. The cost of ``rknn_inputs_set`` on a board is unknown.

Then frames are streamed over three cores, half of them in a ring of buffers, half in a new buffer each: 20,000, or
``ORT_RKNN_FRAMES``. Needs onnx.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import DEVICE, MODELS, SOC, Verdict, arguments

import ort_rknn as ort
from ort_rknn_virtual.control import virtual_npu

BAR = 0.5
RAW = {"device": DEVICE, "layout": "NHWC", "input_dtype": "uint8"}


def make_model(folder):
    """An ONNX with a mean over an image. It has no compiled twin, so a stand-in is used."""
    from onnx import TensorProto, helper, save

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 640, 640))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 3, 1, 1))
    node = helper.make_node("GlobalAveragePool", ["x"], ["y"])
    graph = helper.make_graph([node], "mean", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = Path(folder) / "mean.onnx"
    save(model, path)
    return path


def cost(npu, run, calls):
    """Medians in milliseconds per call: without the run itself, and in rknn_inputs_set."""
    rows = []
    for _ in range(calls + 3):
        since = npu.events()[-1].sequence
        begun = time.perf_counter_ns()
        run()
        took = time.perf_counter_ns() - begun
        spent = {"run": 0, "inputs_set": 0}
        for event in npu.events(since):
            if event.kind in spent:
                spent[event.kind] += event.end_ns - event.called_ns
        rows.append((took - spent["run"], spent["inputs_set"]))
    return tuple(statistics.median(column) / 1e6 for column in zip(*rows[3:]))


def compare(npu, verdict, calls, bar):
    with tempfile.TemporaryDirectory() as folder, ort.InferenceSession(make_model(folder), provider_options=RAW) as s:
        plain = np.zeros((1, 640, 640, 3), np.uint8)
        (one,) = s.buffers(1)
        (result,) = s.run(None, one)
        target = ort.empty(result.shape, result.dtype, device=DEVICE)
        binding = s.io_binding()
        binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(one["x"]))
        binding.bind_ortvalue_output("y", ort.OrtValue.ortvalue_from_numpy(target))
        ordinary, fed = cost(npu, lambda: s.run(None, {"x": plain}), calls)
        inward, none = cost(npu, lambda: s.run(None, one), calls)
        both, _ = cost(npu, lambda: s.run_with_iobinding(binding), calls)
    verdict.hold(
        f"ordinary array {ordinary:.3f} ms, {fed:.3f} of them in rknn_inputs_set; NPU memory {inward:.3f} ms; with the "
        f"output too {both:.3f} ms: {inward / ordinary:.2f}",
        inward < bar * ordinary and none == 0,
        f"ratio {bar}, and no rknn_inputs_set",
    )


def stream(npu, session, ring, frames):
    def feeds():
        for k in range(frames // 2):
            yield ring[k % len(ring)]
            yield {"x": ort.empty(ring[0]["x"].shape, np.uint8, device=DEVICE)}

    for _ in session.map(feeds(), copy=False, depth=len(ring)):
        pass
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/fd")), npu.counters().mems


def growth(npu, verdict, frames):
    model = MODELS / "conv_f16.onnx"
    with ort.InferenceSession(model, provider_options={**RAW, "schedule": "0,1,2"}) as session:
        ring = session.buffers(6)
        before = stream(npu, session, ring, min(2000, frames))
        begun = time.perf_counter()
        after = stream(npu, session, ring, frames)
        rate = frames / (time.perf_counter() - begun)
        counts = session._npu.executor.buffer_runs()
    grown = [b - a for a, b in zip(before, after)]
    verdict.hold(
        f"{frames} frames at {rate:.0f} a second: {grown[0]:+.1f} MiB, {grown[1]:+d} descriptors, "
        f"{grown[2]:+d} imports",
        grown[0] < 4 and max(grown[1:]) <= 12 and not counts.usual and npu.counters().misuses == 0,
        "4 MiB, 12 descriptors and imports, every frame bound",
    )


def main():
    given = arguments(__doc__)
    os.environ["ORT_RKNN_VIRTUAL_COMPUTE"] = "pattern"
    npu, verdict = virtual_npu(SOC), Verdict()
    compare(npu, verdict, *((10, 2.0) if given.quick else (100, BAR)))
    growth(npu, verdict, 600 if given.quick else int(os.environ.get("ORT_RKNN_FRAMES", "20000")))
    return verdict.end()


if __name__ == "__main__":
    sys.exit(main())
