"""Sessions through the lite2 adapter compared with plain RKNNLite: the same numbers, the requested cores, our
exceptions."""

import json
import os
import threading
import warnings

import numpy as np
import pytest
from ort_rknn.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException
from support.lite2_board import MODELS, Board

import ort_rknn as ort
from ort_rknn_lite2._logging import logging_untouched

MANIFEST = json.loads((MODELS / "MANIFEST.json").read_text())["files"]
GOLDEN = [(name, g["file"]) for name, e in MANIFEST.items() if e["target"] == "rk3588" for g in e["golden"]]
X = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)


@pytest.fixture
def board(tmp_path, monkeypatch):
    board = Board(tmp_path, monkeypatch)
    board.use_for_sessions(monkeypatch)
    yield board
    board.assert_all_closed()


def session(model="conv_f16.onnx", **options):
    return ort.InferenceSession(MODELS / model, provider_options={"adapter": "lite2", **options})


class Plain:
    """The vendor's class as its examples use it."""

    def __init__(self, name, core_mask=0):
        with logging_untouched(), warnings.catch_warnings():  # other tests come after this one
            warnings.simplefilter("ignore")
            from rknnlite.api import RKNNLite

            self.rknn = RKNNLite()
        assert self.rknn.load_rknn(str(MODELS / name)) == 0
        assert self.rknn.init_runtime(core_mask=core_mask) == 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.rknn.release()

    def run(self, arrays):
        return self.rknn.inference(
            inputs=[np.ascontiguousarray(a.transpose(0, 2, 3, 1)) if a.ndim == 4 else a for a in arrays]
        )


@pytest.mark.parametrize("options", [{"layout": "native"}, {"output_layout": "native"}])
def test_what_the_npu_stores_is_not_to_be_had(board, options):
    """rknn-toolkit-lite2 knows no rknn_set_io_mem."""
    with pytest.raises(
        ort.OptionError, match="adapter does not report how the NPU stores tensors; use the adapter 'lib"
    ):
        session(**({"output_dtype": "native"} if "output_layout" in options else {}), **options)


def test_npu_memory_is_copied_and_counted(board):
    """An array over an existing dma-buf is read like any other, and stats() has the run with its reason."""
    fd = os.memfd_create("camera")
    os.write(fd, X.tobytes())
    with session() as s:
        want = s.run(None, {"x": X})[0]
        array = ort.from_dmabuf(fd, X.shape, X.dtype)
        os.close(fd)
        np.testing.assert_array_equal(s.run(None, {"x": array})[0], want)
        stats = s.stats()
        assert (stats.total.bound_runs, stats.total.unbound_runs) == (0, 1)
        assert stats.models[0].unbound == {"the adapter does not bind memory": 1}
        with pytest.raises(Fail, match="lite2 of device rk3588 does not provide NPU memory"):
            s.buffers(1)


@pytest.mark.parametrize(("name", "golden"), GOLDEN)
def test_session_and_plain_rknnlite_give_the_same_numbers(board, name, golden):
    """For every committed model: each other's, and those of the ONNX and the vendor's simulator."""
    board.npu.attributes_follow(True)  # for the dynamic one
    values = np.load(MODELS / golden)
    pixels = "onnx_input/image" in values
    options = {"input_dtype": "uint8", "layout": "nhwc"} if pixels else {}
    feed = {key[6:]: values[key] for key in values if key.startswith("input/")}
    with session(name, **options) as ours, Plain(name) as plain:
        assert "adapter lite2" in ours.explain()
        twin = board.compute(MODELS / MANIFEST[name]["onnx"])
        got = ours.run(None, feed)
        arrays = [feed[port.info.name] for port in ours._npu.executor.signature.inputs]
        theirs = plain.rknn.inference(inputs=arrays) if pixels else plain.run(arrays)
        for output, a, b in zip(ours.get_outputs(), got, theirs, strict=True):
            np.testing.assert_array_equal(a.astype(np.float32), b.reshape(a.shape))
            how = ours.quantization.get(output.name)
            want = values[f"onnxruntime/{output.name}"]
            limit = 2.5 * how.scale if how else 2e-3 * max(1.0, float(np.abs(want).max()))
            assert np.abs(a - want).max() <= limit
            assert np.abs(a - values[f"simulator/{output.name}"].reshape(a.shape)).max() <= 2 * limit
    twin.close()


