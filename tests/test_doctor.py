"""``doctor`` on prepared file systems: one per way in which boards are known not to be ready."""

import contextlib
import gc
import json
import os
import shutil
import warnings
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

import ort_rknn
from ort_rknn._cli.main import main
from ort_rknn._measure import doctor as doctor_module
from ort_rknn._measure.doctor import doctor, without_personal
from ort_rknn.adapter import plugins
from ort_rknn_virtual import _build
from ort_rknn_virtual._standin import stand_in

MODELS = Path(__file__).parent / "models"


class Board:
    """The files of a healthy board, below ``root``."""

    def __init__(self, root):
        self.root = root
        root.chmod(0o755)
        self.write("usr/lib/librknnrt.so", b"").unlink()
        self.library = root / "usr/lib/librknnrt.so"
        self.library.symlink_to(_build.library("rk3588"))
        self.write("proc/device-tree/compatible", "radxa,rock-5b\0rockchip,rk3588\0")
        self.node = self.write("dev/dri/renderD129", "")
        self.node.chmod(0o666)
        self.write("sys/class/drm/renderD129/device/uevent", "DRIVER=RKNPU\n")
        self.write("sys/module/rknpu/version", "0.9.8\n")
        clock = "sys/class/devfreq/fdab0000.npu/"
        self.write(clock + "governor", "rknpu_ondemand\n")
        self.write(clock + "cur_freq", "1000000000\n")
        self.write(clock + "max_freq", "1000000000\n")
        self.write("sys/class/thermal/thermal_zone6/type", "npu-thermal\n")
        self.write("sys/class/thermal/thermal_zone6/temp", "48076\n")

    def write(self, name, content):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(0o644)
        return path

    def examine(self, model=None, machine="aarch64"):
        return doctor(model, root=self.root, machine=machine)

    def one(self, check, **kwargs):
        """The one finding of a check."""
        (found,) = [finding for finding in self.examine(**kwargs).findings if finding.check == check]
        return found


@pytest.fixture
def board(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("ORT_RKNN_")]:
        monkeypatch.delenv(name)
    board = Board(tmp_path / "board" if (tmp_path / "board").mkdir() is None else None)
    for name in ("librknnrt", "lite2"):
        monkeypatch.setattr(plugins.adapters()[name], "_root", board.root)
    return board


def test_a_healthy_board(board):
    found = board.examine()
    assert found.failures == () and found.warnings == ()
    checks = [finding.check for finding in found.findings]
    assert len(checks) >= 14
    assert checks.index("SoC") < checks.index("device node") < checks.index("runtime library") < checks.index("device")
    assert [f.seen for f in found.findings if f.check == "temperature"] == ["48 C (npu-thermal)"]


def first(board, **kwargs):
    """The first failure."""
    return board.examine(**kwargs).failures[0]


def test_another_machine(board):
    assert first(board, machine="x86_64").check == "machine"
    assert "virtual:rk3588" in first(board, machine="x86_64").command
    assert first(board, machine="armv7l").command == "uname -m"


def test_a_container_that_hides_the_device_tree(board):
    shutil.rmtree(board.root / "proc/device-tree")
    board.write(".dockerenv", "")
    found = first(board)
    assert found.check == "SoC" and "systempaths=unconfined" in found.command
    assert board.one("container").state == "warning"


def test_an_unknown_soc(board):
    board.write("proc/device-tree/compatible", "pine64,quartz\0rockchip,rk9999\0")
    assert first(board).check == "SoC" and "ORT_RKNN_SOC" in first(board).command


def test_a_mainline_kernel(board):
    for name in ("sys/class/drm", "sys/module", "dev/dri"):
        shutil.rmtree(board.root / name)
    board.write("sys/class/accel/accel0/device/uevent", "DRIVER=rocket\n")
    found = first(board)
    assert found.check == "kernel driver" and "rocket" in found.seen and "vendor" in found.remedy


def test_a_kernel_without_the_driver(board):
    for name in ("sys/class/drm", "sys/module", "dev/dri"):
        shutil.rmtree(board.root / name)
    assert [f.check for f in board.examine().failures] == ["kernel driver", "device node", "device"]
    assert first(board).command == "sudo dmesg | grep -i rknpu"


