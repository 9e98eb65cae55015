"""The cost of a proof, which runs whenever a session is created."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
from support.independence_models import model, node

from ort_rknn._independence import independence_of


def network(blocks: int, channels: int = 8) -> bytes:
    """Five nodes a block: two convolutions and what exports put around them."""
    nodes, constants, last = [], {}, "x"
    for at in range(blocks):
        constants[f"w{at}"] = np.zeros((channels, channels, 3, 3), np.float32)
        constants[f"b{at}"] = np.zeros(channels, np.float32)
        conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1], "dilations": [1, 1], "group": 1}
        nodes += [
            node("Conv", f"{last} w{at} b{at}", f"c{at}", name=f"/block{at}/conv1/Conv", **conv),
            node("Sigmoid", f"c{at}", f"s{at}", name=f"/block{at}/act/Sigmoid"),
            node("Mul", f"c{at} s{at}", f"m{at}", name=f"/block{at}/act/Mul"),
            node("Conv", f"m{at} w{at} b{at}", f"d{at}", name=f"/block{at}/conv2/Conv", **conv),
            node("Add", f"d{at} {last}", f"y{at}", name=f"/block{at}/Add"),
        ]
        last = f"y{at}"
    return model(nodes, {"x": ["N", channels, 32, 32]}, [last], constants)


def plain_python() -> float:
    """CPU seconds of a fixed amount of plain Python: 10 to 14 ms on a machine on which the proof takes as long."""
    began = time.process_time()
    found: dict[str, list[tuple[int, ...]]] = {}
    for number in range(20_000):
        parts = [number, number + 1, number + 2]
        found.setdefault(str(number % 100), []).append(tuple(part % 7 for part in parts if isinstance(part, int)))
    return time.process_time() - began


def test_500_nodes_take_at_most_1_4_times_as_long_as_plain_python():
    """15 ms where plain Python takes 10.7. A slower or busier machine is slower at both."""
    content = network(100)
    times, references = [], []
    for _ in range(9):
        references.append(plain_python())
        began = time.process_time()
        assert independence_of(content).proved
        times.append(time.process_time() - began)
    assert min(times) < 1.4 * min(references), f"{min(times) * 1e3:.1f} ms, plain Python {min(references) * 1e3:.1f}"


def test_weights_are_not_read(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(network(4, channels=512))
    assert path.stat().st_size > 32 << 20
    independence_of(path)  # whatever is made once
    tracemalloc.start()
    try:
        assert independence_of(path).proved
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_it_takes_no_onnx(tmp_path):
    """The product does not import onnx, which takes longer to import than onnxruntime."""
    import subprocess
    import sys

    path = tmp_path / "m.onnx"
    path.write_bytes(network(1))
    code = (
        "import sys; from ort_rknn._independence import independence_of; "
        f"assert independence_of({str(path)!r}).proved; assert 'onnx' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