@pytest.mark.wall_clock
def test_two_sessions_on_different_cores(board):
    board.npu.run_time_us = 500_000
    with session(tp_mode="0") as first, session(schedule=[2]) as second:
        threads = [threading.Thread(target=s.run, args=(None, {"x": X})) for s in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        one, other = board.runs()
        assert {one.core_mask, other.core_mask} == {1, 4}
        assert one.context != other.context
        assert max(one.start_ns, other.start_ns) < min(one.end_ns, other.end_ns)


def test_one_session_over_three_cores(board):
    with session(schedule=[0, 1, 2], threads_per_core=1) as made:
        for _ in range(6):
            made.run(None, {"x": X})
        assert [event.core_mask for event in board.runs()] == [1, 2, 4, 1, 2, 4]
        assert board.npu.counters().models == 3


def test_explain_names_the_preferred_adapter(board):
    for options in ({}, {"adapter": "auto"}):
        with ort.InferenceSession(MODELS / "conv_f16.onnx", provider_options=options) as made:
            text = made.explain()
        assert "through adapter librknnrt" in text
        assert "adapter lite2 sees a device too; the provider option adapter='lite2' selects it" in text
    with session() as made:
        text = made.explain()
    assert "adapter lite2" in text
    assert "version:   weights loaded anew by every context, rknn-toolkit-lite2 cannot share them" in text
    assert "version:   package rknn-toolkit-lite2 " in text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"run_timeout_ms": 20}, "run_timeout_ms: rknn-toolkit-lite2 waits as long as the driver does"),
        ({"custom_op_paths": "/usr/lib/x.so"}, "custom_op_paths: rknn-toolkit-lite2 has no way to register operators"),
    ],
)
def test_options_that_it_cannot_honour(board, options, text):
    """They are errors, not a reason to fall back, even if the CPU is allowed."""
    with pytest.raises(ort.OptionError, match=f"conv_f16.rk3588.rknn on rk3588: {text}"):
        session(**options)
    assert board.npu.counters().contexts == 0


def test_weights_of_another_session(board):
    text = "use_weight_from: rknn-toolkit-lite2 cannot share weights. Leave it out, or use the adapter 'librknnrt'"
    other = "weights can be shared with a model that the same runtime library loaded, and only with such"
    with session() as lender:
        with pytest.raises(ort.OptionError, match=text):
            ort.InferenceSession(
                MODELS / "conv_f16.onnx", provider_options={"adapter": "lite2"}, use_weight_from=lender
            )
        with pytest.raises(ort.OptionError, match=other):
            ort.InferenceSession(MODELS / "conv_f16.onnx", use_weight_from=lender)


@pytest.mark.parametrize(("call", "code"), [("rknn_init", -6), ("rknn_set_core_mask", -1), ("rknn_query", -7)])
def test_an_error_at_loading(board, call, code):
    board.npu.fault(call, code)
    with pytest.raises(Fail, match=rf"{call} failed: RKNN_ERR_\w+ \({code}\)"):
        ort.InferenceSession(
            MODELS / "conv_f16.onnx", provider_options={"adapter": "lite2", "schedule": [1]}, enable_fallback=0
        )
    assert board.npu.counters().contexts == 0


@pytest.mark.parametrize("call", ["rknn_inputs_set", "rknn_run", "rknn_outputs_get"])
def test_an_error_at_a_run(board, call):
    with session(schedule=[1]) as made:
        (want,) = made.run(None, {"x": X})
        board.npu.fault(call, -2, times=1)
        with pytest.raises(RuntimeException) as caught:
            made.run(None, {"x": X + 1})
        for word in ("conv_f16.rk3588.rknn", "core 1", call, "RKNN_ERR_TIMEOUT", "-2"):
            assert word in str(caught.value)
        np.testing.assert_array_equal(made.run(None, {"x": X})[0], want)


def test_native_quantized_outputs_are_refused_when_the_session_is_made(board):
    said = "output_dtype='native': the adapter gives output 'y', stored as int8, as float32 only"
    with pytest.raises(ort.OptionError, match=said):
        session("conv_i8.onnx", output_dtype="native")
    with session("conv_f16.onnx", output_dtype="native") as made:
        assert made.run(None, {"x": X})[0].dtype == np.float16


def test_without_the_device_the_reason_is_the_adapter_s(board, monkeypatch):
    with pytest.raises(InvalidArgument, match="adapter='lite3'.*installed are .*'lite2'"):
        session(adapter="lite3")
    monkeypatch.setenv("ORT_RKNN_STRICT", "1")
    with pytest.raises(Fail, match="no NPU: the device 'rk3576' is not here"):
        session(device="rk3576")
    with pytest.raises(Fail, match="no NPU: the adapter 'lite2' has no device 'virtual:rk3588'. Leave one of the two"):
        session(device="virtual:rk3588")
    with pytest.raises(
        Fail, match="no NPU: the adapter 'virtual' has no device that is not asked for by name. Name one"
    ):
        session(adapter="virtual")


def test_plain_rknnlite_does_give_old_results(board):
    """The flaw that the adapter works around: revise this when a release checks rknn_run's return value."""
    with Plain("conv_f16.rk3588.rknn") as plain:
        plain.run([X])
        ran = len(board.runs())
        board.npu.fault("rknn_run", -2, times=1)
        plain.run([X])
        kinds = [event.kind for event in board.npu.events()]
        assert len(board.runs()) == ran + 1
        assert kinds[-1] == "outputs_get" or kinds[-2] == "outputs_get"  # it went on to the outputs
