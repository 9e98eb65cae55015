"""Selecting the (virtual) NPU: providers in every spelling, the environment, option values good and bad."""

import numpy as np
import pytest
from ort_rknn.capi.onnxruntime_pybind11_state import InvalidArgument
from support.virtual_sessions import MODELS, VIRTUAL, X, session, virtual_rk3588

import ort_rknn as ort

npu = pytest.fixture(virtual_rk3588)


@pytest.mark.parametrize(
    "arguments",
    [
        {"providers": [("RKNNExecutionProvider", VIRTUAL)]},
        {"providers": [("RKNNExecutionProvider", VIRTUAL), "CPUExecutionProvider"]},
        {"providers": ["RKNNExecutionProvider"], "provider_options": [VIRTUAL]},
        {"providers": ["RKNNExecutionProvider", "CPUExecutionProvider"], "provider_options": [VIRTUAL, {}]},
        {"providers": ["RKNPU2ExecutionProvider"], "provider_options": VIRTUAL},
        {"providers": ["RknnExecutionProvider", "CPUExecutionProvider"], "provider_options": [VIRTUAL]},
        {"providers": "RKNNExecutionProvider", "provider_options": VIRTUAL},
        {"provider_options": VIRTUAL},
        {"provider_options": [VIRTUAL]},
        {"providers": [], "provider_options": VIRTUAL},
    ],
    ids=str,
)
def test_providers_in_every_spelling(npu, arguments):
    with ort.InferenceSession(MODELS / "conv_f16.onnx", **arguments) as made:
        assert made.get_providers() == ["RKNNExecutionProvider", "CPUExecutionProvider"]
        options = made.get_provider_options()
        assert options["RKNNExecutionProvider"]["device"] == "virtual:rk3588"
        assert options["RKNNExecutionProvider"]["tp_mode"] == "auto"
        assert options["CPUExecutionProvider"] == {}
        assert made.run(None, {"x": X})[0].shape == (1, 8, 16, 16)


def test_the_order_of_providers_is_law_and_the_cpu_first_takes_every_node(npu, monkeypatch):
    """As in onnxruntime. It may be a mistake, so there is a warning. A compiled model still runs on the NPU."""
    providers = ["CPUExecutionProvider", ("RKNNExecutionProvider", VIRTUAL)]
    with pytest.warns(
        ort.FallbackWarning, match="CPUExecutionProvider was named before .* Name the NPU's provider first"
    ):
        made = ort.InferenceSession(MODELS / "conv_f16.onnx", providers=providers)
    assert made.get_providers() == ["CPUExecutionProvider"]
    with ort.InferenceSession(MODELS / "conv_f16.rk3588.rknn", providers=providers) as made:
        assert made.get_providers()[0] == "RKNNExecutionProvider"
    monkeypatch.setenv("ORT_RKNN_POLICY", "prefer")
    with ort.InferenceSession(MODELS / "conv_f16.onnx", providers=providers) as made:
        assert made.get_providers() == ["RKNNExecutionProvider", "CPUExecutionProvider"]
        assert "RKNNExecutionProvider comes first, though CPUExecutionProvider was named before it" in made.explain()


def test_the_environment_selects_it(npu, monkeypatch):
    monkeypatch.setenv("ORT_RKNN_DEVICE", "virtual:rk3588")
    assert ort.get_available_providers()[0] == "RKNNExecutionProvider"
    assert [d.name for d in ort.devices()] == ["virtual:rk3588"]
    with ort.InferenceSession(MODELS / "conv_f16.onnx") as made:
        assert made.get_providers()[0] == "RKNNExecutionProvider"
    with ort.InferenceSession(MODELS / "conv_f16.onnx", providers=["CPUExecutionProvider"]) as made:
        assert made.get_providers() == ["CPUExecutionProvider"]
    monkeypatch.setenv("ORT_RKNN_POLICY", "prefer")
    with ort.InferenceSession(MODELS / "conv_f16.onnx", providers=["CPUExecutionProvider"]) as made:
        assert made.get_providers()[0] == "RKNNExecutionProvider"


def test_option_values_as_objects_and_as_text(npu):
    for schedule in ([0, 1, 2], "0,1,2", "[0, 1, 2]", (0, 1, 2), range(3), np.arange(3)):
        with session(schedule=schedule, threads_per_core="2") as made:
            options = made.get_provider_options()["RKNNExecutionProvider"]
            assert (options["schedule"], options["threads_per_core"]) == ("0,1,2", "2")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"shedule": "0"}, "unknown provider option 'shedule'.*schedule, threads_per_core, tp_mode"),
        ({"schedule": "0,a"}, "'a' is not a core number"),
        ({"schedule": "0,3"}, "names core 3, but rk3588 has cores 0, 1, 2 only"),
        ({"schedule": "0", "tp_mode": "all"}, "exclude each other"),
        ({"tp_mode": "1,2"}, "one of 'auto', 'all', '0', '1', '2', '0,1', '0,1,2'"),
        ({"threads_per_core": 0}, "expected an integer >= 1"),
        ({"layout": "nhcw"}, "one of 'nchw'"),
        ({"layout": {"z": "nhwc"}}, "names an input 'z'; the model has x"),
        ({"input_dtype": "float8"}, "one of 'float32'"),
        ({"adapter": "nope"}, "installed are"),
        ({"run_core_mask": "auto"}, "not supported.*RKNPU3"),
    ],
)
def test_bad_options_are_errors_that_say_what_is_accepted(npu, options, text):
    with pytest.raises(InvalidArgument, match=text) as caught:
        session(**options)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, ort.OptionError)


def test_cores_that_the_soc_lacks(npu):
    with pytest.raises(ort.OptionError, match="tp_mode='0,1,2' names a core that rk3576 lacks: it has cores 0, 1"):
        session(device="virtual:rk3576", tp_mode="0,1,2", rknn_model=MODELS / "conv_f16.rk3576.rknn")
    with pytest.raises(ort.OptionError, match="rk3566 has core 0 only"):
        session(device="virtual:rk3566", schedule=[0, 1], rknn_model=MODELS / "conv_f16.rk3566.rknn")
    for mode in ("auto", "all", "0"):
        with session(device="virtual:rk3566", tp_mode=mode, rknn_model=MODELS / "conv_f16.rk3566.rknn") as made:
            made.run(None, {"x": X})
