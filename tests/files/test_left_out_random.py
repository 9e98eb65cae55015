"""Every claim that an input or output can be left out is tested: onnxruntime runs random graphs with other values."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ort_rknn.files import Disagreement, left_out

CPU = ["CPUExecutionProvider"]
INPUTS = {"x": (2, 3), "t": (4,), "u": (1, 2)}
CONSTANTS = {
    "k": np.arange(6, dtype=np.float32).reshape(2, 3),
    "j": np.array([0, 1]),
    "flat": np.array([-1]),
    "first": np.array([0]),
}


class Drawn:
    """A graph of some nodes: floats of any shape, and flat integers."""

    def __init__(self, rng):
        self.rng = rng
        self.nodes = []
        self.floats = [*INPUTS, "k"]
        self.whole = ["j"]
        kinds = [self.plain, self.shape, self.to_float, self.reduced, self.by_values, self.spread, self.joined]
        for _ in range(rng.integers(4, 14)):
            kinds[rng.integers(len(kinds))]()
        made = [name for name in (*self.floats, *self.whole) if name.startswith("v")]
        self.outputs = [str(name) for name in rng.permutation(made)[:4]]

    def add(self, op_type, inputs, **attributes):
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], **attributes))
        return name

    def pick(self, names):
        return names[self.rng.integers(len(names))]

    def plain(self):
        op_type = self.pick(["Relu", "Identity", "Neg", "Identity"])
        self.floats.append(self.add(op_type, [self.pick(self.floats)]))

    def shape(self):
        name = self.add(self.pick(["Shape", "Size"]), [self.pick(self.floats)])
        self.whole.append(self.add("Reshape", [name, "flat"]))

    def to_float(self):
        self.floats.append(self.add("Cast", [self.pick(self.whole)], to=TensorProto.FLOAT))

    def reduced(self):
        self.floats.append(self.add("ReduceSum", [self.pick(self.floats)], keepdims=0))

    def by_values(self):
        """Of a length that depends on values."""
        name = self.add("Relu", [self.pick(self.floats)])
        self.whole.append(self.add("Reshape", [self.add("NonZero", [name]), "flat"]))

    def spread(self):
        one = self.add("ReduceMax", [self.pick(self.floats)], keepdims=0)
        self.floats.append(self.add("Expand", [one, self.add("Shape", [self.pick(self.floats)])]))

    def joined(self):
        self.whole.append(self.add("Concat", [self.pick(self.whole), self.pick(self.whole)], axis=0))

    @property
    def content(self):
        floats = TensorProto.FLOAT
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info(name, floats, shape) for name, shape in INPUTS.items()],
            [
                helper.make_tensor_value_info(name, floats if name in self.floats else TensorProto.INT64, None)
                for name in self.outputs
            ],
            [numpy_helper.from_array(value, name) for name, value in CONSTANTS.items()],
        )
        opsets = [helper.make_opsetid("", 13)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def session_of(content):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=CPU)


def check(drawn, rng):
    """The number of claims that were made and tested."""
    content = drawn.content
    session = session_of(content)
    feeds = [{n: rng.standard_normal(s).astype(np.float32) for n, s in INPUTS.items()} for _ in range(4)]
    feeds.append({n: np.zeros(s, np.float32) for n, s in INPUTS.items()})
    results = [dict(zip(drawn.outputs, session.run(drawn.outputs, feed))) for feed in feeds]
    claims = 0
    for kept in drawn.outputs:
        for inputs in (["x", "t", "u"], ["x"], ["t"], ["x", "u"]):
            try:
                left = left_out(content, inputs, [kept])
            except Disagreement:
                continue
            claims += 1
            if left.constants:
                feed = {v.name: np.zeros(v.dims, np.float32) for v in left.part_inputs}
                values = dict(zip(left.constants, session_of(left.part).run(list(left.constants), feed)))
                for name, value in values.items():
                    assert all(np.array_equal(value, result[name]) for result in results)
            for name, other in left.copies.items():
                assert all(np.array_equal(result[name], result[other]) for result in results)
            for name in left.unread:
                for feed in feeds[1:]:
                    (got,) = session.run([kept], {**feeds[0], name: feed[name]})
                    np.testing.assert_array_equal(got, results[0][kept])
    return claims


@pytest.mark.parametrize("seed", range(4))
def test_what_is_left_out_has_no_effect(seed):
    rng = np.random.default_rng(seed)
    drawn = [graph for graph in (Drawn(rng) for _ in range(50)) if graph.outputs]
    claims = sum(check(graph, rng) for graph in drawn)
    assert len(drawn) > 40 and claims > 20
