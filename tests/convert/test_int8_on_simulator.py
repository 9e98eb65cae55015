"""int8 with the vendor's converter, judged on its simulator."""

import numpy as np
import onnxruntime
import pytest
from support.convert_models import FLOAT

import ort_rknn
from ort_rknn._cli.main import main
from ort_rknn._compile.convert import ConvertOptions, convert


def samples():
    random = np.random.default_rng(1)
    return [random.random((1, 3, 32, 32), dtype=np.float32) for _ in range(24)]


def detector(maker, path):
    """Boxes up to some hundreds and scores up to 1 in one output."""
    maker.conv("x", "a", 16, 3, stride=2)
    maker.add("Relu", ["a"], ["b"])
    maker.conv("b", "c", 32, 16, stride=2)
    maker.add("Sigmoid", ["c"], ["s"])
    maker.add("Mul", ["c", "s"], ["d"])
    maker.conv("d", "box", 4, 32, kernel=1)
    maker.conv("d", "cls", 5, 32, kernel=1)
    maker.constant("to_boxes", np.array([1, 4, 64]))
    maker.constant("to_scores", np.array([1, 5, 64]))
    maker.constant("stride", np.float32(40))
    maker.constant("anchors", np.float32(np.linspace(100, 600, 64)))
    maker.add("Reshape", ["box", "to_boxes"], ["box_r"])
    maker.add("Mul", ["box_r", "stride"], ["box_s"])
    maker.add("Add", ["box_s", "anchors"], ["boxes"])
    maker.add("Reshape", ["cls", "to_scores"], ["cls_r"])
    maker.add("Sigmoid", ["cls_r"], ["scores"])
    maker.add("Concat", ["boxes", "scores"], ["y"], axis=1)
    return maker.save(path, [("x", FLOAT, [1, 3, 32, 32])], [("y", FLOAT, [1, 9, 64])])


def test_a_detector_keeps_its_scores_with_all_its_work_in_int8(maker, tmp_path, real_toolkit):
    path = detector(maker, tmp_path / "d.onnx")
    report = convert(path, ConvertOptions(("rk3588",), int8=samples), toolkit=real_toolkit)
    (made,) = report.compiled
    assert made.quantized >= 0.9
    assert "cosine" in made.int8[0] and "taken" in made.int8[-1]
    assert "within the bound" in made.int8[-1]
    assert {fate.operator for fate in made.fates if fate.where == "CPU"} >= {"Concat", "Add"}
    assert "INT8" in {layer.dtype for part in made.parts for layer in part.layers}
    feed = {"x": samples()[0]}
    session = ort_rknn.InferenceSession(
        made.path, providers=[("RKNNExecutionProvider", {"device": "virtual:rk3588"}), "CPUExecutionProvider"]
    )
    assert session.run(None, feed)[0].shape == (1, 9, 64)
    assert onnxruntime.InferenceSession(path).run(None, feed)[0].shape == (1, 9, 64)


def test_check_repeats_the_build_on_the_simulator_and_names_whose_numbers(maker, tmp_path, real_toolkit, capsys):
    path = detector(maker, tmp_path / "d.onnx")
    of = ("--toolkit", real_toolkit.python)
    np.savez(tmp_path / "data.npz", x=np.stack(samples()))
    assert main(["convert", str(path), "--target", "rk3588", "--int8", str(tmp_path / "data.npz"), *of]) == 0
    capsys.readouterr()
    assert main(["check", str(path), "--simulator", "rk3588", *of]) == 0
    out = capsys.readouterr().out
    assert "the vendor's simulator's" in out and "verdict: accurate" in out and "24 samples" in out
    assert main(["check", str(path), "--device", "virtual:rk3588"]) == 0
    out = capsys.readouterr().out
    assert "plumbing only" in out and "accurate" not in out
    np.savez(tmp_path / "data.npz", x=np.stack(samples()[:20]))
    assert main(["check", str(path), "--simulator", "rk3588", *of]) == 1
    assert "holds other samples" in capsys.readouterr().err


def convolutions(maker, path, dims):
    maker.conv("x", "a", 16, 3)
    maker.add("Relu", ["a"], ["b"])
    maker.conv("b", "y", 4, 16)
    return maker.save(path, [("x", FLOAT, dims)], [("y", FLOAT, [dims[0], 4, *dims[2:]])])


def test_int8_with_a_batch(maker, tmp_path, real_toolkit):
    path = convolutions(maker, tmp_path / "b.onnx", ["N", 3, 32, 32])
    report = convert(path, ConvertOptions(("rk3588",), batch=4, int8=samples), toolkit=real_toolkit)
    (part,) = report.compiled[0].parts
    assert [tensor.shape for tensor in part.file.inputs] == [(4, 3, 32, 32)]
    assert {layer.dtype for layer in part.layers} == {"INT8"}
    assert not any("1 sample" in note for note in report.notes)


def test_int8_with_shape_sets_has_the_scales_of_the_largest(maker, tmp_path, real_toolkit):
    path = convolutions(maker, tmp_path / "s.onnx", [1, 3, "H", "W"])
    sets = ({"x": (1, 3, 16, 32)}, {"x": (1, 3, 32, 32)})
    report = convert(path, ConvertOptions(("rk3588",), shapes=sets, int8=samples), toolkit=real_toolkit)
    (part,) = report.compiled[0].parts
    assert set(part.file.shape_sets) == {((1, 3, 16, 32),), ((1, 3, 32, 32),)}
    assert {layer.dtype for layer in part.layers} == {"INT8"}
    assert any("largest set" in note for note in report.notes)


def test_a_classifier_needs_no_cut(maker, tmp_path, real_toolkit):
    maker.conv("x", "a", 16, 3, stride=2)
    maker.add("Relu", ["a"], ["b"])
    maker.conv("b", "c", 10, 16)
    maker.add("GlobalAveragePool", ["c"], ["p"])
    maker.add("Flatten", ["p"], ["y"])
    path = maker.save(tmp_path / "c.onnx", [("x", FLOAT, [1, 3, 32, 32])], [("y", FLOAT, [1, 10])])
    (made,) = convert(path, ConvertOptions(("rk3588",), int8=samples), toolkit=real_toolkit).compiled
    assert made.whole
    assert made.quantized == pytest.approx(1)
    assert made.path.endswith("c.rk3588.rknn")
