"""The programs in examples/ run as they are; what they need and is not here is said."""

import runpy
from pathlib import Path

import pytest
from virtual_sessions import MODELS, virtual_rk3588

npu = pytest.fixture(virtual_rk3588)
EXAMPLES = Path(__file__).parents[1] / "examples"


def test_opencv_resizes_into_npu_memory(npu, monkeypatch, capsys):
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    monkeypatch.setenv("ORT_RKNN_DEVICE", "virtual:rk3588")
    since = npu.events()[-1].sequence if npu.events() else 0
    main = runpy.run_path(str(EXAMPLES / "npu_memory_opencv.py"))["main"]
    assert main(str(MODELS / "conv_f16.onnx")) == 100
    assert "inputs_set" not in {event.kind for event in npu.events(since)}
    assert "100 runs bound NPU memory" in capsys.readouterr().out


def test_gstreamer_that_is_not_installed_is_said():
    try:
        import gi  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("GStreamer for Python is installed")
    main = runpy.run_path(str(EXAMPLES / "npu_memory_gstreamer.py"))["main"]
    with pytest.raises(SystemExit, match="GStreamer for Python is not here"):
        main("model.onnx", "videotestsrc")


def test_a_gstreamer_pipeline(npu, monkeypatch, capsys):
    gi = pytest.importorskip("gi", reason="GStreamer for Python is not installed")
    try:
        gi.require_version("GstAllocators", "1.0")
    except ValueError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("ORT_RKNN_DEVICE", "virtual:rk3588")
    main = runpy.run_path(str(EXAMPLES / "npu_memory_gstreamer.py"))["main"]
    caps = "video/x-raw,format=RGB,width=32,height=32"
    assert main(str(MODELS / "conv_f16.onnx"), f"videotestsrc num-buffers=5 ! {caps}") == 5
