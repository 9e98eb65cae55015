"""What public programs reach for inside the vendor's objects: the logger, names, shapes, the context."""

from __future__ import annotations

import ctypes
import logging

import numpy as np
import pytest
from support.rknnlite_models import CONV, MANIFEST, MODELS, X, on_cpu, started, virtual_rk3588, without_npu

from ort_rknn.files import read_rknn
from ort_rknn_rknnlite.api import RKNNLite, RKNNLiteError, rknn_runtime

npu = pytest.fixture(virtual_rk3588)
no_npu = pytest.fixture(without_npu)


@pytest.fixture(params=["npu", "no_npu"])
def start(request):
    request.getfixturevalue(request.param)
    return started if request.param == "npu" else on_cpu


def dims(attr):
    return list(attr.dims[: attr.n_dims])


def test_before_and_after(npu):
    made = RKNNLite()
    assert made.rknn_runtime is None
    made.load_rknn(CONV)
    made.init_runtime()
    assert made.rknn_runtime.graph_is_built and not made.rknn_runtime.async_mode
    made.release()
    assert made.rknn_runtime is None


def test_the_logger(npu, caplog):
    made = RKNNLite()
    level = made.rknn_log.logger.level
    try:
        made.rknn_log.logger.setLevel(logging.ERROR)
        made.rknn_log.w("not shown")
        made.rknn_log.e("shown %s")
        made.rknn_log.i("not shown")
        made.rknn_log.d("not shown")
        assert [r.getMessage() for r in caplog.records] == ["shown %s"]
        assert made.load_rknn("nothing") == -1
        assert "is not a file" in caplog.text
    finally:
        made.rknn_log.logger.setLevel(level)


def test_names_and_shapes(start):
    made = start()
    runtime = made.rknn_runtime
    assert runtime.get_in_out_num() == [1, 1]
    attr = runtime.get_tensor_attr(0)
    assert attr.name.decode() == "x"
    assert dims(attr) == [1, 32, 32, 3]  # a 4-D input is NHWC
    assert (attr.fmt, attr.type, attr.qnt_type) == (1, 1, 2)
    assert (attr.n_elems, attr.size) == (3072, 6144)
    out = runtime.get_tensor_attr(0, is_output=True)
    assert dims(out) == runtime.get_output_shape(0) == list(made.inference([X])[0].shape)
    assert [a.dims[1] for a in runtime.get_inputs()] == [32]
    assert len(runtime.get_outputs()) == 1
    assert runtime.target_soc == "RK3588"
    assert runtime.is_dynamic_shape is False
    assert runtime.core_mask == RKNNLite.NPU_CORE_AUTO
    assert len(runtime.get_sdk_version()) == 3
    for index, is_output in ((1, False), (-1, False), (1, True)):
        with pytest.raises(IndexError, match="the model has 1"):
            runtime.get_tensor_attr(index, is_output)
    made.release()


@pytest.mark.parametrize("name", [name for name in MANIFEST if ".rk3588." in name])
def test_every_model_as_the_runtime_reports_it(npu, name):
    """Without a library, the computed attributes equal those that the library reports."""
    made = started(MODELS / name)
    runtime = made.rknn_runtime
    ports = [(i, False) for i in range(runtime.get_in_out_num()[0])]
    ports += [(i, True) for i in range(runtime.get_in_out_num()[1])]
    for index, is_output in ports:
        told = runtime.get_tensor_attr(index, is_output)
        tensors = made._loaded.tensors_out if is_output else made._loaded.tensors_in
        worked_out = rknn_runtime._attr_of(index, tensors[index])
        for key in ("index", "name", "n_dims", "n_elems", "size", "fmt", "type", "qnt_type", "zp", "scale"):
            assert getattr(told, key) == getattr(worked_out, key), (key, told.name)
        assert dims(told) == dims(worked_out)
    assert runtime.is_dynamic_shape == read_rknn(MODELS / name).dynamic
    made.release()


def test_quantized(start):
    made = start(MODELS / "conv_i8.rk3588.rknn")
    tensor = MANIFEST["conv_i8.rk3588.rknn"]["declared"]["inputs"][0]
    attr = made.rknn_runtime.get_tensor_attr(0)
    assert (attr.type, attr.qnt_type, attr.zp) == (2, 2, tensor["zero_point"])
    assert attr.scale == pytest.approx(tensor["scale"])
    made.release()


def custom_string(runtime):
    answer = ctypes.create_string_buffer(1024)
    code = runtime.lib.rknn_query(runtime.context, 7, ctypes.byref(answer), ctypes.sizeof(answer))
    return code, answer.value.decode()


def test_the_library_and_its_context(start, caplog):
    """Plain integers and ctypes integers are accepted, as by the vendor's declared functions."""
    made = start()
    runtime = made.rknn_runtime
    assert custom_string(runtime) == (0, read_rknn(CONV).custom_string)
    if runtime.context:
        counts = (ctypes.c_uint32 * 2)()
        assert runtime.lib.rknn_query(ctypes.c_ulong(runtime.context), 0, counts, ctypes.sizeof(counts)) == 0
        assert list(counts) == [1, 1]
    else:
        assert runtime.lib.rknn_run(0, None) == -3
        assert runtime.lib.rknn_query(0, 0, None, 8) == -3
        assert "rknn_run of rknn_runtime.lib has no NPU to ask: conv_f16.onnx on the CPU" in caplog.text
        small = ctypes.create_string_buffer(1)
        made._loaded.custom_string = "longer"
        assert runtime.lib.rknn_query(0, 7, ctypes.byref(small), 1) == -5
        with pytest.raises(AttributeError):
            getattr(runtime.lib, "something")  # noqa: B009
    made.release()


