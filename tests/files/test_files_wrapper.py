"""The wrapper, read by the onnx package, by onnxruntime and by our reader."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import onnx
import onnxruntime
import pytest

from ort_rknn.files import OnnxModel, OnnxValue, ep_context_model, read_onnx
from ort_rknn.files._wire import VARINT, WireReader, bytes_field, int_field, signed

MODELS = Path(__file__).parents[1] / "models"
IMAGE = read_onnx(MODELS / "image_u8.onnx")


def tensor(name: str, dims=(1, 2), elem_type: int = 1) -> OnnxValue:
    return OnnxValue(name, "tensor", elem_type, dims, "")


def wrap(model: OnnxModel = IMAGE, **changes) -> bytes:
    arguments = {
        "model": model, "inputs": model.inputs, "outputs": model.outputs, "source": "RKNNExecutionProvider",
        "cache_context": b"token", "node_name": "npu",
    }  # fmt: skip
    return ep_context_model(**{**arguments, **changes})


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.onnx")), ids=lambda path: path.stem)
def test_signature_and_metadata_are_the_onnxs(path):
    model = read_onnx(path)
    content = wrap(model)
    again = read_onnx(content)
    of_the_file = {"size", "ir_version", "opsets", "initializers", "node_count", "ep_context_nodes", "external_data"}
    for name in {field.name for field in dataclasses.fields(model)} - of_the_file:
        assert getattr(again, name) == getattr(model, name), name
    assert again.ir_version == 8 and again.opsets == {"": 17, "com.microsoft": 1} and again.node_count == 1

    theirs, original = onnx.load_from_string(content), onnx.load(path)
    for mine, its in zip(
        [*theirs.graph.input, *theirs.graph.output], [*original.graph.input, *original.graph.output], strict=True
    ):
        assert (mine.name, mine.type) == (its.name, its.type)
    assert theirs.metadata_props == original.metadata_props
    assert theirs.HasField("model_version") == original.HasField("model_version")
    onnx.checker.check_model(theirs)


def test_onnx_writes_the_same_bytes():
    """The output is canonical: the onnx package reads it and writes it back unchanged."""
    content = wrap(attributes={"partition_name": "p", "max_size": 3, "notes": ""})
    assert onnx.load_from_string(content).SerializeToString(deterministic=True) == content


def test_the_node():
    blob = os.urandom(70_000)
    attributes = {
        "partition_name": "p0", "hardware_architecture": "rk3588", "ep_sdk_version": "2.5.0",
        "onnx_model_filename": "m\u00e9.onnx", "notes": "n", "max_size": -5,
    }  # fmt: skip
    content = wrap(cache_context=blob, attributes=attributes)
    (node,) = onnx.load_from_string(content).graph.node
    assert (node.op_type, node.domain, node.name) == ("EPContext", "com.microsoft", "npu")
    assert (list(node.input), list(node.output)) == (["image"], ["logits"])
    got = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    texts = {name: text.encode() if isinstance(text, str) else text for name, text in attributes.items()}
    assert got == {
        "main_context": 1,
        "embed_mode": 1,
        "ep_cache_context": blob,
        "source": b"RKNNExecutionProvider",
        **texts,
    }
    (ours,) = read_onnx(content).ep_context_nodes
    assert content[ours.cache_offset :][: ours.cache_size] == blob
    assert (ours.partition_name, ours.onnx_model_filename, ours.notes) == ("p0", "m\u00e9.onnx", "n")


def test_by_path():
    (ours,) = read_onnx(wrap(embed_mode=0, cache_context=b"m.rknn")).ep_context_nodes
    assert (ours.embed_mode, ours.cache_context, ours.main_context) == (0, b"m.rknn", True)


@pytest.mark.parametrize("dims", [(), None, (1,), ("n", 3, None), (0,), (2**40,), ("\u00e9", "a b")], ids=str)
@pytest.mark.parametrize("elem_type", [1, 7, 9, 10, 16])
def test_values_of_every_form(dims, elem_type):
    content = wrap(inputs=[tensor("a", dims, elem_type)], outputs=[tensor("b", dims, elem_type)])
    again = read_onnx(content)
    assert [(v.name, v.dims, v.elem_type) for v in again.inputs + again.outputs] == [
        ("a", dims, elem_type),
        ("b", dims, elem_type),
    ]
    theirs = onnx.load_from_string(content).graph.input[0].type.tensor_type
    assert theirs.HasField("shape") == (dims is not None)
    assert len(theirs.shape.dim) == len(dims or ())


def test_many_inputs_and_outputs():
    inputs, outputs = [tensor(f"i{k}") for k in range(30)], [tensor(f"o{k}") for k in range(40)]
    (node,) = onnx.load_from_string(wrap(inputs=inputs, outputs=outputs)).graph.node
    assert list(node.input) == [v.name for v in inputs] and list(node.output) == [v.name for v in outputs]


@pytest.mark.parametrize("version", [None, 0, 7, -1, 2**63 - 1])
def test_model_version(version):
    content = wrap(dataclasses.replace(IMAGE, model_version=version))
    assert read_onnx(content).model_version == version
    assert onnx.load_from_string(content).HasField("model_version") == (version is not None)


def test_bare_fields():
    """The fields available from a compiled model alone: no metadata, no graph name."""
    bare = dataclasses.replace(
        IMAGE, producer_name="", producer_version="", domain="", model_version=None, doc_string="", graph_name="",
        graph_doc_string="", metadata={},
    )  # fmt: skip
    again = read_onnx(wrap(bare))
    assert (again.producer_name, again.graph_name, dict(again.metadata)) == ("", "", {})


def test_names_that_are_not_utf8_come_back_as_they_were():
    name = b"n\xff\xfe".decode("utf-8", "surrogateescape")
    assert b"n\xff\xfe" in wrap(inputs=[tensor(name)])


def test_an_input_that_is_an_output_is_refused():
    with pytest.raises(ValueError, match="'a' is an input and an output"):
        wrap(inputs=[tensor("a")], outputs=[tensor("a")])


def test_what_is_not_a_tensor_is_refused():
    with pytest.raises(ValueError, match="'s' is not a tensor"):
        wrap(inputs=[OnnxValue("s", "sequence", None, None, "seq(tensor(float))")])


@pytest.mark.parametrize("name", ["main_context", "embed_mode", "ep_cache_context", "source"])
def test_an_attribute_with_a_parameter_is_refused(name):
    with pytest.raises(ValueError, match=name):
        wrap(attributes={name: "x"})


def test_onnxruntime_takes_it_apart_from_the_missing_provider():
    """Without a provider of that name onnxruntime reads the wrapper whole, and then finds no taker for its node."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented, match="EPContext"):
        onnxruntime.InferenceSession(wrap(), options, providers=["CPUExecutionProvider"])


