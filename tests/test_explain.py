"""explain(), devices and error messages are correct."""

import asyncio

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from support.virtual_sessions import MODELS, VIRTUAL, X, session, virtual_rk3588

import ort_rknn as ort
from ort_rknn._cli.main import main
from ort_rknn._ep import registration, support
from ort_rknn_virtual._standin import stand_in

virtual = pytest.fixture(virtual_rk3588)
OURS = "RKNNExecutionProvider"


@pytest.mark.parametrize(
    "device, options, said, unsaid",
    [
        ("virtual:rk3588", {}, "schedule='0,1,2' spreads", "'0,1'"),
        ("virtual:rk3576", {}, "schedule='0,1' spreads", "'0,1,2'"),
        ("virtual:rk3588", {"tp_mode": "all"}, "schedule='0,1,2' spreads", "one run at a time"),
        ("virtual:rk3588", {"schedule": "0,1,2"}, "go round the cores", "spreads"),
        ("virtual:rk3588", {"schedule": "1"}, "every run on core 1", "spreads"),
    ],
)
def test_a_schedule_is_suggested_where_the_soc_has_the_cores(device, options, said, unsaid, tmp_path):
    model = tmp_path / "m.rknn"
    soc = device.partition(":")[2]
    model.write_bytes(stand_in([("x", "float32", (1, 4))], [("y", "float32", (1, 4))], soc))
    with ort.InferenceSession(model, provider_options={"device": device, **options}) as made:
        told = made.explain()
    assert said in told and unsaid not in told


@pytest.mark.parametrize(
    "options, said",
    [
        ({}, "one after the other"),
        ({"threads_per_core": 2}, "by 2 contexts in turn"),
        ({"schedule": "0,0"}, "one after the other"),
        ({"schedule": "0,1,2"}, "over the cores in parallel"),
        ({"schedule": "auto"}, "over the cores in parallel"),
    ],
)
def test_how_a_batch_is_spread(options, said, virtual):
    with session(MODELS / "free_batch.onnx", split_batch="true", **options) as made:
        (line,) = (line for line in made.explain().splitlines() if line.startswith("batch:"))
    assert said in line


def test_devices_where_no_library_can_be_opened(monkeypatch, capsys):
    monkeypatch.setattr(registration, "may_open_a_library", lambda: False)
    assert main(["devices", "--device", "virtual:rk3588"]) == 1
    assert (
        "No session can use an NPU in this process: this host does not let a library be opened"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "feed", [X, [X], None, 3, (("x", X),), X[0]], ids=["array", "list", "None", "int", "pairs", "3-D"]
)
@pytest.mark.parametrize("device", ["virtual", "cpu"])
def test_a_feed_that_is_no_dict(feed, device, virtual):
    made = (
        session()
        if device == "virtual"
        else ort.InferenceSession(MODELS / "conv_f16.onnx", providers=["CPUExecutionProvider"])
    )
    ways = (
        lambda: made.submit(None, feed),
        lambda: made.submit(None, feed, copy=False),
        lambda: list(made.map([feed])),
        lambda: made.run_pipeline(feed),
        lambda: asyncio.run(made.run_awaitable(None, feed)),
    )
    with made:
        for way in ways:
            with pytest.raises(TypeError, match=r"input_feed is a dict of arrays by input name, \{'x': ...\}; got "):
                way()
        with pytest.raises(AttributeError, match=r"'keys': input_feed is a dict of arrays by input name, \{'x'"):
            made.run(None, feed)


# LoRA adapters ----------------------------------------------------------------------------------------------------


@pytest.fixture
def adapted(tmp_path):
    """A model with a weight that an adapter can replace, its twin, and run options with such an adapter."""
    weight = numpy_helper.from_array(np.zeros((4, 4), np.float32), "lora_w")
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("MatMul", ["x", "lora_w"], ["m"]), helper.make_node("Add", ["x", "m"], ["y"])]
    inputs = [value("x", TensorProto.FLOAT, [1, 4]), value("lora_w", TensorProto.FLOAT, [4, 4])]
    graph = helper.make_graph(nodes, "g", inputs, [value("y", TensorProto.FLOAT, [1, 4])], [weight])
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "m.onnx")
    twin = stand_in([("x", "float32", (1, 4))], [("y", "float32", (1, 4))], "rk3588")
    (tmp_path / "m.rknn").write_bytes(twin)
    made = onnxruntime.AdapterFormat()
    made.set_adapter_version(1)
    made.set_model_version(1)
    made.set_parameters({"lora_w": onnxruntime.OrtValue.ortvalue_from_numpy(np.eye(4, dtype=np.float32))})
    made.export_adapter(str(tmp_path / "a.onnx_adapter"))
    lora, options = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
    lora.Load(str(tmp_path / "a.onnx_adapter"))
    options.add_active_adapter(lora)
    yield tmp_path / "m.onnx", options
    del lora  # run options do not keep it


ONE = {"x": np.ones((1, 4), np.float32)}


def quiet():
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return options


def test_a_lora_adapter_works_on_the_cpu(adapted):
    path, options = adapted
    made = ort.InferenceSession(path, quiet(), ["CPUExecutionProvider"])
    np.testing.assert_array_equal(made.run(None, ONE, options)[0], 2 * ONE["x"])


def test_a_lora_adapter_is_refused_on_the_npu(adapted, virtual):
    path, options = adapted
    with ort.InferenceSession(path, quiet(), provider_options=VIRTUAL) as made:
        assert made.get_providers()[0] == OURS
        assert "(lora_w) were compiled in: feeding one, or an active LoRA adapter for one, is" in made.explain()
        with pytest.raises(InvalidArgument, match="Invalid input name: lora_w"):
            made.run(None, ONE, options)
        with pytest.raises(InvalidArgument, match="lora_w"):
            made.run(None, {**ONE, "lora_w": np.eye(4, dtype=np.float32)})


@pytest.mark.skipif(not support.by_name(), reason="by device it is the same code")
@pytest.mark.parametrize("strict", [False, True])
def test_the_unmodified_onnxruntime_never_passes_over_an_adapter(strict, adapted, python):
    """It does not refuse what its graph has, and a claimed graph would not heed it."""
    path, _ = adapted
    code = f"""
import warnings, numpy as np, onnxruntime, ort_rknn
ort_rknn.register()
quiet = onnxruntime.SessionOptions(); quiet.log_severity_level = 4
one, eye = np.ones((1, 4), np.float32), np.eye(4, dtype=np.float32)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    try:
        session = onnxruntime.InferenceSession({str(path)!r}, quiet, ["{OURS}"])
    except Exception as error:
        print("error", "inputs of the graph" in str(error), "ORT_RKNN_STRICT" in str(error))
    else:
        lora, options = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
        lora.Load({str(path.with_name("a.onnx_adapter"))!r})
        options.add_active_adapter(lora)
        results = [session.run(None, {{"x": one}}, options)[0], session.run(None, {{"x": one, "lora_w": eye}})[0]]
        print("ran", all((result == 2).all() for result in results), "inputs of the graph" in str(said[0].message))
"""
    environ = {"ORT_RKNN_DEVICE": "virtual:rk3588", "ORT_RKNN_STRICT": str(int(strict))}
    assert python(code, env=environ, quiet=False).split() == (["error"] if strict else ["ran"]) + ["True", "True"]
