"""The demo: its models, the swap of InferenceSession, its messages if something is missing, its exit codes."""

import importlib.util
import sys
import types

import numpy as np
import onnxruntime
import pytest

import ort_rknn
import ort_rknn_demo
from ort_rknn_demo import _npu, _ocr
from ort_rknn_demo._onnx import identity


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    """A machine without a C compiler, and with an empty cache."""
    for name, value in (("PATH", str(tmp_path)), ("XDG_CACHE_HOME", str(tmp_path / "cache"))):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setitem(sys.modules, "ziglang", None)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "ziglang" else find_spec(n, *a))


@pytest.fixture
def no_rapidocr(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", None)
    monkeypatch.setattr(_ocr, "draw", lambda: None)


def test_the_models_are_valid():
    import onnx

    for content in (_npu.conv_net(), identity((2, 3))):
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(_npu.conv_net(), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"x": np.ones(session.get_inputs()[0].shape, np.float32)})
    assert answer.shape == (1, 4, 16, 16)
    assert np.abs(answer).max() > 0.1


# Part two -----------------------------------------------------------------------------------------------------


def test_part_two_shows_one_two_and_three_cores(capsys):
    assert _npu.show(seconds=0.2) == "fine"
    out = capsys.readouterr().out
    assert "virtual NPU" in out
    rows = [line.split() for line in out.splitlines() if line.strip().startswith("0")]
    assert [row[0] for row in rows] == ["0", "0,1", "0,1,2"]
    for cores, row in enumerate(rows, start=1):
        runs = [int(text.rstrip(",")) for text in row[3:]]
        assert [count > 0 for count in runs] == [core < cores for core in range(3)]
        assert sum(runs) >= 10


def test_part_two_leaves_the_virtual_npu_as_it_was():
    from ort_rknn_virtual.control import virtual_npu

    npu = virtual_npu("rk3588")
    npu.run_time_us = 123
    try:
        _npu.show(seconds=0.05)
        assert npu.run_time_us == 123
    finally:
        npu.run_time_us = 0


def test_part_two_without_a_compiler_says_what_to_install(no_compiler, capsys):
    assert ort_rknn_demo.run(part="npu") == 1
    assert "pip install 'ort-rknn[virtual]'" in capsys.readouterr().out


def test_part_two_fails_where_runs_go_to_other_cores(monkeypatch, capsys):
    session = _npu._session
    monkeypatch.setattr(_npu, "_session", lambda net, schedule: session(net, (2,)))
    assert _npu.show(seconds=0.05) == "failed"
    assert "That is wrong: the cores that ran" in capsys.readouterr().out


def test_part_two_fails_where_the_answers_are_wrong(monkeypatch, capsys):
    monkeypatch.setenv("ORT_RKNN_VIRTUAL_COMPUTE", "pattern")
    assert _npu.show(seconds=0.05) == "failed"
    assert "That is wrong: at most 0.005 is expected" in capsys.readouterr().out


# Part one -----------------------------------------------------------------------------------------------------


def test_the_swap_is_limited_and_undone_on_every_path():
    program = types.ModuleType("program")
    program.InferenceSession = onnxruntime.InferenceSession
    with pytest.raises(KeyError), _ocr.our_session_in(program) as sessions:
        session = program.InferenceSession(identity((1, 2)), providers=["CPUExecutionProvider"])
        assert isinstance(session, ort_rknn.InferenceSession)
        assert sessions == [session]
        assert onnxruntime.InferenceSession is not program.InferenceSession
        raise KeyError
    assert program.InferenceSession is onnxruntime.InferenceSession


def test_a_timed_session_counts_its_runs():
    session = _ocr.TimedSession(identity((1, 2)), providers=["CPUExecutionProvider"])
    x = np.array([[1, 2]], np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x)
    with pytest.raises(ValueError, match="Required inputs"):
        session.run(None, {})
    assert session.runs == 2
    assert session.seconds > 0


def fake_rapidocr(monkeypatch, tmp_path, answer):
    """A program built like RapidOCR: a module that imported InferenceSession from onnxruntime creates its session."""
    model = tmp_path / "reader.onnx"
    model.write_bytes(identity((1, 2)))
    engine = types.ModuleType("rapidocr_onnxruntime.utils.infer_engine")
    engine.InferenceSession = onnxruntime.InferenceSession

    class RapidOCR:
        def __init__(self):
            self.session = engine.InferenceSession(str(model), providers=[("CPUExecutionProvider", {})])

        def __call__(self, picture):
            assert picture.shape == (480, 760, 3)
            self.session.run(None, {"x": np.zeros((1, 2), np.float32)})
            return [[None, line, 0.9] for line in answer], [0.1]

    package = types.ModuleType("rapidocr_onnxruntime")
    package.__path__ = []
    package.RapidOCR = RapidOCR
    utils = types.ModuleType("rapidocr_onnxruntime.utils")
    utils.__path__ = []
    utils.infer_engine = engine
    for module in (package, utils, engine):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(_ocr, "draw", lambda: np.zeros((480, 760, 3), np.uint8))
    return engine


