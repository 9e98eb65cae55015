"""The callable for Ray Data's map_batches, without Ray: rows are grouped into the model's batches."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from support.virtual_sessions import MODELS, VIRTUAL, virtual_rk3588

import ort_rknn
from ort_rknn_ray._data import NpuBatches
from ort_rknn_ray._samples import SampleForm, filled

npu = pytest.fixture(virtual_rk3588)
RNG = np.random.default_rng(5)


def batches(name, **options):
    return NpuBatches(str(MODELS / f"{name}.onnx"), provider_options=VIRTUAL, **options)


def random(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def on_cpu(name, feed):
    return onnxruntime.InferenceSession(MODELS / f"{name}.onnx", providers=["CPUExecutionProvider"]).run(None, feed)


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 8])
def test_a_model_for_four_samples_gets_four_rows_at_a_time(npu, rows):
    x = random(rows, 3, 16, 16)
    whole = filled(x, 8)
    want = np.concatenate([on_cpu("batch4", {"x": whole[k : k + 4]})[0] for k in (0, 4)])[:rows]
    mapper = batches("batch4")
    made = mapper({"x": x, "label": np.arange(rows)})
    assert list(made) == ["x", "label", "y"]
    assert made["y"].shape == (rows, 5)
    np.testing.assert_allclose(made["y"], want, atol=0.01)
    assert mapper.session.stats().total.runs == -(-rows // 4)
    mapper.session.close()


def test_a_free_batch_is_one_call(npu, monkeypatch):
    x = random(7, 3, 16, 16)
    mapper = batches("free_batch")
    shapes = []
    run = mapper.session.run
    monkeypatch.setattr(
        mapper.session, "run", lambda names, feed, *more: shapes.append(feed["x"].shape) or run(names, feed, *more)
    )
    made = mapper({"x": x})
    np.testing.assert_allclose(made["y"], on_cpu("free_batch", {"x": x})[0], atol=0.01)
    assert shapes == [(7, 3, 16, 16)]
    mapper.session.close()


def test_without_a_batch_each_row_is_a_call_and_keeps_its_place(npu):
    x = random(20, 3, 32, 32)
    mapper = batches("conv_f16")
    made = mapper({"x": x})
    want = np.concatenate([on_cpu("conv_f16", {"x": row[None]})[0] for row in x])
    np.testing.assert_allclose(made["y"], want, atol=0.01)
    assert mapper.session.stats().total.runs == 20
    mapper.session.close()


def test_rows_that_are_whole_inputs(npu):
    """A row with as many axes as the input is all of it, and its outputs are whole too."""
    x = random(3, 1, 3, 32, 32)
    mapper = batches("conv_f16")
    made = mapper({"x": x})
    assert made["y"].shape == (3, 1, 8, 16, 16)
    np.testing.assert_allclose(made["y"], np.stack([on_cpu("conv_f16", {"x": row})[0] for row in x]), atol=0.01)
    mapper.session.close()
    four = batches("batch4")
    assert four({"x": random(2, 4, 3, 16, 16)})["y"].shape == (2, 4, 5)
    four.session.close()


def test_inputs_with_and_without_samples(npu):
    """v is [8] and m [1, 4, 8]: v has no first axis to leave out."""
    v, m = random(5, 8), random(5, 4, 8)
    mapper = batches("scalarish", columns={"v": "vector", "m": "matrix"})
    made = mapper({"vector": v, "matrix": m})
    wants = [on_cpu("scalarish", {"v": v[k], "m": m[k][None]}) for k in range(5)]
    for i, (name, shape) in enumerate({"grid": (5, 4, 8), "line": (5, 8), "point": (5,)}.items()):
        assert made[name].shape == shape
        np.testing.assert_allclose(made[name], np.stack([w[i].reshape(shape[1:]) for w in wants]), atol=0.02)
    mapper.session.close()


def test_two_inputs(npu):
    a, b = random(4, 3, 16, 16), random(4, 16)
    mapper = batches("two_io")
    made = mapper({"a": a, "b": list(b)})
    wants = [on_cpu("two_io", {"a": a[k][None], "b": b[k][None]}) for k in range(4)]
    np.testing.assert_allclose(made["map"], np.concatenate([w[0] for w in wants]), atol=0.02)
    np.testing.assert_allclose(made["vector"], np.concatenate([w[1] for w in wants]), atol=0.02)
    mapper.session.close()


def test_rows_of_different_shapes(npu):
    rows = [random(3, 32, 32), random(3, 16, 24), random(3, 32, 32)]
    column = np.empty(3, object)
    column[:] = rows
    mapper = batches("dynamic")
    made = mapper({"x": column})
    assert made["y"].dtype == object
    for row, got in zip(rows, made["y"]):
        np.testing.assert_allclose(got, on_cpu("dynamic", {"x": row[None]})[0][0], atol=0.02)
    same = np.empty(2, object)
    same[:] = rows[::2]
    assert mapper({"x": same})["y"].shape == (2, 4, 32, 32)
    mapper.session.close()


def test_an_empty_batch_and_what_is_wrong(npu):
    mapper = batches("conv_f16")
    empty = {"x": np.empty((0, 3, 32, 32), np.float32)}
    assert mapper(empty) == empty
    with pytest.raises(KeyError, match="no column 'x'; it has 'picture'"):
        mapper({"picture": random(1, 3, 32, 32)})
    with pytest.raises(Exception, match="x"):
        mapper({"x": random(2, 3, 5, 5)})
    mapper.session.close()
    with pytest.raises(ValueError, match="no input 'images'; it has 'x'"):
        batches("conv_f16", columns={"images": "x"})


def saved(path, nodes, x, y):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return str(path)


def on_the_cpu(path):
    with pytest.warns(ort_rknn.FallbackWarning, match="runs on the CPU"):
        return NpuBatches(path, on_cpu="serve")


def test_samples_that_depend_on_each_other_are_run_one_by_one(tmp_path):
    """A batch would give other results: each row minus the mean of the batch."""
    path = saved(
        tmp_path / "mean.onnx",
        [helper.make_node("ReduceMean", ["x"], ["m"], axes=[0]), helper.make_node("Sub", ["x", "m"], ["y"])],
        ["n", 4],
        ["n", 4],
    )
    mapper = on_the_cpu(path)
    np.testing.assert_array_equal(mapper({"x": random(5, 4)})["y"], np.zeros((5, 4)))
    mapper.session.close()


def test_on_the_cpu_a_proved_batch_is_one_call(tmp_path):
    path = saved(tmp_path / "relu.onnx", [helper.make_node("Relu", ["x"], ["y"])], ["n", 4], ["n", 4])
    mapper = on_the_cpu(path)
    assert SampleForm(mapper.session, path).length is None
    x = random(5, 4)
    np.testing.assert_array_equal(mapper({"x": x})["y"], np.maximum(x, 0))
    mapper.session.close()


def test_an_output_whose_first_axis_counts_something_else(tmp_path):
    """Detections: their number differs by image. A single detection stays a row of one."""
    nodes = [helper.make_node("NonZero", ["x"], ["i"]), helper.make_node("Transpose", ["i"], ["t"], perm=[1, 0])]
    nodes.append(helper.make_node("Cast", ["t"], ["y"], to=TensorProto.FLOAT))
    mapper = on_the_cpu(saved(tmp_path / "found.onnx", nodes, [1, 4], ["found", 2]))
    made = mapper({"x": np.array([[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], np.float32)})
    assert [row.shape for row in made["y"]] == [(2, 2), (1, 2), (0, 2)]
    made = mapper({"x": np.array([[1, 0, 0, 0], [0, 0, 0, 1]], np.float32)})
    assert made["y"].shape == (2, 1, 2)
    mapper.session.close()
