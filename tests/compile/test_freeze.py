"""``convert --freeze``: the model with fewer inputs is a separate model, and its compiled model is found."""

import os

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from support.models_in_parts import value, weights

from ort_rknn._cli.main import main


@pytest.fixture
def scaled(tmp_path):
    """Conv, times an input ``gain``; the weights are in a file beside the ONNX."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4), helper.make_node("Mul", ["a", "gain"], ["y"])]
    inputs = [value("x", [1, 3, 32, 32]), value("gain", [])]
    graph = helper.make_graph(nodes, "g", inputs, [value("y", [1, 8, 32, 32])], [weights("w", (8, 3, 3, 3), 1)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    return path


@pytest.mark.parametrize("out", [False, True])
def test_a_frozen_model_has_a_file_of_its_own(scaled, toolkit, tmp_path, capsys, monkeypatch, out):
    monkeypatch.setenv("FAKE_TOOLKIT_ANY", "conv_f16.rk3588.rknn")
    before = scaled.read_bytes()
    folder = tmp_path / "board" if out else tmp_path
    to = ("-o", os.fspath(folder)) if out else ()
    argv = ["convert", os.fspath(scaled), "--target", "rk3588", "--freeze", "gain=2.5", *to]
    assert main([*argv, "--toolkit", toolkit.python]) == 0
    said = capsys.readouterr().out
    assert f'InferenceSession("{folder / "m.frozen.onnx"}")' in said
    assert "input 'gain' is the constant 2.5" in said
    made = {"m.data", "m.frozen.convert.log", "m.frozen.onnx", "m.frozen.rk3588.build.json", "m.frozen.rk3588.rknn"}
    assert set(os.listdir(folder)) == (made if out else made | {"m.onnx"})
    assert scaled.read_bytes() == before
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    cpu = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(folder / "m.frozen.onnx"), providers=cpu)
    assert [v.name for v in session.get_inputs()] == ["x"]
    want = onnxruntime.InferenceSession(str(scaled), providers=cpu).run(
        None, {"x": x, "gain": np.array(2.5, np.float32)}
    )
    np.testing.assert_allclose(session.run(None, {"x": x})[0], want[0], rtol=1e-4, atol=1e-4)


def test_a_value_that_does_not_fit_leaves_nothing(scaled, toolkit, tmp_path, capsys):
    argv = ["convert", os.fspath(scaled), "--target", "rk3588", "--freeze", "gain=[1,2]", "-o", str(tmp_path / "out")]
    assert main([*argv, "--toolkit", toolkit.python]) == 1
    assert "'gain'" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["m.data", "m.onnx"]
