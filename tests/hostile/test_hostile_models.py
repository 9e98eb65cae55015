"""Untrusted models: the readers, the checks and the proof return a result, or raise the documented error."""

import json
import struct
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.ep_models import conv_in_a_node
from support.hostile_inputs import at_most, careful, damaged_bytes, damaged_json, slow, texts
from support.random_graphs import Drawn

from ort_rknn import info
from ort_rknn._independence import Independence, independence_of
from ort_rknn.adapter import ModelSource
from ort_rknn.files import (
    Disagreement,
    OnnxFileError,
    Origin,
    RknnFileError,
    judge_twin,
    left_out,
    read_onnx,
    read_rknn,
)
from ort_rknn.files.compatibility import Compatibility, compatibility, info_text, parse_info
from ort_rknn.files.compiled_places import OutsideError, confined_path
from ort_rknn.files.operators import read_operators
from ort_rknn.files.twins import dotted, version_of
from ort_rknn_librknnrt._hints import describe_model

MODELS = Path(__file__).parents[1] / "models"
RKNN = (MODELS / "conv_i8.rk3588.rknn").read_bytes()
NUMBERS = [-1, 0, 1, 2**31 - 1, -(2**31), 2**31, 2**62, 2**63 - 1, -(2**63)]


# ONNX -------------------------------------------------------------------------------------------------------------


