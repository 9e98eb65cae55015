"""What NPU memory saves: the CPU's part of a call, against the copying path, on the virtual NPU.

    python benchmarks/npu_memory.py [calls] [frames]

One input of 1x640x640x3 uint8, which the model normalizes itself, is fed as an ordinary array, as an array in NPU
memory, and as such an array with the output in NPU memory too. Then ``frames`` runs (100,000 by default) show that
nothing grows.

The virtual NPU does in software what the NPU does to a bound frame, inside ``rknn_run``; so that is measured apart (in
the runtime's own events) and taken off: what is left is what a program's CPU pays. What ``rknn_inputs_set`` costs on a
board is not known here. Exits with 1 where the bound path takes more of the CPU than the copying one, or memory grows.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import ort_rknn as ort
from ort_rknn_virtual.control import VirtualNpu, virtual_npu

SHAPE = (1, 3, 640, 640)


def make_model(folder: Path) -> str:
    """An ONNX with a mean over a picture. It has no compiled twin: a stand-in takes its place."""
    from onnx import TensorProto, helper, save

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 3, 1, 1))
    node = helper.make_node("GlobalAveragePool", ["x"], ["y"])
    model = helper.make_model(
        helper.make_graph([node], "mean", [x], [y]), opset_imports=[helper.make_opsetid("", 13)], ir_version=8
    )
    save(model, folder / "mean.onnx")
    return str(folder / "mean.onnx")


def cost(npu: VirtualNpu, calls: int, run: Callable[[], object]) -> tuple[float, float, float]:
    """Medians in milliseconds a call: latency; what is left of it without the run itself; time in rknn_inputs_set."""
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
        rows.append((took, took - spent["run"], spent["inputs_set"]))
    latency, rest, fed = (statistics.median(column) / 1e6 for column in zip(*rows[3:]))
    return latency, rest, fed


def resident() -> int:
    """KiB of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def compare(npu: VirtualNpu, model: str, calls: int) -> bool:
    options = {"device": "virtual:rk3588", "layout": "NHWC", "input_dtype": "uint8"}
    with ort.InferenceSession(model, provider_options=options) as session:
        plain = np.zeros((1, 640, 640, 3), np.uint8)
        (one,) = session.buffers(1)
        (result,) = session.run(None, one)
        target = ort.empty(result.shape, result.dtype, device="virtual:rk3588")
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(one["x"]))
        binding.bind_ortvalue_output("y", ort.OrtValue.ortvalue_from_numpy(target))
        ways: dict[str, Callable[[], object]] = {
            "ordinary array": lambda: session.run(None, {"x": plain}),
            "NPU memory in": lambda: session.run(None, one),
            "NPU memory in and out": lambda: session.run_with_iobinding(binding),
        }
        print(f"{'ms per call':<24}{'latency':>9}{'without run':>13}{'inputs_set':>12}")
        costs = {}
        for name, run in ways.items():
            costs[name] = cost(npu, calls, run)
            print(f"{name:<24}" + "".join(f"{n:>{w}.3f}" for n, w in zip(costs[name], (9, 13, 12))))
    return costs["NPU memory in"][1] <= costs["ordinary array"][1]


def grows(npu: VirtualNpu, frames: int) -> bool:
    """Half of the frames in a ring of buffers, half in a new buffer each."""
    model = Path(__file__).parents[1] / "tests" / "models" / "conv_f16.onnx"
    options = {"device": "virtual:rk3588", "layout": "NHWC", "input_dtype": "uint8", "schedule": "0,1,2"}
    with ort.InferenceSession(model, provider_options=options) as session:
        ring = session.buffers(6)

        def feeds(number: int) -> object:
            for k in range(number // 2):
                yield ring[k % 6]
                yield {"x": ort.empty(ring[0]["x"].shape, np.uint8, device="virtual:rk3588")}

        def stream(number: int) -> tuple[int, int, int]:
            for _ in session.map(feeds(number), copy=False, depth=6):  # type: ignore[arg-type]
                pass
            return resident(), len(os.listdir("/proc/self/fd")), npu.counters().mems

        before = stream(2000)
        begun = time.perf_counter()
        after = stream(frames)
        rate = frames / (time.perf_counter() - begun)
    print(
        f"{frames} frames at {rate:.0f} a second: {before[0]} to {after[0]} KiB, "
        f"{after[1]} descriptors, {after[2]} mems"
    )
    return after[0] > before[0] * 1.05 + 2048 or after[1] > before[1] + 12 or after[2] > before[2] + 12


def main() -> int:
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    frames = int(sys.argv[2]) if len(sys.argv) > 2 else 100_000
    npu = virtual_npu("rk3588")
    with tempfile.TemporaryDirectory() as folder:
        good = compare(npu, make_model(Path(folder)), calls)
    if frames and grows(npu, frames):
        print("memory grows")
        good = False
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