def test_part_one_runs_the_program_through_our_session(monkeypatch, tmp_path, capsys):
    engine = fake_rapidocr(monkeypatch, tmp_path, [_ocr._TITLE.replace(" ", ""), *_ocr._LINES])
    assert ort_rknn_demo.run(part="ocr") == 0
    assert engine.InferenceSession is onnxruntime.InferenceSession
    out = capsys.readouterr().out
    assert "6 of 6 lines" in out
    (row,) = [line for line in out.splitlines() if "reader.onnx" in line]
    assert row.split()[1:3] == ["CPUExecutionProvider", "1"]


def test_part_one_fails_where_a_line_is_misread(monkeypatch, tmp_path, capsys):
    fake_rapidocr(monkeypatch, tmp_path, [_ocr._TITLE, *_ocr._LINES[:-1], "Thank goat"])
    assert ort_rknn_demo.run(part="ocr") == 1
    out = capsys.readouterr().out
    assert "5 of 6 lines" in out
    assert "Thank goat" in out


@pytest.mark.parametrize("policy", [None, "respect", "prefer"])
def test_the_policy_is_recommended_where_it_is_not_set(monkeypatch, capsys, policy):
    session = _ocr.TimedSession(identity((1, 2)), providers=["CPUExecutionProvider"])
    if policy is not None:
        monkeypatch.setenv("ORT_RKNN_POLICY", policy)
    _ocr._print_report([session], 0.1)
    assert ("ORT_RKNN_POLICY=prefer puts the NPU first" in capsys.readouterr().out) == (policy != "prefer")


def test_without_rapidocr_part_one_is_left_out_and_part_two_goes_on(no_rapidocr, monkeypatch, capsys):
    monkeypatch.setattr(_npu, "show", lambda: "fine")
    assert ort_rknn_demo.run() == 0
    out = capsys.readouterr().out
    # RapidOCR is made for Python below 3.13: there is nothing to install on later ones.
    assert ("pip install" if sys.version_info < (3, 13) else "made for Python below 3.13") in out


def test_without_rapidocr_part_one_alone_is_a_failure(no_rapidocr, capsys):
    assert ort_rknn_demo.run(part="ocr") == 1
    assert "Left out: " in capsys.readouterr().out


def test_without_anything_the_demo_fails(no_rapidocr, no_compiler, capsys):
    assert ort_rknn_demo.run() == 1
    out = capsys.readouterr().out
    assert "Left out: " in out
    assert "'ort-rknn[virtual]'" in out


def test_an_opencv_that_needs_a_desktop_is_reported_with_the_remedy(no_rapidocr, monkeypatch, capsys):
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "rapidocr_onnxruntime":
                raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")

    monkeypatch.delitem(sys.modules, "rapidocr_onnxruntime")
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    assert ort_rknn_demo.run(part="ocr") == 1
    out = capsys.readouterr().out
    assert "this machine has no libGL.so.1" in out
    assert "pip install --no-deps --force-reinstall opencv-python-headless" in out


def test_a_picture_that_cannot_be_written_is_a_failure(no_rapidocr, monkeypatch, tmp_path, capsys):
    class Picture:
        def save(self, path):
            raise ValueError("unknown file extension: .doc")

    monkeypatch.setattr(_ocr, "draw", Picture)
    assert ort_rknn_demo.run(part="ocr", save=str(tmp_path / "sign.doc")) == 1
    assert "unknown file extension" in capsys.readouterr().out


def test_switched_off_there_is_nothing_to_show(monkeypatch, capsys):
    monkeypatch.setenv("ORT_RKNN_DISABLE", "1")
    assert ort_rknn_demo.run() == 1
    assert "ORT_RKNN_DISABLE" in capsys.readouterr().out


@pytest.mark.skipif(
    importlib.util.find_spec("rapidocr_onnxruntime") is None, reason="needs the extra 'demo' (rapidocr-onnxruntime)"
)
def test_the_real_program_reads_the_picture(python, tmp_path):
    picture = tmp_path / "sign.png"
    argv = ["demo", "--part", "ocr", "--save", str(picture)]
    code = f"import sys; from ort_rknn._cli.main import main; sys.exit(main({argv!r}))"
    out = python(code, args=("-W", "default"), quiet=False)
    assert "6 of 6 lines were read" in out
    assert out.count("CPUExecutionProvider") == 3
    assert picture.read_bytes().startswith(b"\x89PNG")
