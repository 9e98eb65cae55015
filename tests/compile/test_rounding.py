"""Weights that are rounded for int8 with the least error of a layer's outputs."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ort_rknn._compile import rounding
from ort_rknn._compile.calibration import InputForm, Samples
from ort_rknn._compile.measure import Reference
from ort_rknn._compile.observe import observe
from ort_rknn._compile.rounding import _chosen, _seen, round_weights, rounded_weights

SHAPE = (1, 4, 11, 13)


def nearest(weights):
    """Each channel rounded as the toolkit does."""
    rows = weights.reshape(len(weights), -1).astype(np.float64)
    low, high = np.minimum(rows.min(1), 0)[:, np.newaxis], np.maximum(rows.max(1), 0)[:, np.newaxis]
    step = np.where(high > low, (high - low) / 255, 1)
    zero = np.round(-128 - low / step)
    return ((np.clip(np.round(rows / step) + zero, -128, 127) - zero) * step).reshape(weights.shape)


def model_of(nodes, weights, outputs):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, SHAPE)],
        [value(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(w, np.float32), name) for name, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def samples_in(folder, count=12):
    folder.mkdir(exist_ok=True)
    samples = Samples(folder, {"x": InputForm(SHAPE, np.dtype(np.float32))})
    random = np.random.default_rng(3)
    mix = random.standard_normal((4, 4))  # channels that depend on each other, as those of pictures do
    for _ in range(count):
        drawn = np.tensordot(mix, random.standard_normal(SHAPE), (1, 1)).swapaxes(0, 1) + 0.5
        samples.add({"x": np.ascontiguousarray(drawn, np.float32)})
    return samples


def reference_of(model, samples, folder=""):
    return Reference(model, folder, observe(model, folder, [samples.feed(0)]))


def outputs_of(model, samples):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, samples.feed(i))[0].ravel() for i in range(samples.count)])


def arrays(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def are_rounded(tensors):
    before = arrays(chain())
    for tensor in tensors:
        value = numpy_helper.to_array(tensor)
        np.testing.assert_allclose(nearest(value), value, rtol=0, atol=1e-6)
        assert 0 < np.abs(value - before[tensor.name]).max() < 0.1


@pytest.mark.parametrize("count", [1, 9, 63, 64, 65, 200])
def test_rounded_weights_are_on_the_grid_that_they_determine(count):
    random = np.random.default_rng(count)
    weights = random.standard_normal((7, count)).astype(np.float32)
    weights[0], weights[1], weights[2] = 0.0, np.abs(weights[1]), -np.abs(weights[2])
    inputs = np.c_[random.standard_normal((500, count)) @ random.standard_normal((count, count)), np.ones(500)]
    rounded, moved = rounded_weights(weights, inputs.T @ inputs)
    np.testing.assert_allclose(nearest(rounded), rounded, rtol=0, atol=1e-6)
    assert np.abs(rounded - weights).max() < 0.1 and np.isfinite(moved).all()
    simple = np.mean(((nearest(weights) - weights) @ inputs[:, :-1].T) ** 2)
    assert np.mean(((rounded - weights) @ inputs[:, :-1].T + moved[:, np.newaxis]) ** 2) <= simple


def test_inputs_that_are_always_zero_change_nothing():
    weights = np.ones((2, 3), np.float32)
    rounded, moved = rounded_weights(weights, np.diag([0.0, 0.0, 0.0, 10.0]))
    assert (rounded == weights).all() and not moved.any()


FORMS = {
    "plain": {},
    "strides": {"strides": [2, 3]},
    "dilations": {"dilations": [2, 1], "pads": [2, 1, 0, 3]},
    "groups": {"group": 2, "pads": [1, 1, 1, 1]},
    "depthwise": {"group": 4, "strides": [2, 2]},
    "same_upper": {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    "same_lower": {"auto_pad": "SAME_LOWER", "strides": [2, 2], "kernel_shape": [2, 4]},
    "valid": {"auto_pad": "VALID"},
}


@pytest.mark.parametrize("form", FORMS)
def test_what_a_layer_multiplies_is_found(form, tmp_path):
    attributes = FORMS[form]
    kernel = attributes.get("kernel_shape", [3, 2])
    shape = (8, 4 // attributes.get("group", 1), *kernel)
    weights = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    model = model_of([helper.make_node("Conv", ["x", "w"], ["y"], **attributes)], {"w": weights}, ["y"])
    samples = samples_in(tmp_path, 1)
    reference = reference_of(model, samples)
    (layer,) = _chosen(model, "", reference)
    seen = _seen(layer, samples.feed(0)["x"], 1 << 20, 0)
    found = [
        own.reshape(len(own), -1) @ rows.reshape(len(rows), -1).T
        for own, rows in zip(np.split(seen, layer.groups, 1), np.split(weights, layer.groups))
    ]
    (want,) = reference.run(samples.feed(0))
    np.testing.assert_allclose(np.concatenate(found, 1).T.reshape(want[0].shape), want[0], atol=1e-4)
    assert len(_seen(layer, samples.feed(0)["x"], 5, 0)) == 5


def chain():
    random = np.random.default_rng(6)
    weights = {
        "a_w": random.standard_normal((16, 4, 3, 3)) / 6,
        "a_b": random.standard_normal(16),
        "b_w": random.standard_normal((16, 1, 3, 3)) / 3,
        "c_w": random.standard_normal((5, 16, 1, 1)) / 4,
        "c_b": random.standard_normal(5),
    }
    nodes = [
        helper.make_node("Conv", ["x", "a_w", "a_b"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "b_w"], ["b"], group=16),
        helper.make_node("Conv", ["b", "c_w", "c_b"], ["y"]),
    ]
    return model_of(nodes, weights, ["y"])


def test_outputs_are_closer_than_with_the_toolkits_rounding(tmp_path):
    model, samples = chain(), samples_in(tmp_path)
    plain, rounded = onnx.ModelProto(), onnx.ModelProto()
    plain.CopyFrom(model)
    rounded.CopyFrom(model)
    for tensor in plain.graph.initializer:
        if tensor.name.endswith("_w"):
            values = nearest(numpy_helper.to_array(tensor)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    assert round_weights(rounded, "", reference_of(model, samples), samples) == 3
    want = outputs_of(model, samples)
    errors = [np.square(outputs_of(each, samples) - want).mean() for each in (rounded, plain)]
    assert errors[0] < 0.8 * errors[1]
    assert list(arrays(rounded)) == [*arrays(model), "b_w ort_rknn bias"]  # which b had not
    for name, value in arrays(rounded).items():
        if name.endswith("_w"):
            np.testing.assert_allclose(nearest(value), value, rtol=0, atol=1e-6)


def test_the_same_samples_give_the_same_weights(tmp_path):
    model, samples = chain(), samples_in(tmp_path)
    made = []
    for _ in range(2):
        one = onnx.ModelProto()
        one.CopyFrom(model)
        round_weights(one, "", reference_of(model, samples), samples)
        made.append(one.SerializeToString(deterministic=True))
    assert made[0] == made[1]


def test_weights_in_constant_nodes_are_rounded_too(tmp_path):
    samples, model = samples_in(tmp_path), chain()
    for tensor in model.graph.initializer:
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    del model.graph.initializer[:]
    assert round_weights(model, "", reference_of(model, samples), samples) == 3
    assert [node.op_type for node in model.graph.node] == ["Conv", "Relu", "Conv", "Conv"]
    assert set(arrays(model)) > set(arrays(chain()))
    are_rounded([tensor for tensor in model.graph.initializer if tensor.name.endswith("_w")])


@pytest.mark.parametrize(
    ("limit", "value", "layers"), [("_WIDEST", 16, 2), ("_MOST_WORK", 1e6, 0), ("_MOST_BYTES", 1000, 2)]
)
def test_layers_beyond_a_limit_keep_the_toolkits_rounding(limit, value, layers, tmp_path, monkeypatch):
    monkeypatch.setattr(rounding, limit, value)
    model, samples = chain(), samples_in(tmp_path)
    assert round_weights(model, "", reference_of(model, samples), samples) == layers
    assert (arrays(model)["a_w"] == arrays(chain())["a_w"]).all()


def test_weights_and_biases_that_others_read_stay(tmp_path):
    random = np.random.default_rng(7)
    weights = {"w": random.standard_normal((4, 4, 1, 1)), "v": random.standard_normal((4, 4, 1, 1)), "b": [1, 2, 3, 4]}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["p"]),
        helper.make_node("Conv", ["p", "w"], ["q"]),
        helper.make_node("Conv", ["q", "v", "b"], ["y"]),
    ]
    model, samples = model_of(nodes, weights, ["y"]), samples_in(tmp_path)
    before = arrays(model)
    assert round_weights(model, "", reference_of(model, samples), samples) == 1
    after = arrays(model)
    assert (after["w"] == before["w"]).all() and (after["b"] == before["b"]).all()
    assert not (after["v"] == before["v"]).all()


@pytest.mark.parametrize("form", ["none", "empty", "shared"])
def test_a_convolution_without_a_bias_of_its_own_gets_one(form, tmp_path):
    random = np.random.default_rng(8)
    weights = {"w": random.standard_normal((4, 4, 3, 3)), "b": [1, 2, 3, 4]}
    inputs = {"none": ["x", "w"], "empty": ["x", "w", ""], "shared": ["x", "w", "b"]}[form]
    model = model_of([helper.make_node("Conv", inputs, ["y"])], weights, ["y"])
    if form == "shared":
        model.graph.node.append(helper.make_node("Identity", ["b"], ["other"]))
        model.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, None))
    samples = samples_in(tmp_path)
    want = outputs_of(model, samples).reshape(samples.count, 4, -1)
    assert round_weights(model, "", reference_of(model, samples), samples) == 1
    assert (arrays(model)["b"] == weights["b"]).all()
    error = outputs_of(model, samples).reshape(want.shape) - want
    assert np.abs(error.mean((0, 2))).max() < 0.02 * error.std()


def test_a_convolution_with_a_computed_bias_keeps_that(tmp_path):
    nodes = [helper.make_node("Neg", ["b"], ["n"]), helper.make_node("Conv", ["x", "w", "n"], ["y"])]
    weights = {"w": np.random.default_rng(9).standard_normal((4, 4, 3, 3)), "b": [1, 2, 3, 4]}
    model, samples = model_of(nodes, weights, ["y"]), samples_in(tmp_path)
    assert round_weights(model, "", reference_of(model, samples), samples) == 1
    assert list(model.graph.node[1].input) == ["x", "w", "n"] and set(arrays(model)) == {"w", "b"}
    assert (arrays(model)["b"] == weights["b"]).all()


#: Operator, shapes of the weights and the bias, attributes, and whether the bias takes up the mean of the error.
PRODUCTS = {
    "matmul": ("MatMul", (52, 30), None, {}, False),
    "gemm": ("Gemm", (52, 30), (30,), {}, True),
    "transposed": ("Gemm", (30, 52), (30,), {"transB": 1}, True),
    "no bias": ("Gemm", (52, 30), None, {}, False),
    "bias of another form": ("Gemm", (52, 30), (1, 30), {}, False),
    "bias with a factor": ("Gemm", (52, 30), (30,), {"beta": 0.5}, False),
}


def product(operator, weights, bias, attributes):
    """Multiplies rows of 13 positions with 4 channels."""
    random = np.random.default_rng(11)
    values = {"w": random.standard_normal(weights)}
    if bias is not None:
        values["b"] = random.standard_normal(bias)
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["t", "rows"], ["r"]),
        helper.make_node(operator, ["r", *values], ["y"], **attributes),
    ]
    model = model_of(nodes, values, ["y"])
    rows = np.array([1, 11, 52] if operator == "MatMul" else [11, 52], np.int64)
    model.graph.initializer.append(numpy_helper.from_array(rows, "rows"))
    return model


@pytest.mark.parametrize("form", PRODUCTS)
def test_weights_of_matrix_products_are_rounded_too(form, tmp_path):
    *given, takes_up = PRODUCTS[form]
    model, samples = product(*given), samples_in(tmp_path)
    plain, before = onnx.ModelProto(), arrays(model)
    plain.CopyFrom(model)
    flip = (lambda value: value) if given[3].get("transB") else np.transpose
    plain.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.ascontiguousarray(flip(nearest(flip(before["w"])))).astype(np.float32), "w")
    )
    want = outputs_of(model, samples)
    assert round_weights(model, "", reference_of(model, samples), samples) == 1
    rounded = arrays(model)["w"]
    assert rounded.shape == before["w"].shape and np.abs(rounded - before["w"]).max() < 0.1
    np.testing.assert_allclose(flip(nearest(flip(rounded))), rounded, rtol=0, atol=1e-6)
    assert set(arrays(model)) == set(before)
    assert takes_up != all((arrays(model)[name] == before[name]).all() for name in {"b"} & set(before))
    errors = [outputs_of(each, samples) - want for each in (model, plain)]
    assert np.square(errors[0]).mean() < 0.8 * np.square(errors[1]).mean()


@pytest.mark.parametrize("attributes", [{"transA": 1}, {"alpha": 0.5}])
def test_products_with_something_else_keep_the_toolkits_rounding(attributes, tmp_path):
    weights = (11 if "transA" in attributes else 52, 30)
    model, samples = product("Gemm", weights, None, attributes), samples_in(tmp_path)
    assert round_weights(model, "", reference_of(model, samples), samples) == 0


def test_weights_in_a_file_of_their_own_become_part_of_the_onnx(tmp_path):
    samples = samples_in(tmp_path / "samples")
    model = chain()
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=100)
    model = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    reference = reference_of(model, samples, str(tmp_path))
    assert round_weights(model, str(tmp_path), reference, samples) == 3
    are_rounded([tensor for tensor in model.graph.initializer if tensor.name.endswith("_w")])  # fails for data outside
