"""Models that do not load on the (virtual) NPU, the fallback to the CPU, and errors at a run."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import warnings

import onnx
import onnxruntime
import pytest
from ort_rknn.capi.onnxruntime_pybind11_state import Fail, RuntimeException
from support.virtual_sessions import MODELS, VIRTUAL, X, folder_with_twin, virtual_rk3588

import ort_rknn as ort
from ort_rknn.files.origin import Origin
from ort_rknn_virtual._standin import stand_in

npu = pytest.fixture(virtual_rk3588)
folder = pytest.fixture(folder_with_twin)


def session(model=MODELS / "conv_f16.onnx", **options):
    """Like that of virtual_sessions, but in this file: a warning points at the file that creates the session."""
    return ort.InferenceSession(model, provider_options={**VIRTUAL, **options})


def test_no_twin_at_all_is_a_stand_in_and_says_so_once(npu, folder, caplog):
    (folder / "conv_f16.rk3588.rknn").unlink()
    with caplog.at_level(logging.INFO, "ort_rknn"), session(folder / "conv_f16.onnx") as made:
        made.run(None, {"x": X})
        assert made.explain().count("stand-in made from the signature") == 1
    (said,) = [r for r in caplog.records if "stand-in" in r.getMessage()]
    assert said.levelname == "WARNING"
    assert "conv_f16.onnx" in said.getMessage() and "on a board this session would run on the CPU" in said.getMessage()


class Late(Exception):
    """What a signal's handler raises."""


def late(*_):
    raise Late


@pytest.mark.parametrize("call", ["the constructor", "set_providers"])
def test_what_a_signal_handler_raises_is_no_reason_to_fall_back(npu, folder, monkeypatch, call):
    """Also if an adapter reports it as its own error."""
    before = signal.signal(signal.SIGUSR1, late)
    made = ort.InferenceSession(folder / "conv_f16.onnx", providers=["CPUExecutionProvider"])
    try:
        monkeypatch.setattr("ort_rknn_virtual._adapter.TwinCompute", lambda *_: signal.raise_signal(signal.SIGUSR1))
        with pytest.raises(Late):
            if call == "set_providers":
                made.set_providers(["RKNNExecutionProvider"], [VIRTUAL])
            else:
                session(folder / "conv_f16.onnx")
    finally:
        signal.signal(signal.SIGUSR1, before)
    monkeypatch.undo()
    made.set_providers(["RKNNExecutionProvider"], [VIRTUAL])
    with made:
        assert made.get_providers()[0] == "RKNNExecutionProvider"
        made.run(None, {"x": X})


def _stale(folder, twin):
    record = Origin.of(folder / "conv_f16.onnx")
    twin.write_bytes(
        stand_in(
            [("x", "float32", (1, 3, 32, 32))],
            [("y", "float32", (1, 8, 16, 16))],
            "rk3588",
            custom_string=record.to_custom_string(),
        )
    )
    other = onnx.load(folder / "conv_f16.onnx")
    other.producer_name = "somebody else, later"
    onnx.save(other, folder / "conv_f16.onnx")


