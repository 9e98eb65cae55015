"""The toolkit's process: requests, validation of its replies, and cleanup."""

import os
from pathlib import Path

import numpy as np
import pytest

from ort_rknn._compile.converter import BuildSpec, ConversionError, Converter, _last_words
from ort_rknn._compile.layers import read_build_log
from ort_rknn._compile.toolkit import ToolkitError, find_toolkit


@pytest.fixture
def converter(toolkit, tmp_path):
    with Converter(toolkit, tmp_path / "log") as made:
        yield made
        process, folder = made._process, made.folder
    assert process.poll() is not None
    assert not os.path.exists(folder)


def test_a_build_is_read_back(converter, models):
    built = converter.build(BuildSpec(str(models / "conv_f16.onnx"), "rk3588"))
    assert built.file.targets == ("rk3588",)
    assert [(x.op_type, x.target, x.name, x.cycles) for x in built.log.layers] == [
        ("ConvRelu", "NPU", "Conv:c", 2304),
        ("Reshape", "CPU", "Reshape:r", 0),
    ]
    assert not os.path.exists("check0.onnx")  # the toolkit drops files in its working directory


def test_a_refusal_is_reported_in_the_toolkit_s_words(converter, tmp_path, models):
    other = tmp_path / "other.onnx"
    other.write_bytes((models / "conv_f16.onnx").read_bytes() + b"\x3a\x00")  # an empty graph, merged into the first
    with pytest.raises(
        ConversionError, match=r"other\.onnx: the toolkit refused it in build: build: Meet unsuppo"
    ) as e:
        converter.build(BuildSpec(str(other), "rk3588"))
    assert e.value.step == "build"
    assert "Meet unsupported split" in Path(e.value.log).read_text()
    # and it continues
    assert converter.build(BuildSpec(str(models / "conv_f16.onnx"), "rk3588")).file.targets == ("rk3588",)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("FAKE_TOOLKIT_EXPORTS", "nothing", "made no model"),
        ("FAKE_TOOLKIT_EXPORTS", "rubbish", "made no model"),
        ("FAKE_TOOLKIT_EXPORTS", "no lowering", r"no board's runtime has: Det 'det'"),
        ("FAKE_TOOLKIT_RAISES", "load_onnx", "KeyError: 'axes'"),
        ("FAKE_TOOLKIT_EXITS", "load_onnx", "exit code 3"),
        ("FAKE_TOOLKIT_DIES", "load_onnx", "ended with exit code 7"),
    ],
)
def test_bad_replies_are_rejected(toolkit, tmp_path, models, monkeypatch, variable, value, words):
    monkeypatch.setenv(variable, value)
    with Converter(toolkit, tmp_path / "log") as converter, pytest.raises(ConversionError, match=words):
        converter.build(BuildSpec(str(models / "conv_f16.onnx"), "rk3588"))


def test_simulate(converter, models):
    converter.build(BuildSpec(str(models / "conv_f16.onnx"), "rk3588"))
    (out,) = converter.simulate([np.ones((1, 3), np.float32)], ["nchw"])
    assert out.tolist() == [[2, 2, 2]]
    (out,) = converter.simulate([np.ones((1, 3), np.float64)], ["nchw"])
    assert out.dtype == np.float32  # it takes no float64


def test_close_ends_a_toolkit_that_does_not_answer(toolkit, tmp_path):
    converter = Converter(toolkit, tmp_path / "log")
    os.kill(converter._process.pid, 19)  # SIGSTOP: it cannot leave by itself
    converter.close()
    converter.close()
    assert converter._process.poll() == -9


def test_no_interpreter_no_toolkit(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("ORT_RKNN_TOOLKIT", raising=False)
    with pytest.raises(ToolkitError, match="ort-rknn toolkit install"):
        find_toolkit()
    with pytest.raises(ToolkitError, match="no interpreter 'nowhere-python'"):
        find_toolkit("nowhere-python")
    with pytest.raises(ToolkitError, match="not a Python interpreter"):
        find_toolkit("/bin/true")
    monkeypatch.setenv("ORT_RKNN_TOOLKIT", "/nowhere/python")
    with pytest.raises(ToolkitError, match="ORT_RKNN_TOOLKIT: /nowhere/python"):
        find_toolkit()


def test_a_log_without_a_table_and_a_cut_off_one():
    assert read_build_log("").layers == ()
    cut = read_build_log("D RKNN: [1:2:3.4] Network Layer Information Table\n0 Conv FLOAT16 NPU")
    assert (cut.layers, cut.no_lowering) == ((), ())


def test_a_table_with_the_share_of_zeros_as_for_rk3576():
    head = "D RKNN: [1:2:3.4] "
    table = "".join(
        f"{head}{row}\n"
        for row in (
            "Network Layer Information Table",
            "0 InputOperator FLOAT16 CPU \\ (1,3,32,32) 0/0/0 0 InputOperator:x",
            "1 ConvRelu INT8 NPU (1,3,32,32),(16,3,3,3),(16) (1,16,16,16) 2084/2304/2304 0% 7 Conv:c1",
            "2 Conv FLOAT16 NPU (1,16,16,16),(8,16,3,3) (1,8,16,16) 2512/2304/2512 12.5% 10 Conv:y",
            "<<<<<<<< end: rknn::RKNNModelRegCmdbuildPass",
        )
    )
    layers = read_build_log(table).layers
    assert [(layer.name, layer.dtype, layer.cycles) for layer in layers] == [
        ("Conv:c1", "INT8", 2304),
        ("Conv:y", "FLOAT16", 2512),
    ]


def test_the_node_that_a_refusal_of_the_graph_happened_at_is_not_to_blame():
    log = "E build: Traceback (most recent call last):\nE name:  OpType: MatMul\nE build: Meet unsupported split\n"
    assert read_build_log(log).problems == ("build: Meet unsupported split",)
    frames = 'Traceback (most recent call last):\n  File "a.py", line 1, in a\n'
    error = f"ValueError: {frames}    run()\nonnx.capi.InvalidGraph: In Node, (Scan)\nname:  OpType: MatMul\n"
    assert _last_words(error) == "onnx.capi.InvalidGraph: In Node, (Scan)"
    assert _last_words("KeyError: 'axes'") == "KeyError: 'axes'"
    assert _last_words(f"ValueError: {frames}") == "ValueError: "
    assert len(_last_words("E: " + "x" * 5000)) < 400


def test_a_process_that_ended_is_started_again(toolkit, tmp_path, models, monkeypatch):
    spec = BuildSpec(str(models / "conv_f16.onnx"), "rk3588")
    monkeypatch.setenv("FAKE_TOOLKIT_DIES", "load_onnx")
    with Converter(toolkit, tmp_path / "log") as converter:
        for _ in range(2):
            with pytest.raises(ConversionError, match=r"^conv_f16\.onnx: the toolkit's process ended") as error:
                converter.build(spec)
            assert error.value.died
        monkeypatch.delenv("FAKE_TOOLKIT_DIES")
        assert converter.build(spec).file.targets == ("rk3588",)
