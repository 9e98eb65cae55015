"""A large ONNX is not in memory twice while it is converted in parts, and nodes on the CPU keep their weights."""

import os
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from support.models_in_parts import value

#: Converts, and prints how much the memory of this process has grown, in bytes.
SCRIPT = """
import resource, sys
path, python = sys.argv[1:]
import onnx, onnxruntime
from ort_rknn._compile.convert import ConvertOptions, convert
from ort_rknn._compile.toolkit import find_toolkit
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
made = convert(path, ConvertOptions(("rk3588",)), toolkit=find_toolkit(python))
assert not made.compiled[0].whole
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
WIDTH = 25_000


def write(path, width, **how):
    """MatMul, operators that no NPU has with a Mul between them, MatMul with small weights."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Reshape", ["a", "squares"], ["s"]),
        # The stand-in for the converter refuses a model with a node of this name.
        helper.make_node("Det", ["s"], ["d"], name="a.domain"),
        helper.make_node("Mul", ["d", "on_cpu"], ["e"]),
        helper.make_node("SequenceConstruct", ["e"], ["only"]),
        helper.make_node("SequenceAt", ["only", "first"], ["f"]),
        helper.make_node("Reshape", ["f", "row"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]
    constants = {
        "w": random.standard_normal((1024, width), dtype=np.float32),
        "squares": np.array([width // 4, 2, 2]),
        "on_cpu": random.random(width // 4, dtype=np.float32) / 1000,
        "first": np.array(0),
        "row": np.array([1, width // 4]),
        "v": random.random((width // 4, 4), dtype=np.float32),
    }
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", [value("x", [1, 1024])], [value("y", [1, 4])], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path, **how)


def test_a_model_of_100_mb_in_parts(toolkit, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_TOOLKIT_ANY", "conv_f16.rk3588.rknn")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = str(tmp_path / "m.onnx")
    write(path, WIDTH)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, path, toolkit.python], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    size = os.path.getsize(path)
    assert size > 100_000_000
    assert int(done.stdout) < 2 * size
    in_parts = onnx.load(tmp_path / "m.rk3588_ctx.onnx")
    assert {t.name for t in in_parts.graph.initializer} >= {"on_cpu"}
    assert os.path.getsize(tmp_path / "m.rk3588_ctx.onnx") < 1_000_000


def test_weights_in_a_file_of_their_own_stay_with_the_nodes_on_the_cpu(toolkit, tmp_path, monkeypatch):
    """The converter's folder has links to the file, which the package onnx then refuses to read."""
    from ort_rknn._compile.convert import ConvertOptions, convert

    monkeypatch.setenv("FAKE_TOOLKIT_ANY", "conv_f16.rk3588.rknn")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "m.onnx"
    write(path, 4000, save_as_external_data=True, location="m.data", size_threshold=1024)
    convert(path, ConvertOptions(("rk3588",)), toolkit=toolkit)
    want = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    in_parts = onnx.load(tmp_path / "m.rk3588_ctx.onnx", load_external_data=False)
    (kept,) = (t for t in in_parts.graph.initializer if t.name == "on_cpu")
    np.testing.assert_array_equal(numpy_helper.to_array(kept), want["on_cpu"])


def test_a_large_graph_is_the_same_without_its_weights(tmp_path, monkeypatch):
    from ort_rknn._compile import graph

    monkeypatch.setattr(graph, "_LARGE", 0)
    path = str(tmp_path / "m.onnx")
    write(path, 400)
    small = graph.load_graph(path)
    assert small.ByteSize() < os.path.getsize(path) / 100
    assert [n.SerializeToString() for n in small.graph.node] == [
        n.SerializeToString() for n in onnx.load(path).graph.node
    ]
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(tmp_path))
    x = np.random.default_rng(1).standard_normal((1, 1024)).astype(np.float32)
    cpu = ["CPUExecutionProvider"]
    got = onnxruntime.InferenceSession(small.SerializeToString(), options, providers=cpu).run(None, {"x": x})
    want = onnxruntime.InferenceSession(path, providers=cpu).run(None, {"x": x})
    np.testing.assert_allclose(got[0], want[0], rtol=1e-4)
