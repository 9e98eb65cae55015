"""The face of EZ RKNN Async without an NPU, and on an ONNX model: its twin, or a fallback that is reported."""

import shutil
import warnings

import numpy as np
import pytest
from support.ez_async_models import CONV, MODELS, Collector, X, fresh_npu, make, runs

import ort_rknn
import ort_rknn_ez_async as ez

npu = pytest.fixture(fresh_npu, autouse=True)


@pytest.fixture
def beside(tmp_path):
    for name in ("conv_f16", "image_u8", "conv_i8"):
        for end in (".onnx", ".rk3588.rknn"):
            shutil.copy(MODELS / (name + end), tmp_path)
    return tmp_path


def test_without_an_npu_the_onnx_runs_on_the_cpu_and_a_warning_says_so(beside):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        session = ez.InferenceSession(
            beside / "conv_f16.rk3588.rknn", provider_options=ez.make_provider_options(schedule=0)
        )
    assert [w.category for w in caught] == [ort_rknn.FallbackWarning]
    assert caught[0].filename == __file__
    assert session.get_providers() == ["CPUExecutionProvider"]
    with make(beside / "conv_f16.rk3588.rknn") as on_npu:
        for ours, theirs in zip(
            session.get_inputs() + session.get_outputs() + session.get_native_inputs() + session.get_native_outputs(),
            on_npu.get_inputs() + on_npu.get_outputs() + on_npu.get_native_inputs() + on_npu.get_native_outputs(),
            strict=True,
        ):
            assert repr(ours) == repr(theirs)
        assert session.get_modelmeta() == on_npu.get_modelmeta()
        assert np.abs(session.run(None, X)[0] - on_npu.run(None, X)[0]).max() < 1e-2
        many = np.concatenate([X, X])
        flag = {"ztu_modelrt_dispatch_batch": True}
        assert np.abs(session.run(None, many, flag)[0] - on_npu.run(None, many, flag)[0]).max() < 1e-2
        for text, feed in (("shape mismatch", X[:, :2]), ("rank mismatch", X[0])):
            for one in (session, on_npu):
                with pytest.raises(RuntimeError, match=text):
                    one.run(None, feed)
    got = Collector(1)
    session.run_async(None, X.astype(np.float64), got, "d")
    assert got.done.wait(10)
    assert got.calls[0][1:] == ("d", "")
    assert session.run_pipeline(X, 1) is None
    session.close()
    with pytest.raises(RuntimeError, match="closed"):
        session.run(None, X)


@pytest.mark.filterwarnings("ignore::ort_rknn.FallbackWarning")
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_pixels_on_the_cpu_are_normalized_as_the_compiled_model_does(beside, layout):
    pixels = np.load(MODELS / "image_u8.rk3588.golden.npz")["input/image"]  # NHWC
    pixels = pixels if layout == "nhwc" else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    path = beside / "image_u8.rk3588.rknn"
    with make(path, layout=layout) as on_npu, ez.InferenceSession(path, provider_options={"layout": layout}) as on_cpu:
        for feed in (pixels, pixels.astype(np.float32)):
            assert np.abs(on_cpu.run(None, feed)[0] - on_npu.run(None, feed)[0]).max() < 0.1


def test_no_npu_and_no_onnx_is_an_error(tmp_path):
    shutil.copy(CONV, tmp_path / "only.rknn")
    with pytest.raises(RuntimeError, match=r"looked for .*only\.onnx"):
        ez.InferenceSession(tmp_path / "only.rknn")


def test_an_onnx_runs_its_twin(npu, beside):
    with make(beside / "conv_f16.onnx") as session:
        assert session.get_providers() == ["RKNPU2ExecutionProvider"]
        session.run(None, X)
    assert len(runs(npu)) == 1
    with ez.InferenceSession(beside / "conv_f16.onnx", providers=["CPUExecutionProvider"]) as session:
        assert session.get_providers() == ["CPUExecutionProvider"]


def test_enable_fallback_0_insists(beside):
    with pytest.raises(RuntimeError, match="no fallback"):
        ez.InferenceSession(beside / "conv_f16.rk3588.rknn", enable_fallback=0)
