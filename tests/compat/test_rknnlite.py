"""The face of rknnlite, on the virtual NPU and on the CPU: results, forms of input, versions, its module."""

import importlib
import logging
import os
import sys

import numpy as np
import pytest
from support.rknnlite_models import CONV, MANIFEST, MODELS, X, feed_of, on_cpu, started, virtual_rk3588, without_npu

from ort_rknn_rknnlite import api, install, offer, uninstall
from ort_rknn_rknnlite.api import RKNNLite

npu = pytest.fixture(virtual_rk3588)
no_npu = pytest.fixture(without_npu)

GOLDEN = [(name, golden["file"]) for name, entry in MANIFEST.items() for golden in entry["golden"]]


def assert_golden(outputs, values, name):
    declared = MANIFEST[name]["declared"]["outputs"]
    assert len(outputs) == len(declared)
    for tensor, output in zip(declared, outputs, strict=True):
        assert output.dtype == np.float32 and output.flags.owndata and output.flags.writeable
        want = values[f"simulator/{tensor['name']}"]
        scale = tensor.get("scale") or 0
        limit = max(5 * scale, 4e-3 * max(1.0, float(np.abs(want).max())))
        assert np.abs(output - want.reshape(output.shape)).max() <= limit


# Numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "golden"), GOLDEN)
def test_every_model_gives_the_vendor_s_numbers(npu, monkeypatch, name, golden):
    monkeypatch.setenv("ORT_RKNN_DEVICE", f"virtual:{MANIFEST[name]['target']}")
    values = np.load(MODELS / golden)
    made = started(MODELS / name)
    assert_golden(made.inference(feed_of(values, name)), values, name)
    made.release()


@pytest.mark.parametrize(("name", "golden"), [g for g in GOLDEN if ".rk3588." in g[0]])
def test_and_on_the_cpu_where_there_is_no_npu(no_npu, name, golden):
    values = np.load(MODELS / golden)
    made = on_cpu(MODELS / name)
    assert_golden(made.inference(feed_of(values, name)), values, name)
    made.release()


@pytest.mark.parametrize("where", ["npu", "no_npu"])
def test_forms_of_input(where, request):
    request.getfixturevalue(where)
    made = started() if where == "npu" else on_cpu()
    ones = (np.arange(X.size) % 2).reshape(X.shape)
    nchw = X.transpose(0, 3, 1, 2)
    (want,) = made.inference([X])
    (binary,) = made.inference([ones.astype(np.float32)])
    for dtype in ("uint8", "int8", "float16", "int32", "bool", "int64"):
        np.testing.assert_array_equal(made.inference([ones.astype(dtype)])[0], binary)
    for arguments in (
        {"inputs": [nchw], "data_format": "nchw"},
        {"inputs": [np.ascontiguousarray(nchw)], "data_format": ["nchw"]},
        {"inputs": [np.asfortranarray(X)], "data_type": "float32", "data_format": "NHWC"},
        {"inputs": [X], "data_type": ["float32"], "data_format": ["nhwc"], "inputs_pass_through": [0]},
        {"inputs": X},
        {"inputs": [X], "reuse_outputs": True},
    ):
        np.testing.assert_array_equal(made.inference(**arguments)[0], want)
    (same,) = made.inference([X.astype(np.float16)], inputs_pass_through=[1])
    np.testing.assert_allclose(same, want, atol=1e-2)
    made.release()


@pytest.mark.parametrize("where", ["npu", "no_npu"])
def test_quantized_values_pass_through(where, request):
    request.getfixturevalue(where)
    made = started(MODELS / "conv_i8.rk3588.rknn") if where == "npu" else on_cpu(MODELS / "conv_i8.rk3588.rknn")
    tensor = MANIFEST["conv_i8.rk3588.rknn"]["declared"]["inputs"][0]
    stored = np.random.default_rng(2).integers(-128, 128, (1, 32, 32, 3), np.int8)
    real = (stored.astype(np.float32) - tensor["zero_point"]) * np.float32(tensor["scale"])
    (want,) = made.inference([real])
    (got,) = made.inference([stored], inputs_pass_through=[1])
    np.testing.assert_allclose(got, want, atol=1e-5)
    (got,) = made.inference([stored.transpose(0, 3, 1, 2)], data_format="nchw", inputs_pass_through=[1])
    np.testing.assert_allclose(got, want, atol=1e-5)
    made.release()


@pytest.mark.parametrize("where", ["npu", "no_npu"])
def test_a_scalar_has_an_axis(where, request):
    """The ONNX gives (), the NPU (1,): programs index it."""
    request.getfixturevalue(where)
    path = MODELS / "scalarish.rk3588.rknn"
    made = started(path) if where == "npu" else on_cpu(path)
    outputs = made.inference(feed_of(np.load(MODELS / "scalarish.rk3588.golden.npz"), path.name))
    assert [output.shape for output in outputs] == [(1, 4, 8), (8,), (1,)]
    assert all(output.flags.owndata for output in outputs)
    made.release()