#: What may be wrong with a twin: how to produce it, and the expected reason.
BAD_TWINS = {
    "for another SoC": (lambda _, twin: shutil.copy(MODELS / "conv_f16.rk3566.rknn", twin), "compiled for rk3566"),
    "stale": (_stale, "stale"),
    "truncated": (lambda _, twin: os.truncate(twin, twin.stat().st_size // 2), "truncated|ends|bytes"),
    "empty": (lambda _, twin: os.truncate(twin, 0), "empty"),
    "not fetched by Git LFS": (
        lambda _, twin: twin.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"),
        "git lfs pull",
    ),
    "not fetched by git-annex": (
        lambda _, twin: (twin.unlink(), twin.symlink_to("../.git/annex/objects/xx")),
        "No such file",
    ),
    "a folder, made by a container's mount": (lambda _, twin: (twin.unlink(), twin.mkdir()), "Is a directory"),
    "a pipe": (lambda _, twin: (twin.unlink(), os.mkfifo(twin)), "not a regular file"),
    "a link to itself": (lambda _, twin: (twin.unlink(), twin.symlink_to(twin.name)), "symbolic links"),
    "a web page": (lambda _, twin: twin.write_text("<!DOCTYPE html><html>404</html>"), "a web page"),
    "damaged": (
        lambda _, twin: twin.write_bytes(b"RKNN\0\0\0\0\x06" + bytes(7) + b"\xff" * 8 + bytes(1000)),
        "conv_f16",
    ),
    "closed to this user": (lambda _, twin: twin.chmod(0), "Permission denied"),
}


@pytest.mark.parametrize("kind", BAD_TWINS)
def test_a_bad_twin_is_rejected_with_its_reason_as_on_a_board(npu, folder, kind, monkeypatch):
    """No stand-in replaces it: on a board the session would fall back, and a strict one would fail."""
    if kind == "closed to this user" and os.geteuid() == 0:
        pytest.skip("root may read every file")
    spoil, reason = BAD_TWINS[kind]
    spoil(folder, folder / "conv_f16.rk3588.rknn")
    with pytest.warns(ort.FallbackWarning, match=f"conv_f16.rk3588.rknn does not fit: .*({reason})"):
        made = session(folder / "conv_f16.onnx")
    assert made.get_providers() == ["CPUExecutionProvider"]
    assert "conv_f16.rk3588.rknn is not used" in made.explain()
    assert "stand-in" not in made.explain()
    monkeypatch.setenv("ORT_RKNN_STRICT", "1")
    with pytest.raises(ort.NpuUnavailable, match=reason):
        session(folder / "conv_f16.onnx")


@pytest.mark.parametrize("kind", sorted(BAD_TWINS.keys() - {"stale", "closed to this user"}))
def test_another_twin_that_fits_is_used(npu, folder, kind):
    shutil.copy(folder / "conv_f16.rk3588.rknn", folder / "conv_f16.rknn")
    BAD_TWINS[kind][0](folder, folder / "conv_f16.rk3588.rknn")
    with session(folder / "conv_f16.onnx") as made:
        assert "compiled model conv_f16.rknn" in made.explain()


def test_a_compiled_model_that_only_the_runtime_can_refuse(npu, folder):
    content = bytearray((folder / "conv_f16.rk3588.rknn").read_bytes())
    content[64:2000] = bytes(1936)
    (folder / "conv_f16.rk3588.rknn").write_bytes(content)
    with pytest.warns(ort.FallbackWarning, match="does not load.*RKNN_ERR_MODEL_INVALID"):
        made = session(folder / "conv_f16.onnx")
    assert made.get_providers() == ["CPUExecutionProvider"]


@pytest.fixture
def free_dims(tmp_path):
    """An ONNX for which no stand-in can be built."""
    shutil.copy(MODELS / "dynamic.onnx", tmp_path / "free.onnx")
    return tmp_path / "free.onnx"


def test_a_fallback_warns_once_with_reason_and_remedy(npu, free_dims, caplog):
    with caplog.at_level(logging.INFO, "ort_rknn"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = session(free_dims)
    assert made.get_providers() == ["CPUExecutionProvider"]
    assert [w.category for w in caught] == [ort.FallbackWarning]
    assert caught[0].filename == __file__
    assert "free dimensions" in str(caught[0].message) and "rknn-toolkit2" in str(caught[0].message)
    assert [r.levelname for r in caplog.records if r.name == "ort_rknn"] == ["WARNING"]
    assert "fell back" in made.explain()


@pytest.mark.parametrize("how", ["ORT_RKNN_STRICT", "ORT_RKNN_POLICY", "config"])
def test_strict_raises_instead(npu, free_dims, monkeypatch, how):
    options = None
    if how == "config":
        options = ort.SessionOptions()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    else:
        monkeypatch.setenv(how, "1" if how.endswith("STRICT") else "only")
    with pytest.raises(Fail, match="free dimensions.*no fallback to the CPU") as caught:
        ort.InferenceSession(free_dims, options, provider_options=VIRTUAL)
    assert isinstance(caught.value, ort.NpuUnavailable)


@pytest.mark.parametrize("call", ["rknn_init", "rknn_query", "rknn_dup_context", "rknn_set_core_mask"])
def test_a_model_that_does_not_load_falls_back_with_the_runtime_s_words(npu, call):
    npu.fault(call, -4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = session(schedule=[0, 1])
    assert made.get_providers() == ["CPUExecutionProvider"]
    assert f"{call} failed: RKNN_ERR_MALLOC_FAIL (-4)" in str(caught[0].message)
    assert npu.counters().contexts == 0


def test_a_model_that_does_not_load_is_an_error_with_fallback_disabled(npu):
    npu.fault("rknn_init", -4)
    with pytest.raises(Fail, match="RKNN_ERR_MALLOC_FAIL"):
        ort.InferenceSession(MODELS / "conv_f16.onnx", provider_options=VIRTUAL, enable_fallback=0)


def test_a_compiled_model_without_onnx_and_npu_is_an_error_that_says_what_was_looked_for(tmp_path):
    (tmp_path / "only.rk3588.rknn").write_bytes((MODELS / "conv_f16.rk3588.rknn").read_bytes())
    with pytest.raises(ort.NpuUnavailable, match=r"looked for .*only\.onnx"):
        ort.InferenceSession(tmp_path / "only.rk3588.rknn")


@pytest.mark.parametrize("call", ["rknn_inputs_set", "rknn_run", "rknn_outputs_get", "rknn_outputs_release"])
def test_an_error_at_a_run_names_model_core_and_code(npu, call):
    with session(schedule=[1]) as made:
        made.run(None, {"x": X})
        npu.fault(call, -2, times=1)
        with pytest.raises(RuntimeException) as caught:
            made.run(None, {"x": X})
        for word in ("conv_f16.rk3588.rknn", "core 1", call, "RKNN_ERR_TIMEOUT", "-2"):
            assert word in str(caught.value)
        assert made.get_providers()[0] == "RKNNExecutionProvider"
        assert made.run(None, {"x": X})[0].shape == (1, 8, 16, 16)


def test_run_timeout(npu):
    npu.run_time_us = 300_000
    with session(run_timeout_ms=20) as made, pytest.raises(RuntimeException, match="RKNN_ERR_TIMEOUT"):
        made.run(None, {"x": X})


def test_a_model_in_onnxruntime_s_own_format_is_no_way_round_strict(npu, tmp_path, monkeypatch):
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "m.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(MODELS / "conv_f16.onnx", options, ["CPUExecutionProvider"])
    with pytest.warns(ort.FallbackWarning, match="onnxruntime's own format"):
        made = session(tmp_path / "m.ort")
    assert made.run(None, {"x": X})[0].shape == (1, 8, 16, 16)
    monkeypatch.setenv("ORT_RKNN_STRICT", "1")
    with pytest.raises(ort.NpuUnavailable, match="onnxruntime's own format"):
        session(tmp_path / "m.ort")


def test_a_model_that_cannot_be_read_is_onnxruntime_s_error_not_a_warning(npu, tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.InvalidProtobuf):
        session(tmp_path / "m.onnx")


def test_a_toolkit_newer_than_the_runtime_is_worth_a_note(npu, tmp_path):
    """Reported by explain(); in its own process, because the virtual runtime's version is read when it is loaded."""
    code = "import ort_rknn, sys; print(ort_rknn.InferenceSession(sys.argv[1]).explain())"
    environment = {**os.environ, "ORT_RKNN_DEVICE": "virtual:rk3588", "RKNN_VIRTUAL_VERSION": "2.3.0"}
    command = [sys.executable, "-c", code, str(MODELS / "conv_f16.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 0, done.stderr
    assert "note:      the runtime loaded it, but:" in done.stdout
    assert "2.5" in done.stdout and "2.3.0" in done.stdout
