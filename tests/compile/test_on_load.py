"""convert="on_load": compiled when the first session is created, found by the next; if that fails, the session falls
back."""

import logging
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest

import ort_rknn

RKNN = "RKNNExecutionProvider"


@pytest.fixture
def cache(tmp_path, monkeypatch, toolkit):
    """A separate cache, and a stand-in for the vendor's toolkit."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ORT_RKNN_TOOLKIT", toolkit.python)
    monkeypatch.delenv("ORT_RKNN_CONVERT", raising=False)
    return tmp_path / "cache" / "ort_rknn" / "compiled"


@pytest.fixture
def conv(models, tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    return str(shutil.copy(models / "conv_f16.onnx", folder / "conv.onnx"))


def load(path, **options):
    options = {"device": "virtual:rk3588", "convert": "on_load", **options}
    return ort_rknn.InferenceSession(str(path), providers=[(RKNN, options), "CPUExecutionProvider"])


def builds(cache):
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def test_the_first_session_compiles_and_the_next_finds_it(cache, conv, caplog):
    caplog.set_level(logging.INFO, "ort_rknn")
    feed = {"x": np.ones((1, 3, 32, 32), np.float32)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = load(conv)
        assert session.get_providers()[0] == RKNN
        assert "compiled model conv.rk3588.rknn" in session.explain()
        want = onnxruntime.InferenceSession(conv).run(None, feed)
        np.testing.assert_allclose(session.run(None, feed)[0], want[0], atol=0.01)
    assert "compiling for rk3588" in caplog.text
    assert sorted(os.listdir(os.path.dirname(conv))) == ["conv.onnx"], "nothing is put beside the ONNX"
    (made,) = builds(cache)
    caplog.clear()
    load(conv, schedule="0,1,2")
    assert "compiling" not in caplog.text
    assert builds(cache) == [made]


def test_a_changed_onnx_and_another_soc_are_compiled_again(cache, conv, models):
    load(conv)
    load(conv, device="virtual:rk3576")
    assert len(builds(cache)) == 2
    shutil.copy(models / "image_u8.onnx", conv)
    load(conv)
    assert len(builds(cache)) == 3


def test_a_twin_that_fits_is_taken(cache, conv, models):
    shutil.copy(models / "conv_i8.onnx", conv)
    shutil.copy(models / "conv_i8.rk3588.rknn", f"{conv[:-5]}.rk3588.rknn")
    assert load(conv).get_providers()[0] == RKNN
    assert not cache.exists()


def test_a_refusal_is_a_fallback_with_its_reason_and_remembered(cache, models, tmp_path, caplog):
    model = onnx.load(models / "dynamic.onnx")
    model.doc_string = "not one that the fake toolkit knows"
    refused = str(tmp_path / "d.onnx")
    onnx.save(model, refused)
    caplog.set_level(logging.INFO, "ort_rknn")
    shapes = {"x": [1, 3, 16, 16]}
    with pytest.warns(ort_rknn.FallbackWarning, match="(?s)compiling it failed.*Meet unsupported split"):
        session = load(refused, convert_shapes=shapes)
    assert session.get_providers() == ["CPUExecutionProvider"]
    (kept,) = builds(cache)
    assert {"refused.txt", "d.convert.log"} <= set(os.listdir(cache / kept))
    caplog.clear()
    with pytest.warns(ort_rknn.FallbackWarning, match=f"remembered: remove {cache / kept}"):
        load(refused, convert_shapes=shapes)
    assert "starting the toolkit" not in caplog.text
    with pytest.raises(ort_rknn.NpuUnavailable, match="compiling it failed"):
        so = ort_rknn.SessionOptions()
        so.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options = {"device": "virtual:rk3588", "convert": "on_load", "convert_shapes": shapes}
        ort_rknn.InferenceSession(refused, so, providers=[(RKNN, options)])


def test_free_axes_want_shapes(cache, models, tmp_path):
    free = shutil.copy(models / "dynamic.onnx", tmp_path / "d.onnx")
    with pytest.warns(ort_rknn.FallbackWarning, match="give it with the provider option convert_shapes"):
        load(free)
    assert builds(cache) == [], "what the user can mend is not remembered"


def test_without_a_toolkit_it_says_how_to_get_one(cache, conv, monkeypatch):
    monkeypatch.delenv("ORT_RKNN_TOOLKIT")
    with pytest.warns(ort_rknn.FallbackWarning, match="ort-rknn toolkit install"):
        session = load(conv)
    assert session.get_providers() == ["CPUExecutionProvider"], "a stand-in would hide it"


def test_an_interrupt_leaves_nothing(cache, conv, monkeypatch):
    from ort_rknn._compile import convert

    def interrupted(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "place_whole", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(conv)
    assert builds(cache) == []
    monkeypatch.undo()


def test_processes_that_start_together_compile_once(cache, conv):
    code = f"""
import logging, sys
logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
import ort_rknn
options = {{"device": "virtual:rk3588", "convert": "on_load"}}
session = ort_rknn.InferenceSession({str(conv)!r}, providers=[({RKNN!r}, options)])
print(session.get_providers()[0])
"""
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert all(text.endswith(f"{RKNN}\n") for text in said)
    assert sum("compiling for rk3588" in text for text in said) == 1
    assert len(builds(cache)) == 1


def test_a_cache_that_others_may_write_is_not_used(cache, conv):
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.warns(ort_rknn.FallbackWarning, match="writable for others"):
        load(conv)


def test_the_environment_switches_it_on(cache, conv, monkeypatch):
    monkeypatch.setenv("ORT_RKNN_CONVERT", "on_load")
    session = ort_rknn.InferenceSession(str(conv), providers=[(RKNN, {"device": "virtual:rk3588"})])
    assert "compiled model conv.rk3588.rknn" in session.explain()
    off = load(conv, convert="off")
    assert "stand-in" in off.explain()
    monkeypatch.setenv("ORT_RKNN_CONVERT", "always")
    with pytest.raises(ort_rknn.OptionError, match="ORT_RKNN_CONVERT='always': expected off or on_load"):
        ort_rknn.InferenceSession(str(conv), providers=[RKNN])


@pytest.mark.parametrize("bad", [{}, {"x": 3}, {"x": [0]}, {"x": [True]}, "[1]", "x", {"x": "1,2"}])
def test_invalid_shapes(bad):
    with pytest.raises(ort_rknn.OptionError, match="convert_shapes"):
        ort_rknn.make_provider_options(convert="on_load", convert_shapes=bad)


def test_options():
    with pytest.raises(ort_rknn.OptionError, match="expected one of 'off', 'on_load'"):
        ort_rknn.make_provider_options(convert="onload")
    with pytest.raises(ort_rknn.OptionError, match="has an effect with convert='on_load' only"):
        ort_rknn.make_provider_options(convert="off", convert_shapes={"x": [1]})