def test_onnxruntime_reports_the_same_metadata():
    """The wrapper with its node replaced by one that the CPU runs, and nothing else changed."""
    content = wrap(inputs=[tensor("a")], outputs=[tensor("b")])
    made = onnx.load_from_string(content)
    del made.graph.node[:]
    made.graph.node.append(onnx.helper.make_node("Identity", ["a"], ["b"]))
    wrapper = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"]).get_modelmeta()
    original = onnxruntime.InferenceSession(
        MODELS / "image_u8.onnx", providers=["CPUExecutionProvider"]
    ).get_modelmeta()
    names = (
        "producer_name",
        "graph_name",
        "domain",
        "description",
        "graph_description",
        "version",
        "custom_metadata_map",
    )
    assert {name: getattr(wrapper, name) for name in names} == {name: getattr(original, name) for name in names}
    assert original.custom_metadata_map and original.version == 7


@pytest.mark.wall_clock
def test_writing_is_quick():
    best = 1.0
    for _ in range(50):
        began = time.thread_time()
        wrap()
        best = min(best, time.thread_time() - began)
    assert best < 0.001


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**31, 2**63 - 1, -1, -(2**63)])
def test_numbers_are_read_back(value):
    content = int_field(3, value)
    ((number, kind, read, end),) = WireReader(content, 10).fields(0, len(content))
    assert (number, kind, signed(read), end) == (3, VARINT, value, len(content))
    assert onnx.AttributeProto.FromString(content).i == value


@pytest.mark.parametrize("length", [0, 1, 127, 128, 20_000])
def test_lengths_are_read_back(length):
    content = bytes_field(4, b"x" * length)
    assert onnx.AttributeProto.FromString(content).s == b"x" * length
    ((_, _, start, end),) = WireReader(content, 10).fields(0, len(content))
    assert end - start == length
