"""ONNX models with EPContext nodes, and sessions of the unmodified onnxruntime with our provider."""

from pathlib import Path

import onnx
import onnxruntime
from onnx import TensorProto, helper

from ort_rknn._ep.registration import register
from ort_rknn._ep.support import by_name
from ort_rknn.files import ep_context_model, read_onnx

MODELS = Path(__file__).parents[1] / "models"

OURS = "RKNNExecutionProvider"
FLOAT = TensorProto.FLOAT


def tensor(name, shape, dtype=FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def context_node(inputs, outputs, cache, *, name="npu", source=OURS, embed_mode=1, **attributes):
    """``cache`` is the compiled model's bytes, or (embed_mode 0) its path relative to the model."""
    cache = cache.encode() if isinstance(cache, str) else cache
    attributes = {
        "main_context": 1,
        "embed_mode": embed_mode,
        "ep_cache_context": cache,
        "source": source,
        **attributes,
    }
    attributes = {key: value for key, value in attributes.items() if value is not None}
    return helper.make_node("EPContext", inputs, outputs, name=name, domain="com.microsoft", **attributes)


def model(nodes, inputs, outputs, *, initializers=(), value_info=(), metadata=None):
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializer=initializers, value_info=value_info)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    made = helper.make_model(graph, ir_version=8, opset_imports=opsets)
    if metadata:
        helper.set_model_props(made, metadata)
    return made.SerializeToString()


def mixed(cache, shape=(2, 3), **attributes):
    """X -> Add (CPU) -> EPContext (NPU) -> Relu (CPU) -> Y"""
    one = helper.make_tensor("one", FLOAT, [1], [1.0])
    nodes = [
        helper.make_node("Add", ["X", "one"], ["a"], name="add"),
        context_node(["a"], ["b"], cache, **attributes),
        helper.make_node("Relu", ["b"], ["Y"], name="relu"),
    ]
    return model(nodes, [tensor("X", shape)], [tensor("Y", shape)], initializers=[one], value_info=[tensor("b", shape)])


def quiet(options=None):
    """Silences onnxruntime's warning on stderr that some nodes of a mixed graph are on the CPU."""
    options = options or onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return options


def plain_session(content, given=None, options=None):
    """A session of the unmodified onnxruntime, with our provider by name or (if unsupported) by device."""
    register()
    options = quiet(options)
    if by_name():
        return onnxruntime.InferenceSession(content, options, [(OURS, given or {})])
    devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == OURS]
    options.add_provider_for_devices(devices[:1], {k: str(v) for k, v in (given or {}).items()})
    return onnxruntime.InferenceSession(content, options)


def checked(content):
    """The model, checked by onnx's checker."""
    onnx.checker.check_model(onnx.load_from_string(content))
    return content


def conv_in_a_node(compiled="conv_f16.rk3588.rknn", **settings):
    """conv_f16 as an ONNX whose one node names ``compiled``; ``settings`` as for ``ep_context_model``."""
    original = read_onnx(MODELS / "conv_f16.onnx")
    return ep_context_model(
        model=original,
        inputs=original.inputs,
        outputs=original.outputs,
        source=OURS,
        cache_context=compiled.encode(),
        node_name="conv",
        **settings,
    )
