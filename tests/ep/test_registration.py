"""Registering with onnxruntime and taking it back; versions; the names that plugin packages offer."""

import gc
import threading
from contextlib import suppress

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state
from support.fake_npu import FakeNpu, install

import ort_rknn
from ort_rknn._ep import registration, support
from ort_rknn._options import PROVIDER
from ort_rknn._session.closed import bindings_keep_it
from ort_rknn.adapter import Device


def ours():
    return [d for d in onnxruntime.get_ep_devices() if d.ep_name == PROVIDER]


@pytest.fixture(autouse=True)
def unregistered():
    gc.collect()
    ort_rknn.unregister()
    yield
    gc.collect()
    ort_rknn.unregister()


def test_register_and_unregister_twice(npu):
    for _ in range(3):
        assert not registration.is_registered() and not ours()
        ort_rknn.register()
        ort_rknn.register()  # does nothing
        assert registration.is_registered()
        (device,) = ours()
        assert (device.ep_name, device.ep_vendor) == (PROVIDER, "Rockchip")
        told = device.ep_metadata
        assert (told["device"], told["soc"], told["cores"], told["adapter"]) == ("rk3588", "rk3588", "3", "fake")
        assert told["virtual"] == "0"
        ort_rknn.unregister()
        ort_rknn.unregister()


def test_the_hardware_is_an_npu_where_onnxruntime_lets_us_say_so(npu):
    ort_rknn.register()
    (device,) = ours()
    kinds = onnxruntime.OrtHardwareDeviceType
    minor = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
    assert device.device.type == (kinds.NPU if minor >= (1, 24) else kinds.CPU)


def test_a_virtual_device_says_so(monkeypatch):
    install(FakeNpu(virtual=True), monkeypatch.setattr)
    with pytest.raises(state.Fail, match=r"no NPU to register: no hardware. device='virtual:rk3588'"):
        ort_rknn.register()
    ort_rknn.register(device="virtual:rk3588")
    assert ours()[0].ep_metadata["virtual"] == "1"
    ort_rknn.unregister()
    monkeypatch.setenv("ORT_RKNN_DEVICE", "virtual:rk3588")
    ort_rknn.register()
    assert ours()[0].ep_metadata["device"] == "virtual:rk3588"


def test_without_a_device(npu):
    npu.present = False
    with pytest.raises(state.Fail, match=r"no NPU to register: the fake NPU is switched off. switch it on"):
        ort_rknn.register()
    assert not registration.is_registered()
    npu.present = True
    ort_rknn.register()


def test_bad_arguments(npu):
    with pytest.raises(ort_rknn.OptionError):
        ort_rknn.register(device="")
    with pytest.raises(ort_rknn.OptionError):
        ort_rknn.register(runtime_library=3)
    assert not registration.is_registered()


def test_a_sessions_device_is_listed_too(npu):
    other = Device("fake", "other", "rk3576", 2)
    with registration.held(other):
        names = [d.ep_metadata["device"] for d in ours()]
    minor = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
    assert names == ["rk3588", "other"] if minor >= (1, 24) else names[0] == "rk3588"


def test_a_device_added_by_a_session_serves_the_unmodified_onnxruntime(models):
    """No device was known at registration: the session added it."""
    from ort_rknn_virtual.control import virtual_npu

    virtual = virtual_npu("rk3588")
    virtual.reset()
    path = models / "conv_f16.onnx"
    with ort_rknn.InferenceSession(path, provider_options={"device": "virtual:rk3588"}):
        options = onnxruntime.SessionOptions()
        options.add_provider_for_devices(ours()[:1], {})
        session = onnxruntime.InferenceSession(path, options)
        session.run(None, {"x": np.zeros((1, 3, 32, 32), np.float32)})
        assert sum(virtual.counters().runs) == 1
        del session


def test_live_sessions_keep_it(npu, models):
    session = ort_rknn.InferenceSession(models / "conv_f16.onnx")
    assert registration.is_registered()
    for _ in range(2):
        with pytest.raises(state.Fail, match="1 sessions still have the RKNN execution provider"):
            ort_rknn.unregister()
    assert session.get_providers()[0] == PROVIDER
    del session
    gc.collect()
    ort_rknn.unregister()
    assert not ours()
    assert ort_rknn.InferenceSession(models / "conv_f16.onnx").get_providers()[0] == PROVIDER


@pytest.mark.skipif(not bindings_keep_it(), reason="the closed session keeps it before onnxruntime 1.30")
def test_a_closed_session_does_not_keep_it(npu, models):
    """close() also releases onnxruntime's session; get_inputs() still works."""
    session = ort_rknn.InferenceSession(models / "conv_f16.onnx")
    session.close()
    ort_rknn.unregister()
    assert session.get_inputs()[0].name == "x"
    assert not ours()


