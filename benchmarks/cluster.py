"""Several boards with Ray: the throughput of two, three and four boards, and Ray's overhead per call.

    python benchmarks/cluster.py [--boards 1,2,4] [--seconds 6] [--inputs kB]      (extra "ray", opencv-python-headless)

Every board is a Ray node on 127.0.0.1 with a virtual RK3588 whose runs take 20 ms, so one board can do 150 runs/s.
Small inputs are measured in pairs: with groups, as by default, and with ``group=1``, where each is an actor call.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # 127.0.0.1 is this machine's address
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["ORT_RKNN_DEVICE"] = "virtual:rk3588"
os.environ["PYTHONPATH"] = str(Path(__file__).parent)

import cv2
import numpy as np
import onnx
import ray
from onnx import TensorProto, helper
from ray.cluster_utils import Cluster

import ort_rknn
from ort_rknn_ray import Boards, NpuModel

RUN_MS, CORES = 20, 3
IDEAL = CORES * 1000 / RUN_MS
#: Measured side by side: small feeds in groups, and each on its own.
GROUPS = (None, 1)
#: Minimum share of the boards' sum, for inputs up to 64 kB.
BAR = 0.9
#: Seconds before each measurement: nodes that were added are still starting workers.
WARM_UP = 2.0


class Timed(NpuModel):
    """An actor whose runs take 20 ms."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        from ort_rknn_virtual.control import virtual_npu

        virtual_npu("rk3588").run_time_us = RUN_MS * 1000
        super().__init__(*args, **kwargs)


class Decoding(Timed):
    """Takes an image as JPEG and decodes it on the board."""

    async def run(self, feed: dict[str, np.ndarray], output_names: object = None) -> list[np.ndarray]:
        picture = await asyncio.to_thread(cv2.imdecode, feed["jpeg"], cv2.IMREAD_COLOR)
        return await super().run({"x": np.ascontiguousarray(picture.transpose(2, 0, 1)[np.newaxis])}, output_names)


def jpeg() -> np.ndarray:
    """An image of 640x640 with enough noise for about 100 kB."""
    coarse = np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)
    _, encoded = cv2.imencode(".jpg", cv2.resize(coarse, (640, 640)), [cv2.IMWRITE_JPEG_QUALITY, 80])
    return encoded.ravel()


def model(folder: str, shape: tuple[int, ...], dtype: int) -> str:
    """A small model with a large input: a mean over every pixel."""
    nodes = [helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT)] if dtype != TensorProto.FLOAT else []
    nodes.append(helper.make_node("GlobalAveragePool", ["f" if nodes else "x"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, shape[1], 1, 1))],
    )
    path = os.path.join(folder, f"m{shape[2]}_{dtype}.onnx")
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def rate(boards: Boards, feed: dict[str, np.ndarray], seconds: float) -> tuple[float, float]:
    """Runs per second of one stream, after a warm-up, and the CPU time of this process and the actors per run, in
    milliseconds."""
    pids = (os.getpid(), *(told["pid"] for told in boards.describe()))
    started, done, cpu = time.perf_counter() + WARM_UP, 0, 0.0
    for _ in boards.map(feed for _ in count()):
        now = time.perf_counter()
        if now < started:
            continue
        cpu = cpu or sum(map(cpu_seconds, pids))
        done += 1
        if now - started > seconds:
            break
    wall = time.perf_counter() - started
    return done / wall, 1000 * (sum(map(cpu_seconds, pids)) - cpu) / done


def cpu_seconds(pid: int) -> float:
    """The CPU time of a process and its threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cost(path: str, feed: dict[str, np.ndarray], calls: int = 3000) -> None:
    """The overhead per call, compared with a local ``map``: runs take no time here, so all of it is the transport. CPU
    time is that of this process and the actor, without Ray's own processes."""

    def measured(name: str, stream: Callable[..., Iterator[object]], pids: Sequence[int]) -> None:
        for _ in stream(feed for _ in range(calls // 10)):
            pass
        cpu, started = sum(map(cpu_seconds, pids)), time.perf_counter()
        for _ in stream(feed for _ in range(calls)):
            pass
        wall = (time.perf_counter() - started) / calls * 1e6
        cpu = (sum(map(cpu_seconds, pids)) - cpu) / calls * 1e6
        print(f"cost of a call, {name}: {wall:.0f} us, of which CPU {cpu:.0f} us", flush=True)

    here = os.getpid()
    with ort_rknn.InferenceSession(path, provider_options={"schedule": "auto"}) as session:
        measured("local map", session.map, (here,))
    for group in GROUPS:
        with Boards(path, boards=1, group=group) as boards:
            (actor,) = boards.describe()
            measured("one board, one by one" if group else "one board", boards.map, (here, actor["pid"]))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--boards", default="1,2,3,4")
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--inputs", default="", help="only those whose name has this, such as kB")
    given = parser.parse_args()
    head = {"num_cpus": 2, "include_dashboard": False, "node_ip_address": "127.0.0.1"}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    missed = []
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        with tempfile.TemporaryDirectory() as folder:
            inputs = {
                "12 kB float32": ((1, 3, 32, 32), TensorProto.FLOAT),
                "64 kB float32": ((1, 1, 128, 128), TensorProto.FLOAT),
                "1.2 MB uint8": ((1, 3, 640, 640), TensorProto.UINT8),
                "4.9 MB float32": ((1, 3, 640, 640), TensorProto.FLOAT),
                "JPEG, decoded": ((1, 3, 640, 640), TensorProto.UINT8),
            }
            chosen = {name: value for name, value in inputs.items() if given.inputs in name}
            print(f"{'input':<16}{'calls':<12}{'boards':>7}{'runs/s':>9}{'of their sum':>14}{'CPU ms/run':>13}")
            for number in map(int, given.boards.split(",")):
                while len(cluster.list_all_nodes()) < number + 1:
                    cluster.add_node(num_cpus=1, resources={"rknpu": 1}, node_ip_address="127.0.0.1")
                cluster.wait_for_nodes()
                for name, (shape, dtype) in chosen.items():
                    feed = {"x": np.zeros(shape, helper.tensor_dtype_to_np_dtype(dtype))}
                    kind = Timed
                    if name == "JPEG, decoded":
                        feed, kind = {"jpeg": jpeg()}, Decoding
                    path = model(folder, shape, dtype)
                    for group in GROUPS if " kB" in name else (None,):
                        with Boards(path, actor_class=kind, boards=number, group=group) as boards:
                            got, cpu = rate(boards, feed, given.seconds)
                        share = got / (number * IDEAL)
                        told = "one by one" if group else "default"
                        print(f"{name:<16}{told:<12}{number:>7}{got:>9.0f}{share:>14.2f}{cpu:>13.2f}", flush=True)
                        if share < BAR and " kB" in name and group is None:
                            missed.append(f"{number} boards, {name}: {share:.2f}")
            shape, dtype = inputs["12 kB float32"]
            cost(model(folder, shape, dtype), {"x": np.zeros(shape, np.float32)})
    finally:
        ray.shutdown()
        cluster.shutdown()
    for text in missed:
        print(f"below {BAR}: {text}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
