"""The programs in examples/ run unmodified; missing requirements are reported."""

import io
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.virtual_sessions import MODELS, X, folder_with_twin, virtual_rk3588

npu = pytest.fixture(virtual_rk3588)
folder = pytest.fixture(folder_with_twin)
EXAMPLES = Path(__file__).parents[1] / "examples"
#: Read here: tests see none of the variables of ours.
TOOLKIT = os.environ.get("ORT_RKNN_TOOLKIT")


def test_opencv_resizes_into_npu_memory(npu, monkeypatch, capsys):
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    monkeypatch.setenv("ORT_RKNN_DEVICE", "virtual:rk3588")
    since = npu.events()[-1].sequence if npu.events() else 0
    main = runpy.run_path(str(EXAMPLES / "npu_memory_opencv.py"))["main"]
    assert main(str(MODELS / "conv_f16.onnx")) == 100
    assert "inputs_set" not in {event.kind for event in npu.events(since)}
    assert "100 runs bound NPU memory" in capsys.readouterr().out


def test_a_missing_gstreamer_is_reported():
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


def test_a_video_through_three_cores(npu, monkeypatch, capsys, tmp_path):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    monkeypatch.setenv("ORT_RKNN_DEVICE", "virtual:rk3588")
    monkeypatch.setenv("ORT_RKNN_STRICT", "1")
    npu.run_time_us = 20_000
    video = str(tmp_path / "video.avi")
    writer = cv2.VideoWriter(video, cv2.VideoWriter_fourcc(*"MJPG"), 30, (64, 48))
    for k in range(40):
        writer.write(np.full((48, 64, 3), 6 * k, np.uint8))
    writer.release()
    example = runpy.run_path(str(EXAMPLES / "camera_opencv.py"))
    assert example["main"]([str(MODELS / "conv_f16.onnx"), video, "--frames", "35"]) == 35
    assert "30 frames, " in capsys.readouterr().out
    assert {event.core_mask for event in npu.events() if event.kind == "run"} == {1, 2, 4}
    picture = example["prepared"](np.full((10, 20, 3), (255, 0, 0), np.uint8), 32, 32)  # blue
    assert picture.shape == (1, 3, 32, 32)
    assert picture.dtype == np.float32
    assert picture[0, :, 16, 16].tolist() == [0, 0, 1]  # RGB
    assert picture[0, 0, 0, 0] == np.float32(114) / np.float32(255)  # the border
    with pytest.raises(SystemExit, match="cannot open"):
        example["main"]([str(MODELS / "conv_f16.onnx"), str(tmp_path / "none.avi")])


def test_a_service(npu, monkeypatch):
    pytest.importorskip("httpx", reason="httpx is not installed, which FastAPI's test client needs")
    testing = pytest.importorskip("fastapi.testclient", reason="FastAPI is not installed")
    monkeypatch.setenv("ORT_RKNN_DEVICE", "virtual:rk3588")
    monkeypatch.setenv("MODEL", str(MODELS / "conv_f16.onnx"))
    app = runpy.run_path(str(EXAMPLES / "service_fastapi.py"))["app"]
    body = io.BytesIO()
    np.save(body, X)
    with testing.TestClient(app) as client:
        answer = client.post("/run", content=body.getvalue())
        assert answer.status_code == 200
        assert np.load(io.BytesIO(answer.content)).dtype == np.float32
        assert client.post("/run", content=b"no array").status_code == 422
        wrong = io.BytesIO()
        np.save(wrong, X[:, :, :5])
        assert client.post("/run", content=wrong.getvalue()).status_code == 422
        assert client.post("/run", headers={"content-length": str(1 << 40)}, content=b"").status_code == 413
        health = client.get("/health").json()
    assert health["providers"][0] == "RKNNExecutionProvider"
    assert health["runs"] == 1


def test_a_busy_service_says_so(npu, monkeypatch):
    pytest.importorskip("httpx", reason="httpx is not installed, which FastAPI's test client needs")
    testing = pytest.importorskip("fastapi.testclient", reason="FastAPI is not installed")
    monkeypatch.setenv("ORT_RKNN_DEVICE", "virtual:rk3588")
    monkeypatch.setenv("MODEL", str(MODELS / "conv_f16.onnx"))
    example = runpy.run_path(str(EXAMPLES / "service_fastapi.py"))
    body = io.BytesIO()
    np.save(body, X)
    with testing.TestClient(example["app"]) as client:

        async def full(*_):
            raise example["ort"].QueueFull("no place became free")

        monkeypatch.setattr(example["app"].state.session, "run_awaitable", full, raising=False)
        answer = client.post("/run", content=body.getvalue())
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"


