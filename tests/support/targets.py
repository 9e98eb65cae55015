"""The targets on which tests of tests/ort_behaviour run."""

from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

import ort_rknn

TESTS = Path(__file__).parent.parent
MODELS = TESTS / "models"
VIRTUAL = {"device": "virtual:rk3588"}


def version():
    return tuple(int(n) for n in onnxruntime.__version__.split("+")[0].split(".")[:2])


@dataclass(eq=False)
class Target:
    """Where a test runs."""

    name: str
    ort: ModuleType
    npu: bool = False
    made: list[Any] = field(default_factory=list)

    def session(self, model="two_io.onnx", options=None, **given):
        """A session on a model of tests/models by name, a path, or bytes."""
        if isinstance(model, str) and "/" not in model:
            model = MODELS / model
        if self.npu:
            given.setdefault("provider_options", VIRTUAL)
        else:
            given.setdefault("providers", ["CPUExecutionProvider"])
        session = self.ort.InferenceSession(model, options, **given)
        assert session.get_providers()[0] == self.provider, session.explain()
        if self.npu:
            self.made.append(session)
        return session

    @property
    def provider(self):
        return "RKNNExecutionProvider" if self.npu else "CPUExecutionProvider"

    def same(self, got, wanted):
        """Whether results equal onnxruntime's CPU results: exactly, or on the NPU within float16's precision."""
        if not self.npu or got.dtype.kind not in "f":
            return got.dtype == wanted.dtype and np.array_equal(got, wanted)
        return got.dtype == wanted.dtype and got.shape == wanted.shape and np.abs(got - wanted).max() < 1e-2

    def close(self):
        for session in self.made:
            session.close()


TARGETS = {
    "onnxruntime": lambda: Target("onnxruntime", onnxruntime),
    "ours, CPU": lambda: Target("ours, CPU", ort_rknn),
    "ours, NPU": lambda: Target("ours, NPU", ort_rknn, npu=True),
}


def save(path, nodes, inputs, outputs, *, initializers=(), metadata=(), **fields):
    """An ONNX model of float tensors: ``inputs`` and ``outputs`` are {name: dims}."""
    values = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in side.items()]
        for side in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, fields.pop("graph_name", "g"), *values, initializer=list(initializers))
    graph.doc_string = fields.pop("graph_doc", "")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, **fields)
    helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)
    return str(path)
