"""What a session reports about its model and itself."""

import gc

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.targets import MODELS, save, version

FIELDS = ("producer_name", "graph_name", "domain", "description", "graph_description", "version")
CPU = ["CPUExecutionProvider"]


@pytest.fixture
def described(tmp_path):
    """A model with all metadata fields, an overridable initializer and another initializer."""
    scale = numpy_helper.from_array(np.full((1, 4), 2, np.float32), "scale")
    bias = numpy_helper.from_array(np.full((1, 4), 1, np.float32), "bias")
    return save(
        tmp_path / "described.onnx",
        [helper.make_node("Mul", ["x", "scale"], ["m"]), helper.make_node("Add", ["m", "bias"], ["y"])],
        {"x": [1, 4], "scale": [1, 4]},
        {"y": [1, 4]},
        initializers=[scale, bias],
        metadata={"names": "{0: 'a', 1: 'ü'}", "empty": "", "long": "x" * 5000},
        producer_name="somebody",
        producer_version="3",
        domain="org.example",
        model_version=42,
        doc_string="what the model is",
        graph_name="the graph",
        graph_doc="what the graph is",
    )


@pytest.fixture
def bare(tmp_path):
    return save(tmp_path / "bare.onnx", [helper.make_node("Neg", ["x"], ["y"])], {"x": [1, 4]}, {"y": [1, 4]})


def test_model_metadata(target, described):
    meta = target.session(described).get_modelmeta()
    assert {name: getattr(meta, name) for name in FIELDS} == {
        "producer_name": "somebody",
        "graph_name": "the graph",
        "domain": "org.example",
        "description": "what the model is",
        "graph_description": "what the graph is",
        "version": 42,
    }
    assert meta.custom_metadata_map == {"names": "{0: 'a', 1: 'ü'}", "empty": "", "long": "x" * 5000}
    assert meta.custom_metadata_map is not meta.custom_metadata_map


def test_metadata_of_a_model_that_says_nothing(target, bare):
    session = target.session(bare)
    control = onnxruntime.InferenceSession(bare, providers=CPU)
    for name in FIELDS:
        assert getattr(session.get_modelmeta(), name) == getattr(control.get_modelmeta(), name), name
    assert session.get_modelmeta().custom_metadata_map == {}


def test_metadata_of_a_model_in_memory(target, described):
    with open(described, "rb") as file:
        session = target.session(file.read())
    assert session.get_modelmeta().custom_metadata_map["names"] == "{0: 'a', 1: 'ü'}"
    assert session.get_modelmeta().version == 42


def test_the_getters_give_the_same_objects_and_outlive_the_session(target, described):
    session = target.session(described)
    for getter in ("get_inputs", "get_outputs", "get_modelmeta", "get_overridable_initializers", "get_session_options"):
        assert getattr(session, getter)() is getattr(session, getter)(), getter
    inputs, meta, (output,) = session.get_inputs(), session.get_modelmeta(), session.get_outputs()
    target.made.clear()
    del session
    gc.collect()
    assert (inputs[0].name, inputs[0].shape, inputs[0].type) == ("x", [1, 4], "tensor(float)")
    assert str(output) == "NodeArg(name='y', type='tensor(float)', shape=[1, 4])"
    assert output.shape is not output.shape
    assert meta.graph_name == "the graph"


def test_overridable_initializers_are_no_inputs(target, described):
    session = target.session(described)
    assert [i.name for i in session.get_inputs()] == ["x"]
    x = np.arange(4, dtype=np.float32)[None]
    assert target.same(session.run(None, {"x": x})[0], 2 * x + 1)


def test_overridable_initializers(on_cpu, described):
    session = on_cpu.session(described)
    (scale,) = session.get_overridable_initializers()
    assert (scale.name, scale.shape, scale.type) == ("scale", [1, 4], "tensor(float)")
    x = np.arange(4, dtype=np.float32)[None]
    assert np.array_equal(session.run(None, {"x": x, "scale": x})[0], x * x + 1)
    with pytest.raises(Exception, match="Invalid input name: bias"):
        session.run(None, {"x": x, "bias": x})