def test_a_batch_job_goes_on_where_it_was_stopped(npu, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("ORT_RKNN_DEVICE", "virtual:rk3588")
    main = runpy.run_path(str(EXAMPLES / "batch_job.py"))["main"]
    inputs, outputs = tmp_path / "inputs", tmp_path / "outputs"
    inputs.mkdir()
    for k in range(20):
        np.save(inputs / f"{k:02}.npy", X * k)
    np.save(inputs / "bad.npy", X[:, :, :5])
    (inputs / "none.npy").write_bytes(b"no array")
    model = str(MODELS / "conv_f16.onnx")
    assert main(model, str(inputs), str(outputs)) == 1
    told = capsys.readouterr()
    assert "20 done now, 2 failed, on RKNNExecutionProvider" in told.out
    assert re.findall(r"^(\w+)\.npy: ", told.err, re.MULTILINE) == ["none", "bad"]
    assert len(list(outputs.iterdir())) == 20
    (outputs / "07.npz").unlink()
    for name in ("bad", "none"):
        (inputs / f"{name}.npy").unlink()
    assert main(model, str(inputs), str(outputs)) == 0
    assert "20 inputs, 19 done before" in capsys.readouterr().out
    with np.load(outputs / "07.npz") as done:
        assert list(done) == ["y"]


def test_the_workflow_s_commands_run(folder):
    """The commands of the CI workflow run on this machine with its environment; its pytest runs one test of a
    session."""
    text = (EXAMPLES / "ci_github_actions.yml").read_text()
    environ = dict(re.findall(r"^      (ORT_RKNN_\w+): \"?([^\"\n#]*?)\"?(?: +#.*)?$", text, re.MULTILINE))
    (socs,) = re.findall(r"soc: \[(.*)\]", text)
    assert environ.keys() == {"ORT_RKNN_DEVICE", "ORT_RKNN_STRICT"}
    shutil.copy(MODELS / "conv_f16.rk3566.rknn", folder / "model.rk3566.rknn")
    (folder / "conv_f16.onnx").rename(folder / "model.onnx")
    (folder / "conv_f16.rk3588.rknn").rename(folder / "model.rk3588.rknn")
    (folder / "test_app.py").write_text(
        "import ort_rknn\n\n\ndef test_npu():\n    with ort_rknn.InferenceSession('model.onnx') as s:\n"
        "        assert s.get_providers()[0] == 'RKNNExecutionProvider'\n"
    )
    commands = re.findall(r"^ +(?:- )?run: (.*)$", text, re.MULTILINE)
    assert commands[0].startswith("pip install"), commands
    for soc in socs.split(", "):
        env = {**os.environ, **environ, "ORT_RKNN_DEVICE": f"virtual:{soc}"}
        assert environ["ORT_RKNN_DEVICE"] == "virtual:${{ matrix.soc }}"
        for command in commands[1:]:
            program, *words = command.split()
            module = {"ort-rknn": "ort_rknn", "pytest": "pytest"}[program]
            done = subprocess.run(
                [sys.executable, "-m", module, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=100
            )
            assert done.returncode == 0, done.stdout + done.stderr


def test_an_ultralytics_model_is_exported_compiled_and_run(monkeypatch, tmp_path):
    """With untrained weights: nothing is downloaded."""
    pytest.importorskip("ultralytics", reason="ultralytics is not installed (several GB)")
    if not TOOLKIT:
        pytest.skip("the vendor's converter is not named (ORT_RKNN_TOOLKIT)")
    ours = {"ORT_RKNN_DEVICE": "virtual:rk3588", "ORT_RKNN_TOOLKIT": TOOLKIT}
    env = {**os.environ, **ours, "YOLO_AUTOINSTALL": "false", "YOLO_OFFLINE": "true"}
    command = [sys.executable, EXAMPLES / "ultralytics_export.py", "yolo11n.yaml", "rk3588", "--size", "64"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "yolo11n.onnx").exists()
    assert "outputs [(1, 84, 84)]" in done.stdout, done.stdout
    assert "on the NPU" in done.stdout or "NPU and CPU nodes" in done.stdout, done.stdout