def test_a_session_that_is_being_made_keeps_it(npu, models):
    """onnxruntime reads the device's metadata in its constructor: unregistering frees it, which crashed the process."""
    refused = []

    class Session(ort_rknn.InferenceSession):
        def _create_inference_session(self, *args, **kwargs):
            with pytest.raises(state.Fail, match="1 sessions are being made with the RKNN execution provider") as error:
                ort_rknn.unregister()
            refused.append(str(error.value))  # the exception itself would hold the session
            super()._create_inference_session(*args, **kwargs)

    session = Session(models / "conv_f16.onnx")
    assert len(refused) == 1 and session.get_providers()[0] == PROVIDER
    npu.fail_context = 0
    with pytest.warns(ort_rknn.FallbackWarning):
        Session(models / "conv_f16.onnx")
    npu.fail_context = None
    options = onnxruntime.SessionOptions()
    options.add_provider_for_devices(ours(), {})
    Session(models / "conv_f16.onnx", options)
    assert len(refused) == 3
    with pytest.raises(state.NoSuchFile):
        ort_rknn.InferenceSession(models / "nothing.onnx")
    del session
    gc.collect()
    ort_rknn.unregister()  # no count is left over


def test_sessions_that_come_and_go_while_others_unregister(npu, models):
    ended = threading.Event()
    made = []

    def unregister():
        while not ended.is_set():
            with suppress(state.Fail):
                ort_rknn.unregister()

    other = threading.Thread(target=unregister)
    other.start()
    try:
        for _ in range(30):
            made.append(ort_rknn.InferenceSession(models / "conv_f16.onnx").get_providers()[0])
    finally:
        ended.set()
        other.join()
    assert made == [PROVIDER] * 30


def test_unregistered_by_onnxruntimes_own_function(npu, models):
    """We are not notified: the next session has to find out."""
    for _ in range(2):
        ort_rknn.register()
        onnxruntime.unregister_execution_provider_library(PROVIDER)
        assert not registration.is_registered()
        ort_rknn.unregister()
    ort_rknn.register()
    onnxruntime.unregister_execution_provider_library(PROVIDER)
    session = ort_rknn.InferenceSession(models / "conv_f16.onnx")
    assert session.get_providers()[0] == PROVIDER
    assert len(ours()) == 1


def test_default_sessions_of_onnxruntime_are_not_touched(npu, models):
    ort_rknn.register()
    session = onnxruntime.InferenceSession(models / "conv_f16.onnx")
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert npu.loads == 0


def test_another_registration_name(npu, models):
    ort_rknn.register("mine")
    assert len(ours()) == 1
    assert ort_rknn.InferenceSession(models / "conv_f16.onnx").get_providers()[0] == PROVIDER
    gc.collect()
    ort_rknn.unregister()
    assert not ours()


def test_as_plugin_packages_are_used(npu, models):
    """A path for onnxruntime's own function, under the usual names."""
    import numpy as np

    assert ort_rknn.get_ep_names() == [PROVIDER]
    for _ in range(2):
        onnxruntime.register_execution_provider_library("plugin", ort_rknn.get_library_path())
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == ort_rknn.get_ep_names()[0]]
        assert len(devices) == 1
        options.add_provider_for_devices(devices, {"schedule": "0,1"})
        session = onnxruntime.InferenceSession(str(models / "conv_f16.onnx"), options)
        session.run(None, {"x": np.zeros((1, 3, 32, 32), np.float32)})
        assert npu.masks[-1] == 1
        del session, devices, options
        gc.collect()
        onnxruntime.unregister_execution_provider_library("plugin")
    assert npu.open_models == 0


def test_our_session_when_the_user_registered_by_path(npu, models):
    onnxruntime.register_execution_provider_library("plugin", ort_rknn.get_library_path())
    try:
        session = ort_rknn.InferenceSession(models / "conv_f16.onnx")
        assert session.get_providers()[0] == PROVIDER
        del session
        gc.collect()
        ort_rknn.unregister()
    finally:
        onnxruntime.unregister_execution_provider_library("plugin")


@pytest.mark.parametrize(
    "version, number",
    [
        ("1.23.1", (1, 23, 1)),
        ("1.25", (1, 25, 0)),
        ("1.32.0+cpu", (1, 32, 0)),
        ("1.26.0rc1", (1, 26, 1)),
        ("2.0.0.dev3", (2, 0, 0)),
    ],
)
def test_versions(monkeypatch, version, number):
    support.onnxruntime_version.cache_clear()
    monkeypatch.setattr(onnxruntime, "__version__", version)
    try:
        found = support.onnxruntime_version()
        assert found[:2] == number[:2]
        assert support.by_name() == (found >= (1, 25, 1))
    finally:
        support.onnxruntime_version.cache_clear()


def test_available_providers(npu):
    plain = [p for p in onnxruntime.get_available_providers() if p != PROVIDER]
    assert ort_rknn.get_available_providers() == [PROVIDER, *plain]
    npu.present = False
    assert ort_rknn.get_available_providers() == plain
    assert ort_rknn.devices() == []
    assert ort_rknn.get_all_providers()[0] == PROVIDER
    npu.present = True
    assert [d.name for d in ort_rknn.devices()] == ["rk3588"]
    ort_rknn.register()
    assert ort_rknn.get_available_providers() == [PROVIDER, *plain]


def test_concurrent_registration(npu, models):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: ort_rknn.register(), range(16)))
    assert len(ours()) == 1