def test_an_old_driver(board):
    board.write("sys/module/rknpu/version", "0.8.2\n")
    found = board.one("kernel driver")
    assert found.state == "warning" and "0.8.2" in found.seen and not board.examine().failures


def test_a_container_without_the_node(board):
    shutil.rmtree(board.root / "dev")
    board.write("run/.containerenv", "")
    assert first(board).check == "device node" and first(board).command.startswith("docker run --device")


@pytest.mark.skipif(os.geteuid() == 0 and not hasattr(os, "seteuid"), reason="root may everything")
def test_a_node_that_this_user_may_not_open(board, monkeypatch):
    board.node.chmod(0o600)
    access = os.access

    def refuses(path, mode, **kwargs):
        return False if os.fspath(path) == os.fspath(board.node) else access(path, mode, **kwargs)

    monkeypatch.setattr(os, "access", refuses)
    monkeypatch.setattr(os, "supports_effective_ids", {refuses})
    found = first(board)
    assert found.check == "device node" and found.command.startswith("sudo usermod -aG")


def test_a_link_by_hand_to_the_old_node(board):
    (board.root / "dev/rknpu").symlink_to("dri/renderD129")
    found = board.one("device node")
    assert (found.state, found.command) == ("warning", "sudo rm /dev/rknpu")
    assert "ENOTTY" in found.seen


def test_a_kernel_with_dma_heap_has_the_old_node_only(board):
    shutil.rmtree(board.root / "dev/dri")
    shutil.rmtree(board.root / "sys/class/drm")
    board.write("dev/rknpu", "").chmod(0o666)
    assert board.examine().failures == ()


def test_no_runtime_library(board):
    board.library.unlink()
    found = first(board)
    assert found.check == "runtime library" and "librknnrt.so*" in found.command


def test_a_library_that_cannot_be_opened(board):
    header = bytearray(_build.library("rk3588").read_bytes()[:64])
    board.library.unlink()
    board.write("usr/lib/librknnrt.so", bytes(header))
    found = first(board)
    assert found.check == "runtime opens" and found.command.startswith("ldd ")


def test_two_runtimes(board):
    old = _build.library("rk3588").read_bytes() + b"librknnrt version: 1.1.0 (abc@2022)"
    board.write("usr/local/lib/librknnrt.so", old)
    found = board.one("one runtime")
    assert found.state == "warning" and "1.1.0" in found.seen and "ORT_RKNN_RUNTIME_LIBRARY=" in found.command


def test_a_library_that_everyone_may_replace(board):
    board.library.unlink()
    board.write("usr/lib/librknnrt.so", _build.library("rk3588").read_bytes()).chmod(0o666)
    found = first(board)
    assert found.check == "runtime library" and "every user" in found.seen


def test_a_slow_clock(board):
    board.write("sys/class/devfreq/fdab0000.npu/governor", "powersave\n")
    board.write("sys/class/devfreq/fdab0000.npu/cur_freq", "300000000\n")
    found = board.one("clock")
    assert found.state == "warning" and "300 MHz of 1000" in found.seen
    assert found.command.startswith("echo performance | sudo tee ") and found.command.endswith(".npu/governor")


def test_a_hot_board(board):
    board.write("sys/class/thermal/thermal_zone6/temp", "91200\n")
    assert board.one("temperature").state == "warning"


def test_another_program_has_the_npu(board):
    board.write("proc/4242/comm", "frigate\n")
    (board.root / "proc/4242/fd").mkdir()
    (board.root / "proc/4242/fd/7").symlink_to(board.node)
    board.write("proc/rknpu/load", "NPU load:  Core0: 95%, Core1: 429496%, Core2:  0%,\n")
    found = board.one("other users")
    assert found.state == "warning" and "frigate (4242)" in found.seen and "95 %, 100 %, 0 %" in found.seen


def test_switched_off(board, monkeypatch):
    monkeypatch.setenv("ORT_RKNN_DISABLE", "1")
    assert first(board).check == "environment" and first(board).command == "unset ORT_RKNN_DISABLE"


# Models -------------------------------------------------------------------------------------------------------