def test_camera_frames(npu, monkeypatch):
    """uint8 NHWC into a model that normalizes; the CPU does as the NPU does."""
    values = np.load(MODELS / "image_u8.rk3588.golden.npz")
    made = started(MODELS / "image_u8.rk3588.rknn")
    (by_npu,) = made.inference([values["input/image"]])
    made.release()
    monkeypatch.setenv("ORT_RKNN_DISABLE", "1")
    made = on_cpu(MODELS / "image_u8.rk3588.rknn")
    (by_cpu,) = made.inference([values["input/image"]])
    assert np.abs(by_npu - by_cpu).max() < 0.2
    made.release()


def test_what_is_given_is_unchanged(npu):
    made = started()
    given, formats, through = [X.transpose(0, 3, 1, 2).copy()], ["nchw"], [0]
    kept = given[0].copy()
    first = made.inference(given, data_format=formats, inputs_pass_through=through)[0]
    again = made.inference(given, data_format=formats, inputs_pass_through=through)[0]
    np.testing.assert_array_equal(first, again)
    assert given[0].shape == (1, 3, 32, 32) and np.array_equal(given[0], kept)
    assert (formats, through) == (["nchw"], [0])
    made.release()


def test_frame_ids(npu):
    """Two numbers after the outputs; they restart with every init_runtime()."""
    made = started()
    assert [made.inference([X], get_frame_id=True)[1:] for _ in range(3)] == [[1, 1], [2, 2], [3, 3]]
    made.inference([X])
    assert made.inference([X], get_frame_id=True)[1:] == [5, 5]
    made.init_runtime()
    assert made.inference([X], get_frame_id=True)[1:] == [1, 1]
    made.release()


# The rest of the class --------------------------------------------------------------------------------------------


def test_versions_and_targets(npu, capsys, caplog):
    made = started()
    assert "API: 2." in made.get_sdk_version() and "DRV: " in made.get_sdk_version()
    assert made.list_support_target_platform() is None  # with a model loaded, too
    names = "RK3588, RK3576, RK3562, RK3566, RK3568, RV1126B"
    assert capsys.readouterr().out == f"All supported target platforms: {names}\n"
    assert made.list_support_target_platform(str(CONV))["filled_target_platform"] == ["rk3588"]
    assert RKNNLite().list_support_target_platform(MODELS / "conv_f16.rk3576.rknn") == {
        "filled_target_platform": ["rk3576"],
        "support_target_platform": ["RK3576"],
    }
    assert "['RK3588']" in capsys.readouterr().out
    assert made.list_devices() == ([], [])
    made.release()
    RKNNLite(verbose_file="x.log")
    assert "verbose_file is not written" in caplog.text


def test_install(monkeypatch):
    saved = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "rknnlite"}
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    paths = list(sys.path)
    try:
        install()
        install()
        from rknnlite.api import RKNNLite as taken
        from rknnlite.api import rknn_runtime

        assert taken is RKNNLite
        assert rknn_runtime.RKNNOutput is api.rknn_runtime.RKNNOutput
        for name in ("rknnlite.api.rknn_lite", "rknnlite.api.rknn_runtime", "rknnlite.utils"):
            assert importlib.import_module(name) is sys.modules[name]
        import rknnlite.api.rknn_lite as lite
        import rknnlite.api.rknn_runtime as runtime
        import rknnlite.utils as utils

        assert lite.RKNNLite is RKNNLite and runtime is rknn_runtime and utils is sys.modules["rknnlite.utils"]
        assert os.environ["PYTHONPATH"].split(os.pathsep)[1:] == ["/somewhere"]
        assert len(sys.path) == len(paths) + 1
        uninstall()
        uninstall()
        assert not [name for name in sys.modules if name.partition(".")[0] == "rknnlite"]
        assert os.environ["PYTHONPATH"] == "/somewhere"
        assert sys.path == paths
        monkeypatch.delenv("PYTHONPATH")
        offer()
        offer()
        import rknnlite

        assert rknnlite.api is api
        uninstall()
        assert "PYTHONPATH" not in os.environ
        sys.modules["rknnlite"] = logging
        with pytest.raises(RuntimeError, match="rknnlite is imported already"):
            install()
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "rknnlite"]:
            del sys.modules[name]
        uninstall()
        sys.modules.update(saved)


def test_api_is_a_module_of_that_name():
    assert api.__name__ == "ort_rknn_rknnlite.api"
    assert api.__all__ == ["RKNNLite", "RKNNLiteError", "rknn_runtime"]