def messages(message):
    """A protobuf message and all inside it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in value if is_list(field) else (value,):
                yield from messages(each)


def is_list(field):
    """protobuf changed how a field reports this."""
    return field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED


@st.composite
def damaged_onnx(draw, good):
    """A model with some fields set to impossible values, removed, or duplicated. It is still valid protobuf."""
    model = onnx.ModelProto.FromString(good)
    for _ in range(draw(st.integers(1, 4))):
        everywhere = list(messages(model))
        message = everywhere[draw(st.integers(0, len(everywhere) - 1))]
        field = draw(st.sampled_from(list(message.DESCRIPTOR.fields)))
        if draw(st.integers(0, 4)) == 0:
            message.ClearField(field.name)
            continue
        held = getattr(message, field.name)
        if field.message_type is not None:
            if is_list(field) and len(held):
                held.append(held[draw(st.integers(0, len(held) - 1))])
            elif not is_list(field):
                held.SetInParent()
            continue
        if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
            value = draw(st.floats(width=32))
        elif field.cpp_type == field.CPPTYPE_STRING:
            value = draw(st.text(max_size=8)) if field.type == field.TYPE_STRING else draw(st.binary(max_size=16))
        else:
            value = draw(st.sampled_from(NUMBERS))
        try:
            if is_list(field):
                held.append(value)
            else:
                setattr(message, field.name, value)
        except (ValueError, TypeError):  # out of the field's range
            pass
    return model.SerializeToString()


def check_onnx(content):
    for read in (read_onnx, independence_of):
        try:
            found = read(content)
        except OnnxFileError as error:
            assert str(error)
        else:
            if isinstance(found, Independence):
                assert found.reason
    try:
        model = read_onnx(content)
        left_out(content, [v.name for v in model.inputs[:1]], [v.name for v in model.outputs[:1]])
        left_out(content, [], [v.name for v in model.outputs[-1:]])
    except (OnnxFileError, Disagreement) as error:
        assert str(error)


@pytest.mark.parametrize("name", ["two_io", "dynamic", "tokens_i64", "free_batch", "mean_std"])
@careful
@given(data=st.data())
def test_onnx_with_fields_that_no_model_has(name, data):
    check_onnx(data.draw(damaged_onnx((MODELS / f"{name}.onnx").read_bytes())))


@careful
@given(seed=st.integers(0, 10_000), data=st.data())
def test_the_proof_of_graphs_with_fields_that_no_model_has(seed, data):
    drawn = Drawn(seed)
    good = drawn.content((drawn.candidates() or ["x0"])[0])
    check_onnx(data.draw(damaged_onnx(good)))
    check_onnx(data.draw(damaged_bytes(good)))


OPERATORS = [
    "Reshape", "Slice", "Gather", "Concat", "Split", "Tile", "Expand", "Range", "ConstantOfShape", "Resize", "Pad",
    "TopK", "OneHot", "Unsqueeze", "Squeeze", "Transpose", "Flatten", "DepthToSpace", "SpaceToDepth", "ReduceSum",
    "Conv", "ConvTranspose", "MaxPool", "AveragePool", "MatMul", "Gemm", "Einsum", "CumSum", "GatherND", "ScatterND",
    "GatherElements", "ReverseSequence", "LSTM", "GRU", "Softmax", "LogSoftmax", "Split", "Shape", "Size", "Cast",
    "BatchNormalization", "LayerNormalization", "InstanceNormalization", "GroupNormalization", "Trilu", "EyeLike",
    "NonMaxSuppression", "RoiAlign", "GridSample", "Col2Im", "CenterCropPad", "Attention", "STFT", "Mod", "Where",
]  # fmt: skip
ATTRIBUTES = [
    "axis", "axes", "perm", "to", "shape", "value", "starts", "ends", "steps", "split", "num_outputs", "keepdims",
    "kernel_shape", "strides", "pads", "dilations", "group", "blocksize", "mode", "equation", "batch_dims", "largest",
    "hidden_size", "direction", "transA", "value_ints", "allowzero", "exclusive", "k", "start", "end",
    "output_shape", "auto_pad", "ceil_mode", "batch_axis", "time_axis", "noop_with_empty_axes", "epsilon",
]  # fmt: skip
hostile_ints = st.one_of(st.integers(-3, 6), st.sampled_from(NUMBERS))
attribute_values = st.one_of(
    hostile_ints, st.lists(hostile_ints, max_size=4), st.floats(width=32), st.text(max_size=6), st.just(["a", "b"])
)


@st.composite
def hostile_nodes(draw):
    """A chain of operators with any attributes, and inputs that are the samples, constants, lengths, or missing."""
    constants = {}
    for index in range(draw(st.integers(0, 3))):
        numbers = draw(st.lists(hostile_ints, max_size=4))
        constants[f"c{index}"] = np.array(numbers, np.int64) if draw(st.booleans()) else np.array(numbers, float)
    known = ["x", "", *constants]
    nodes = []
    for index in range(draw(st.integers(1, 6))):
        inputs = draw(st.lists(st.sampled_from(known), max_size=4))
        outputs = [f"t{index}", *([f"u{index}"] if draw(st.booleans()) else [])]
        node = onnx.helper.make_node(draw(st.sampled_from(OPERATORS)), inputs, outputs)
        for name in draw(st.lists(st.sampled_from(ATTRIBUTES), max_size=3, unique=True)):
            value = draw(attribute_values)
            if value != []:
                node.attribute.append(onnx.helper.make_attribute(name, value))
        nodes.append(node)
        known += outputs
    dims = draw(st.lists(st.one_of(st.sampled_from(["N", "M", ""]), st.integers(0, 5)), min_size=0, max_size=5))
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, dims)
    y = onnx.helper.make_tensor_value_info(nodes[-1].output[0], onnx.TensorProto.FLOAT, None)
    initializers = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], initializers)
    opset = draw(st.sampled_from([1, 7, 11, 13, 18, 21]))
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)]).SerializeToString()


@careful
@given(content=hostile_nodes())
def test_the_proof_of_any_operators_with_any_attributes(content):
    check_onnx(content)


def of_nodes(*nodes):
    made = [onnx.helper.make_node(kind, inputs, outputs) for kind, inputs, outputs in nodes]
    side = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 3]) for name in ("x", "y")]
    graph = onnx.helper.make_graph(made, "g", side[:1], side[1:])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]).SerializeToString()


@pytest.mark.parametrize(
    "nodes",
    [
        [("Shape", [], ["y"])],
        [("Size", [], ["s"]), ("Expand", ["x", "s"], ["y"])],
        [("Identity", [], ["y"])],
        [("Identity", ["y"], ["y"])],
        [("Identity", ["a"], ["y"]), ("Identity", ["y"], ["a"])],
        [("Add", ["x", "a"], ["y"]), ("Relu", ["y"], ["a"])],
        [("Relu", ["x"], ["y"]), ("Neg", ["x"], ["y"])],
        [("Relu", ["x"], [])],
        [("", ["x"], ["y"])],
    ],
)
def test_graphs_that_broke_readers(nodes):
    """Nodes without inputs, in cycles, and with duplicate outputs."""
    content = of_nodes(*nodes)
    check_onnx(content)
    for inputs, outputs in ((["x"], ["y"]), ([], ["y"]), (["x"], []), (["a"], ["a"])):
        try:
            left_out(content, inputs, outputs)
        except (OnnxFileError, Disagreement) as error:
            assert str(error)


@slow
@given(content=hostile_nodes())
def test_the_proof_takes_little_memory(content):
    with at_most(8):
        check_onnx(content)


# EPContext --------------------------------------------------------------------------------------------------------


@careful
@given(data=st.data())
def test_attributes_of_epcontext_nodes(data):
    content = data.draw(damaged_onnx(conv_in_a_node(attributes={"hardware_architecture": "rk3588"})))
    try:
        nodes = read_onnx(content).ep_context_nodes
    except OnnxFileError as error:
        assert str(error)
        return
    for node in nodes:
        assert node.embed_mode is None or type(node.embed_mode) is int
        assert node.cache_context is None or isinstance(node.cache_context, bytes)
        assert all(isinstance(text, str) for text in (node.source or "", node.hardware_architecture or ""))


@careful
@given(name=st.one_of(texts, st.text("./\\a\0", max_size=8)))
@example(name="..")
@example(name="a/../../x")
def test_paths_in_models(tmp_path_factory, name):
    folder = tmp_path_factory.getbasetemp() / "confined"
    folder.mkdir(exist_ok=True)
    (folder.parent / "x").write_bytes(b"outside")
    (folder / "a").write_bytes(b"inside")
    try:
        found = confined_path(str(folder / "m.onnx"), name)
    except (OutsideError, OSError):
        return
    assert Path(found).read_bytes() == b"inside"


# .rknn ------------------------------------------------------------------------------------------------------------


def check_rknn(content, folder):
    try:
        file = read_rknn(content)
    except RknnFileError as error:
        assert str(error)
        file = None
    try:
        read_operators(content)
    except RknnFileError as error:
        assert str(error)
    place = folder / "m.rknn"
    place.write_bytes(content)
    try:
        info(place)
    except (RknnFileError, OnnxFileError) as error:
        assert str(error)
    assert isinstance(describe_model(ModelSource(data=content)), str)
    if file is not None:
        verdict = judge_twin(file, soc="rk3588", runtime_version="2.3.2", onnx_path=MODELS / "conv_i8.onnx")
        assert verdict.fit != bool(verdict.reasons)
        assert isinstance(compatibility(file, soc="rk3588", runtime="2.3.2", driver="0.9.8"), Compatibility)
        Origin.parse(file.custom_string)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rknn")


START = 64 + struct.unpack_from("<Q", RKNN, 16)[0]
TRAILER = json.loads(RKNN[START + 8 : START + 8 + struct.unpack_from("<Q", RKNN, START)[0]])


@careful
@given(trailer=damaged_json(TRAILER))
def test_the_json_at_the_end_of_a_compiled_model(folder, trailer):
    check_rknn(RKNN[:START] + struct.pack("<Q", len(trailer)) + trailer, folder)


@careful
@given(data=st.data())
def test_the_tables_of_a_compiled_model(folder, data):
    """The last 6,000 bytes of the tables, which contain the names, shapes and texts."""
    first = max(64, START - 6000)
    check_rknn(RKNN[:first] + data.draw(damaged_bytes(RKNN[first:START])) + RKNN[START:], folder)


@slow
@given(text=st.one_of(texts, st.text("{}[]()'\"\\,:0e-.", max_size=60)))
@example(text="9" * 5000)
@example(text="[" * 50_000)
def test_texts_of_the_length_that_the_tables_say(folder, text):
    """Each JSON text within the tables, replaced by another one of its length."""
    content = bytearray(RKNN)
    found = content.find(b'{"', 64, START)
    while 0 <= found < START:
        size = struct.unpack_from("<I", content, found - 4)[0]
        if 2 < size < START - found:
            new = text.encode("utf-8", "surrogatepass")[:size]
            content[found : found + len(new)] = new
            check_rknn(bytes(content), folder)
        found = content.find(b'{"', found + max(size, 2) if size < START else found + 2, START)


# Compatibility ----------------------------------------------------------------------------------------------------


WORDS = ["rknn", "target=", "rk3588", "toolkit=2.3", "container=6", ";", "=", ",", "9" * 9]


@careful
@given(
    text=st.one_of(texts, st.lists(st.sampled_from(WORDS)).map("".join)),
    version=st.one_of(texts, st.text("0123456789.", max_size=300)),
)
def test_compatibility_strings(text, version):
    file = parse_info(text)
    if file is not None:
        assert isinstance(compatibility(file, soc="rk3588", runtime=version, driver=version), Compatibility)
        again = parse_info(info_text(file))
        assert again is not None and set(again.targets) <= {part.strip() for part in file.targets} | set(file.targets)
    found = version_of(version)
    assert found is None or version_of(dotted(found)) == found


def test_lengths_that_are_not_there(folder):
    with at_most(64):
        check_rknn(RKNN[:16] + b"\xff" * 8 + RKNN[24:], folder)
        check_onnx(b"\x3a\xff\xff\xff\xff\x7f" + b"\0" * 100)
        check_onnx(b"\x0a" * 1000)