def write_onnx(path, shape=(1, 3)):
    node = helper.make_node("Relu", ["x"], ["y"])
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    graph = helper.make_graph([node], "g", sides[:1], sides[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_model_that_runs(board, tmp_path):
    model = shutil.copy(MODELS / "conv_f16.onnx", tmp_path)
    shutil.copy(MODELS / "conv_f16.rk3588.rknn", tmp_path)
    found = board.examine(model)
    assert found.failures == ()
    assert [f.seen for f in found.findings if f.check == "runs"] == ["on the NPU rk3588, whole"]
    (warned,) = found.warnings
    assert warned.check == "compiled model" and warned.command.startswith("ort-rknn stamp ")


def test_a_model_without_a_twin_and_the_warning_of_its_session_say_the_same(board, tmp_path):
    model = write_onnx(tmp_path / "m.onnx")
    found = board.examine(model)
    compiled, runs = found.failures
    assert compiled.check == "compiled model" and compiled.command == f"ort-rknn convert {model} --target rk3588"
    assert runs.seen.startswith("on the CPU: no compiled twin of m.onnx")
    with pytest.warns(ort_rknn.FallbackWarning) as told:
        ort_rknn.InferenceSession(model)
    assert runs.seen.removeprefix("on the CPU: ") in str(told[0].message)


def test_the_device_finding_and_the_fallback_warning_say_the_same(board, tmp_path):
    board.library.unlink()
    device = board.one("device")
    model = write_onnx(tmp_path / "m.onnx")
    with pytest.warns(ort_rknn.FallbackWarning) as told:
        ort_rknn.InferenceSession(model, providers=["RKNNExecutionProvider", "CPUExecutionProvider"])
    assert device.seen in str(told[0].message) and device.remedy in str(told[0].message)


def test_a_model_for_another_soc(board, tmp_path):
    model = shutil.copy(MODELS / "conv_f16.onnx", tmp_path)
    shutil.copy(MODELS / "conv_f16.rk3566.rknn", tmp_path)
    compiled = first(board, model=model)
    assert compiled.check == "compiled model" and "conv_f16.rk3566.rknn" in compiled.seen


def test_a_model_newer_than_the_runtime(board, tmp_path):
    model = shutil.copy(MODELS / "conv_f16.onnx", tmp_path)
    shutil.copy(MODELS / "conv_f16.rk3588.rknn", tmp_path)
    old = _build.library("rk3588").read_bytes() + b"librknnrt version: 2.3.0 (abc@2024)"
    board.library.unlink()
    board.write("usr/lib/librknnrt.so", old)
    found = board.examine(model)
    (versions,) = [f for f in found.failures if f.check == "versions"]
    assert "2.5.0" in versions.seen and "2.3.0" in versions.seen


def test_a_file_that_is_no_model(board, tmp_path):
    (tmp_path / "m.rknn").write_bytes(b"<html>not found</html>")
    assert first(board, model=tmp_path / "m.rknn").check == "model file"


def test_a_compiled_model_that_is_named_onnx(board, tmp_path):
    model = shutil.copy(MODELS / "conv_f16.rk3588.rknn", tmp_path / "m.onnx")
    found = board.examine(model)
    assert [f.seen for f in found.findings if f.check == "model file"] == ["m.onnx, a compiled model"]
    assert found.failures == () and found.warnings == ()


def write_with_weights_apart(folder):
    """An ONNX whose weights are in ``apart.weights``, which is removed."""
    node = helper.make_node("Add", ["x", "w"], ["y"])
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in "xy"]
    weights = helper.make_tensor("w", TensorProto.FLOAT, [1, 3], bytes(12), raw=True)
    graph = helper.make_graph([node], "g", sides[:1], sides[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    place = {"save_as_external_data": True, "location": "apart.weights", "size_threshold": 0}
    onnx.save(model, folder / "apart.onnx", **place)
    (folder / "apart.weights").unlink()
    return folder / "apart.onnx"


def test_an_onnx_without_its_weights(board, tmp_path):
    model = write_with_weights_apart(tmp_path)
    found = board.one("weights", model=model)
    assert (found.state, found.seen) == ("failure", "apart.onnx has weights in apart.weights, which is not there")
    (tmp_path / "apart.weights").write_bytes(bytes(12))
    assert all(each.check != "weights" for each in board.examine(model).findings)


def test_a_board_with_a_compiled_model_needs_no_weights(board, tmp_path):
    model = write_with_weights_apart(tmp_path)
    compiled = stand_in([("x", "float32", (1, 3))], [("y", "float32", (1, 3))], "rk3588")
    (tmp_path / "apart.rk3588.rknn").write_bytes(compiled)
    found = board.examine(model)
    assert found.failures == () and "weights" in [each.check for each in found.warnings]


def test_a_stand_in_that_cannot_be_made(board, tmp_path, monkeypatch):
    monkeypatch.setenv("ORT_RKNN_DEVICE", "virtual:rk3588")
    model = write_onnx(tmp_path / "m.onnx", [1, 0, 3])
    runs = board.one("runs", model=model)
    assert runs.state == "failure" and runs.seen.startswith("on the CPU: no stand-in for m.onnx")
    with pytest.warns(ort_rknn.FallbackWarning) as told:
        ort_rknn.InferenceSession(model)
    assert runs.seen.removeprefix("on the CPU: ") in str(told[0].message)


# The command --------------------------------------------------------------------------------------------------


def test_json_and_exit_codes(board, capsys, monkeypatch):
    examine = doctor_module.doctor
    monkeypatch.setattr(doctor_module, "doctor", lambda *a, **k: examine(*a, **k, root=board.root, machine="aarch64"))
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "ort-rknn/doctor/1" and told["failures"] == 0
    assert {"check", "state", "seen", "remedy", "command"} == set(told["findings"][0])
    board.library.unlink()
    assert main(["doctor"]) == 1
    assert "Begin with: runtime library." in capsys.readouterr().out


def test_the_command_registers_the_virtual_npu(capsys, monkeypatch):
    assert main(["doctor", "--device", "virtual:rk3576"]) == 0
    out = capsys.readouterr().out
    assert "RKNNExecutionProvider registers, with 1 device(s)" in out and "2 core(s)" in out


def test_wrong_device_is_misuse(capsys):
    assert main(["doctor", "--device", "rk9999"]) == 2
    assert "rk9999" in capsys.readouterr().err


def test_the_report_has_no_personal_paths(board, tmp_path, monkeypatch, capsys):
    home = tmp_path / "home" / "susan"
    (home / "secret").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USER", "susan")
    model = write_onnx(home / "secret" / "m.onnx")
    main(["doctor", os.fspath(model), "--report", os.fspath(tmp_path / "report.txt")])
    text = (tmp_path / "report.txt").read_text()
    assert "susan" not in text and "secret" not in text
    assert "m.onnx" in text and "machine" in text and "onnxruntime" in text


def test_what_is_replaced():
    environ = {"HOME": "/data/people/kim", "USER": "kim"}
    text = "/data/people/kim/a.onnx /data/people/kimberly /home/lee/x by kim"
    assert without_personal(text, None, environ) == "~/a.onnx /data/people/kimberly /home/<user>/x by <user>"


# onnxruntime's own question -----------------------------------------------------------------------------------


def test_onnxruntime_reports_the_reasons(board):
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    ask = getattr(state, "get_hardware_device_ep_incompatibility_details", None)
    if ask is None:
        pytest.skip("this onnxruntime does not ask")
    gc.collect()
    with contextlib.suppress(Exception):
        ort_rknn.unregister()  # with the devices of tests before this one
    ort_rknn.register()
    try:
        npus = [d.device for d in ort_rknn.get_ep_devices() if d.ep_name == "RKNNExecutionProvider"]
        if len(npus) > 1:
            pytest.skip("a session of another test keeps the provider registered with its own device")
        (npu,) = npus
        assert ask("RKNNExecutionProvider", npu)["reasons_bitmask"] == 0
        (cpu, *_) = [d for d in state.get_hardware_devices() if d.type == ort_rknn.OrtHardwareDeviceType.CPU]
        assert ask("RKNNExecutionProvider", cpu)["reasons_bitmask"] == 2
        board.library.unlink()
        told = ask("RKNNExecutionProvider", npu)
        assert told["reasons_bitmask"] == 4 and "librknnrt.so was not found" in told["notes"]
    finally:
        ort_rknn.unregister()


def test_nothing_stays_of_an_examination(board, descriptors):
    before = descriptors()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        board.examine(MODELS / "conv_f16.onnx")
    assert descriptors() == before