def test_overridable_initializers_are_compiled_in_on_the_npu(described):
    """An NPU runs the model as compiled: none is listed, and feeding one raises onnxruntime's own error."""
    from support.targets import TARGETS

    target = TARGETS["ours, NPU"]()
    session = target.session(described)
    assert list(session.get_overridable_initializers()) == []
    x = np.zeros((1, 4), np.float32)
    with pytest.raises(Exception, match="Invalid input name: scale"):
        session.run(None, {"x": x, "scale": x})
    target.close()


@pytest.mark.parametrize(
    ("model", "free"),
    [("free_batch.onnx", "N"), ("dynamic.onnx", "h"), ("two_io.onnx", None), ("tokens_i64.onnx", None)],
)
def test_inputs_and_outputs(target, model, free):
    session = target.session(model)
    control = onnxruntime.InferenceSession(MODELS / model, providers=CPU)
    for mine, theirs in ((session.get_inputs(), control.get_inputs()), (session.get_outputs(), control.get_outputs())):
        assert [(v.name, v.type, len(v.shape)) for v in mine] == [(v.name, v.type, len(v.shape)) for v in theirs]
    if free:
        assert any(isinstance(d, str) for d in session.get_inputs()[0].shape)
        assert any(isinstance(d, str) for d in session.get_outputs()[0].shape)


def test_names_that_are_odd(target, tmp_path):
    name = "save_infer_model/scale_0.tmp_1 ü:0"
    path = save(tmp_path / "odd.onnx", [helper.make_node("Neg", ["x;y"], [name])], {"x;y": [1, 4]}, {name: [1, 4]})
    session = target.session(path)
    x = np.ones((1, 4), np.float32)
    assert [v.name for v in (*session.get_inputs(), *session.get_outputs())] == ["x;y", name]
    assert target.same(session.run([name], {"x;y": x})[0], -x)


def test_a_scalar(target, tmp_path):
    path = save(
        tmp_path / "s.onnx", [helper.make_node("Add", ["x", "s"], ["y"])], {"x": [1, 4], "s": []}, {"y": [1, 4]}
    )
    session = target.session(path)
    assert session.get_inputs()[1].shape == []
    x = np.ones((1, 4), np.float32)
    for scalar in (np.array(3, np.float32), np.full((), 3, np.float32)):
        assert target.same(session.run(None, {"x": x, "s": scalar})[0], x + 3)


def test_memory_and_devices(target):
    session = target.session()
    if version() < (1, 23):
        pytest.fail("1.23.1 is the oldest that is supported")
    assert [info.name for info in session.get_input_memory_infos()] == ["Cpu", "Cpu"]
    assert [info.name for info in session.get_output_memory_infos()] == ["Cpu", "Cpu"]
    assert len(session.get_input_epdevices()) == 2


def test_providers_and_their_options(target):
    session = target.session()
    providers, options = session.get_providers(), session.get_provider_options()
    assert providers[0] == target.provider
    assert providers[-1] == CPU[0]
    assert set(options) == set(providers)
    assert all(isinstance(v, str) for one in options.values() for pair in one.items() for v in pair)


def test_tuning_results_and_dynamic_options(target):
    session = target.session()
    assert session.get_tuning_results() == []
    if hasattr(session, "set_ep_dynamic_options"):
        with pytest.raises(RuntimeError, match="No options were provided"):
            session.set_ep_dynamic_options({})


def test_an_unused_type_is_as_onnxruntime_spells_it(target, tmp_path):
    values = [helper.make_tensor_value_info(n, TensorProto.INT32, [1, 4]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = target.session(model.SerializeToString())
    assert session.get_inputs()[0].type == "tensor(int32)"
    x = np.arange(4, dtype=np.int32)[None]
    assert np.array_equal(session.run(None, {"x": x})[0], -x)
