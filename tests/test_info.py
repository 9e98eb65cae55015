"""``ort_rknn.info``: a model file's metadata, as a Python call."""

import json
import os
import shutil
import subprocess
import sys

import onnx
import pytest
from onnx import TensorProto, helper

import ort_rknn
from ort_rknn._cli.main import main
from ort_rknn.files import OnnxFileError, RknnFileError


def test_a_compiled_model(models):
    found = ort_rknn.info(models / "conv_i8.rk3588.rknn")
    assert (found.kind, found.onnx, found.twins) == ("rknn", None, ())
    assert found.size == (models / "conv_i8.rk3588.rknn").stat().st_size
    assert found.rknn.targets == ("rk3588",) and found.nowhere == ()
    convolutions = [each for each in found.operators if each.operator.startswith("Conv")]
    assert convolutions and all(each.where == "NPU" and each.splits for each in convolutions)
    assert found.memory.weights > 0 and found.memory.internal > 0


def test_an_onnx_and_its_twins(models):
    found = ort_rknn.info(os.fspath(models / "conv_f16.onnx"))
    assert (found.kind, found.rknn, found.memory) == ("onnx", None, None)
    assert found.onnx.node_count == sum(each.count for each in found.operators)
    assert any(twin.startswith("conv_f16.rk3588.rknn, for rk3588") for twin in found.twins)


@pytest.mark.parametrize("name", ["conv_f16.onnx", "conv_i8.rk3588.rknn", "dynamic.rk3588.rknn"])
def test_the_command_prints_the_same(models, capsys, name):
    path = os.fspath(models / name)
    assert main(["info", path, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.pop("schema") == "ort-rknn/info/1"
    assert told == json.loads(json.dumps(ort_rknn.info(path).as_json()))


def test_files_that_are_no_models(models, tmp_path):
    cut = tmp_path / "cut.rknn"
    cut.write_bytes((models / "conv_i8.rk3588.rknn").read_bytes()[:3000])
    with pytest.raises(RknnFileError, match="cut short"):
        ort_rknn.info(cut)
    (tmp_path / "empty.rknn").write_bytes(b"")
    with pytest.raises(RknnFileError, match=r"not an \.rknn model; it looks like an empty file"):
        ort_rknn.info(tmp_path / "empty.rknn")
    poem = tmp_path / "poem.onnx"
    poem.write_text("a rose is a rose")
    with pytest.raises(OnnxFileError):
        ort_rknn.info(poem)
    with pytest.raises(FileNotFoundError):
        ort_rknn.info(tmp_path / "none.onnx")


def nodes(tmp_path, *made, opsets=(("", 17),)):
    graph = helper.make_graph(
        list(made),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    ids = [helper.make_opsetid(*each) for each in opsets]
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=ids, ir_version=8), path)
    return path


def test_an_operator_that_no_runtime_has(tmp_path):
    path = nodes(tmp_path, helper.make_node("Tan", ["x"], ["t"]), helper.make_node("Relu", ["t"], ["y"]))
    found = ort_rknn.info(path)
    assert [each.operator for each in found.nowhere] == ["Tan"]
    assert [(each.operator, each.where) for each in found.operators] == [("Relu", "NPU"), ("Tan", "nowhere")]
    assert main(["info", os.fspath(path)]) == 1


def test_a_constant_is_a_weight_and_needs_no_trial_build(tmp_path, capsys):
    value = helper.make_tensor("v", TensorProto.FLOAT, [1, 4], [1.0] * 4)
    path = nodes(
        tmp_path, helper.make_node("Constant", [], ["c"], value=value), helper.make_node("Add", ["x", "c"], ["y"])
    )
    assert main(["info", os.fspath(path)]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("Constant "))
    assert "it becomes a weight" in line and "trial build" not in line


def test_a_model_with_contexts_needs_no_twin(tmp_path, capsys):
    context = helper.make_node(
        "EPContext",
        ["x"],
        ["y"],
        domain="com.microsoft",
        embed_mode=0,
        ep_cache_context="m.rknn",
        source="RKNNExecutionProvider",
    )
    path = nodes(tmp_path, context, opsets=(("", 17), ("com.microsoft", 1)))
    assert main(["info", os.fspath(path)]) == 0
    out = capsys.readouterr().out
    assert "the compiled model that it names" in out and "no compiled model lies beside it" not in out


def test_it_is_imported_when_used(models, tmp_path):
    shutil.copy(models / "conv_i8.rk3588.rknn", tmp_path / "m.rknn")
    code = (
        "import sys, ort_rknn; assert 'ort_rknn._measure.info' not in sys.modules; "
        "print(ort_rknn.info('m.rknn').kind); assert not any(name.startswith('ort_rknn._cli') for name in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "rknn\n"
