"""The unmodified onnxruntime on model.onnx: when a twin replaces the graph, and what is reported if none does."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state
from support.ep_feeds import random_feed
from support.ep_models import plain_session

from ort_rknn import FallbackWarning


@pytest.mark.parametrize("name", ["conv_f16", "two_io", "tokens_i64", "scalarish"])
def test_a_twin_stands_for_the_whole_graph(npu, models, name):
    path = str(models / f"{name}.onnx")
    session = plain_session(path)
    feed = random_feed(session)
    control = onnxruntime.InferenceSession(path).run(None, feed)
    for got, want in zip(session.run(None, feed), control, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)
    assert len(npu.log) == 1


@pytest.mark.parametrize("given_as", ["path with a twin", "path without", "bytes"])
@pytest.mark.parametrize(
    "given, text",
    [
        ({"schedul": "0"}, "unknown provider option 'schedul'.*known: schedule, threads_per_core"),
        ({"threads_per_core": "many"}, "threads_per_core"),
        ({"schedule": "0,1", "tp_mode": "all"}, "'schedule' and 'tp_mode' exclude each other"),
        ({"layout": "nhwc"}, "'layout' changes a session's signature; only ort_rknn.InferenceSession can do that"),
    ],
)
def test_bad_options_of_an_unmodified_session(npu, models, tmp_path, given_as, given, text):
    """onnxruntime would only log what GetCapability raises, and run the graph on the CPU."""
    path = models / "conv_f16.onnx"
    if given_as != "path with a twin":
        path = tmp_path / "model.onnx"
        path.write_bytes((models / "conv_f16.onnx").read_bytes())
    with pytest.raises(state.InvalidArgument, match=text):
        plain_session(path.read_bytes() if given_as == "bytes" else path, given)
    assert npu.loads == 0


def test_without_a_twin_onnxruntime_keeps_its_graph(npu, models, tmp_path):
    alone = tmp_path / "alone.onnx"
    alone.write_bytes((models / "conv_f16.onnx").read_bytes())
    with pytest.warns(FallbackWarning, match=r"alone\.onnx stays on the CPU: no compiled twin of alone") as told:
        session = plain_session(str(alone))
    assert [Path(w.filename).name for w in told] == ["ep_models.py"]
    assert len(session.run(None, {"x": np.zeros((1, 3, 32, 32), np.float32)})) == 1
    assert npu.loads == 0
    with pytest.raises(state.RuntimeException, match=r"alone\.onnx stays on the CPU"):
        plain_session(str(alone))  # warnings are errors here
    with pytest.warns(FallbackWarning, match="a model from memory stays on the CPU"):
        session = plain_session(alone.read_bytes())
    assert len(session.run(None, {"x": np.zeros((1, 3, 32, 32), np.float32)})) == 1


def test_why_a_twin_does_not_stand_for_its_graph(npu, models, tmp_path):
    alone = tmp_path / "alone.onnx"
    alone.write_bytes((models / "conv_f16.onnx").read_bytes())

    def told(given=None):
        with pytest.warns(FallbackWarning, match=r"alone\.onnx stays on the CPU: ") as warned:
            session = plain_session(str(alone), given)
        assert len(warned) == 1 and len(session.run(None, {"x": np.zeros((1, 3, 32, 32), np.float32)})) == 1
        return str(warned[0].message)

    with pytest.raises(state.InvalidArgument, match=r"rknn_model='.*nothing\.rknn' cannot be read"):
        plain_session(str(alone), {"rknn_model": str(tmp_path / "nothing.rknn")})
    (tmp_path / "alone.rknn").write_bytes((models / "conv_f16.rk3566.rknn").read_bytes())
    assert "alone.rknn does not fit: it was compiled for rk3566, this is rk3588" in told()
    assert "no NPU: the fake NPU is switched off. switch it on" in told({"device": "rk3566"})
    assert npu.loads == 0


def test_the_environment_says_what_other_shapes_do(npu, models, monkeypatch):
    """ORT_RKNN_ON_MISSING_SHAPE applies to the unmodified onnxruntime too."""
    npu.shapes = [((s[0], 4, *s[2:]),) for s in ((1, 3, 32, 32), (1, 3, 16, 24), (1, 3, 16, 16))]
    path = str(models / "dynamic.onnx")
    feed = {"x": np.random.default_rng(0).standard_normal((1, 3, 20, 12), dtype=np.float32)}
    (want,) = onnxruntime.InferenceSession(path).run(None, feed)
    with pytest.raises(state.InvalidArgument, match="no shape set was compiled"):
        plain_session(path).run(None, feed)
    monkeypatch.setenv("ORT_RKNN_ON_MISSING_SHAPE", "cpu")
    session = plain_session(path)
    assert np.array_equal(session.run(None, feed)[0], want)
    assert npu.loads == 2
    monkeypatch.setenv("ORT_RKNN_ON_MISSING_SHAPE", "maybe")
    with pytest.raises(state.InvalidArgument, match="ORT_RKNN_ON_MISSING_SHAPE='maybe': expected error or cpu"):
        plain_session(path)