def test_raw_outputs_of_the_last_run(npu):
    """With RKNNOutput and the library, as in programs that read the NPU's outputs without conversion to float32."""
    made = started()
    (want,) = made.inference([X])
    runtime = made.rknn_runtime
    buffers = (rknn_runtime.RKNNOutput * 1)()
    assert runtime.lib.rknn_outputs_get(runtime.context, 1, buffers, None) == 0
    raw = ctypes.string_at(buffers[0].buf, buffers[0].size)
    assert runtime.lib.rknn_outputs_release(runtime.context, 1, buffers) == 0
    got = np.frombuffer(raw, np.float16).reshape(want.shape)
    np.testing.assert_allclose(got, want, atol=1e-2)
    made.release()


def test_run_perf(start):
    made = start()
    assert made.rknn_runtime.get_run_perf().run_duration == 0
    made.inference([X])
    assert 0 < made.rknn_runtime.get_run_perf().run_duration < 60_000_000
    made.release()


def test_other_cores_later(npu, caplog):
    made = started()
    runtime = made.rknn_runtime
    (want,) = made.inference([X])
    assert runtime.set_core_mask(RKNNLite.NPU_CORE_2) == 0
    assert made.rknn_runtime is runtime
    assert runtime.core_mask == RKNNLite.NPU_CORE_2
    np.testing.assert_array_equal(made.inference([X])[0], want)
    assert custom_string(runtime)[0] == 0
    assert npu.counters().contexts == 1
    for bad in (99, "0", None, [1], 1.0, True):
        assert runtime.set_core_mask(bad) == -1
        assert runtime.core_mask == RKNNLite.NPU_CORE_2
    np.testing.assert_array_equal(made.inference([X])[0], want)
    made.release()
    assert runtime.set_core_mask(1) == -1
    assert "RKNNLite.rknn_runtime.set_core_mask: the runtime was released" in caplog.text


# Wrong arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize(
    ("call", "arguments", "text"),
    [
        ("load_rknn", (CONV.read_bytes(),), r"a path is expected, not a model of \d+ bytes: write it to a file$"),
        ("load_rknn", (bytearray(CONV.read_bytes()),), r"a path is expected, not a model of \d+ bytes"),
        ("load_rknn", (b"RKNN\0\0\0\0" + bytes(100),), r"a path is expected, not a model of 108 bytes"),
        ("load_rknn", ("x" * 5000,), r"the model 'x{199}\.\.\. \(5000 characters\) is not a file$"),
        ("load_rknn", (b"ab" * 1500,), r"the model b'(ab)+\.\.\. \(\d+ characters\) is not a file$"),
        ("load_rknn", (None,), "a path is expected, not None$"),
        ("load_rknn", (0,), "a path is expected, not int 0$"),
        ("load_rknn", (np.zeros(5),), "a path is expected, not ndarray$"),
        ("load_rknn", ("a\0b",), "null byte|is not a file"),
        ("init_runtime", (3588,), "target: the name of a SoC is expected, not int 3588"),
        ("init_runtime", (None, None, False, [1]), "core_mask: RKNNLite.NPU_CORE_AUTO, .* is expected, not list"),
        ("init_runtime", (None, None, False, "0"), "core_mask: .* is expected, not str '0'"),
        ("init_runtime", (None, None, False, None), "core_mask: .* is expected, not None"),
        ("init_runtime", (None, None, False, 1.0), "core_mask: .* is expected, not float 1.0"),
        ("inference", (None,), "inputs must be a list of numpy arrays"),
        ("inference", ([X], 5), "data_type is 5: expected a word, or a list"),
        ("inference", ([X], None, {"a": 1}), "data_format is {'a': 1}: expected a word, or a list"),
        ("list_support_target_platform", (7,), "a path is expected, not int 7"),
    ],
)
def test_wrong_arguments(npu, caplog, call, arguments, text, raises):
    made = started()
    made.raise_errors = raises
    caplog.clear()
    if raises:
        with pytest.raises(RKNNLiteError, match=text):
            getattr(made, call)(*arguments)
    else:
        assert getattr(made, call)(*arguments) == (-1 if call in ("load_rknn", "init_runtime") else None)
        (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
        with pytest.raises(AssertionError, match=text):
            raise AssertionError(record.getMessage())
        assert len(record.getMessage()) < 300
    made.raise_errors = False
    assert made.inference([X]) is not None  # it continues unchanged
    made.release()


def test_a_model_that_was_rewritten_in_place(npu, caplog, tmp_path):
    path = tmp_path / "m.rknn"
    path.write_bytes(CONV.read_bytes())
    made = RKNNLite()
    assert made.load_rknn(path) == 0
    path.write_bytes(b"other")
    assert made.init_runtime() == -1
    assert "m.rknn was changed in place" in caplog.text
