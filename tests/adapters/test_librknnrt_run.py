"""Running: conversions, forms, shape sets, faults, threads, and that ten thousand runs leave nothing behind."""

import ctypes
import threading
import time

import numpy as np
import pytest
from support.growth import assert_no_growth
from support.librknnrt_virtual import Npu, addresses, form_of, pattern, port, run

from ort_rknn.adapter import AdapterError, CallForm, PortForm, RknnError
from ort_rknn_librknnrt import _context

COMPUTE = ctypes.CFUNCTYPE(
    *(ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)
)


@pytest.fixture
def npu():
    npu = Npu("rk3588")
    yield npu
    npu.assert_all_closed()


def random(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


class TestConversions:
    def test_float32_both_ways(self, npu):
        model = npu.load("conv_f16")
        context = model.context(1)
        x, y = random((1, 3, 32, 32)), np.full((1, 8, 16, 16), np.nan, np.float32)
        run(context, [x], [y])
        want = pattern([x.astype(np.float16)], 0, "float16", y.shape)
        np.testing.assert_array_equal(y, want.astype(np.float32))
        nhwc, again = np.ascontiguousarray(x.transpose(0, 2, 3, 1)), np.empty_like(y)
        run(context, [nhwc], [again], layout="NHWC")
        np.testing.assert_array_equal(again, y)
        raw = np.empty(y.shape, np.float16)
        run(context, [x.astype(np.float16)], [raw])
        np.testing.assert_array_equal(raw, want)
        model.close()

    def test_int8_raw_and_widened(self, npu):
        model = npu.load("conv_i8")
        context = model.context(1)
        stored = np.random.default_rng(1).integers(-128, 128, (1, 3, 32, 32), np.int8)
        quantization = model.inputs[0].quantization
        real = (stored.astype(np.float32) - quantization.zero_point) * np.float32(quantization.scale)
        raw, wide = np.empty((1, 20, 8, 8), np.int8), np.empty((1, 20, 8, 8), np.float32)
        run(context, [real], [raw])
        np.testing.assert_array_equal(raw, pattern([stored], 0, "int8", raw.shape))
        run(context, [real], [wide])
        quantization = model.outputs[0].quantization
        np.testing.assert_allclose(wide, (raw.astype(np.float64) - quantization.zero_point) * quantization.scale, 1e-6)
        model.close()

    def test_pass_through(self, npu):
        model = npu.load("conv_i8")
        stored = np.random.default_rng(2).integers(-128, 128, (1, 32, 32, 3), np.int8)
        raw = np.empty((1, 20, 8, 8), np.int8)
        form = CallForm((port(stored, "NHWC", pass_through=True),), (port(raw),))
        model.context(0).run(form, addresses([stored]), addresses([raw]))
        np.testing.assert_array_equal(raw, pattern([stored.transpose(0, 3, 1, 2)], 0, "int8", raw.shape))
        model.close()

    def test_uint8_camera_frame(self, npu):
        model = npu.load("image_u8")
        context = model.context(0)
        image = np.random.default_rng(3).integers(0, 256, (1, 24, 24, 3), np.uint8)
        frame, floats = np.empty((1, 10), np.float32), np.empty((1, 10), np.float32)
        run(context, [image], [frame], layout="NHWC")
        run(context, [image.astype(np.float32)], [floats], layout="NHWC")  # the model's mean and std apply to both
        np.testing.assert_array_equal(frame, floats)
        run(context, [image[:, ::-1].copy()], [floats], layout="NHWC")
        assert not np.array_equal(frame, floats)
        model.close()

    def test_int64_both_ways(self, npu):
        model = npu.load("tokens_i64")
        ids = np.random.default_rng(4).integers(0, 32, (1, 16), np.int64)
        features, label = np.empty((1, 16, 8), np.float32), np.empty((1, 16), np.int64)
        run(model.context(0), [ids], [features, label])
        np.testing.assert_array_equal(features, pattern([ids], 0, "float16", features.shape))
        np.testing.assert_array_equal(label, pattern([ids], 1, "int64", label.shape))
        model.close()

    def test_bool_and_several_inputs_in_order(self, npu):
        model = npu.load("bool_mask")
        x, mask = random((1, 16)), np.arange(16).reshape(1, 16) % 3 == 0
        y = np.empty((1, 6), np.float32)
        run(model.context(0), [x, mask], [y])
        np.testing.assert_array_equal(y, pattern([x.astype(np.float16), mask], 0, "float16", y.shape))
        model.close()

    def test_scalar_output(self, npu):
        model = npu.load("scalarish")
        v, m = random((8,)), random((1, 4, 8))
        outputs = [np.empty(shape, np.float32) for shape in model.output_shapes(None)]
        run(model.context(0), [v, m], outputs)
        stored = [v.astype(np.float16), m.astype(np.float16)]
        for index, output in enumerate(outputs):
            np.testing.assert_array_equal(output, pattern(stored, index, "float16", output.shape))
        model.close()


class TestForms:
    @pytest.fixture
    def context(self, npu):
        model = npu.load("conv_i8")
        yield model.context(0)
        model.close()

    X = PortForm("float32", "NCHW", (1, 3, 32, 32), 12288)
    Y = PortForm("float32", "NCHW", (1, 20, 8, 8), 5120)

    @pytest.mark.parametrize(
        ("form", "text"),
        [
            (CallForm((), (Y,)), "the form has 0 inputs, but the model has 1"),
            (CallForm((X,), (Y, Y)), "the form has 2 outputs, but the model has 1"),
            (CallForm((X,), (Y,), 0), "chooses shape set 0, but the model has none"),
            (
                CallForm((PortForm("float64", "NCHW", (1, 3, 32, 32), 24576),), (Y,)),
                "input 'x': the runtime takes no float64; it takes float32, float16, int8, ",
            ),
            (CallForm((PortForm("bfloat16", "NCHW", (1, 3, 32, 32), 6144),), (Y,)), "takes no bfloat16"),
            (CallForm((PortForm("int8", "CHWN", (1,), 1),), (Y,)), "unknown layout 'CHWN'"),
            (CallForm((PortForm("int8", "NCHW", (1,), 2**32),), (Y,)), "at most 4 GiB, not 4294967296 bytes"),
            (
                CallForm((X,), (PortForm("float16", "NCHW", (1, 20, 8, 8), 2560),)),
                "output 'y': the runtime gives int8 or float32, not float16",
            ),
            (CallForm((X,), (PortForm("int8", "NHWC", (1, 8, 8, 20), 1280),)), "the runtime gives NCHW, not NHWC"),
            (CallForm((X,), (PortForm("int8", "NCHW", (1, 20, 8, 8), 1280, True),)), "pass_through is for inputs"),
        ],
    )
    def test_impossible_forms(self, npu, context, form, text):
        npu.reset()
        with pytest.raises(AdapterError) as caught:
            context.run(form, [0] * len(form.inputs), [0] * len(form.outputs))
        assert text in str(caught.value)
        assert not isinstance(caught.value, RknnError)
        assert npu.calls() == []

    def test_the_wrong_number_of_addresses(self, npu, context):
        npu.reset()
        for inputs, outputs in (((), (8,)), ((8,), (8, 16))):
            with pytest.raises(AdapterError, match=f"but {len(inputs)} and {len(outputs)} addresses were given"):
                context.run(CallForm((self.X,), (self.Y,)), inputs, outputs)
        assert npu.calls() == []

    def test_a_dynamic_model_needs_a_set(self, npu):
        model = npu.load("dynamic")
        form = CallForm((PortForm("float32", "NCHW", (1, 3, 32, 32), 12288),), (self.Y,))
        with pytest.raises(AdapterError, match="the form must choose one of its 3 shape sets"):
            model.context(0).run(form, (8,), (8,))
        model.close()

    def test_a_buffer_that_is_too_small_is_the_runtimes_to_say(self, npu, context):
        x, y = random((1, 3, 32, 31)), np.empty((1, 20, 8, 8), np.float32)
        with pytest.raises(RknnError, match="An input buffer is smaller than the model's input") as caught:
            run(context, [x], [y])
        assert (caught.value.call, caught.value.code) == ("rknn_inputs_set", -5)
        x, y = random((1, 3, 32, 32)), np.empty((1, 20, 8, 7), np.float32)
        with pytest.raises(RknnError, match="An output buffer is smaller"):
            run(context, [x], [y])

    def test_after_close(self, npu, context):
        x, y = random((1, 3, 32, 32)), np.empty((1, 20, 8, 8), np.float32)
        form = form_of([x], [y])
        context.run(form, addresses([x]), addresses([y]))
        context.close()
        context.close()
        with pytest.raises(AdapterError, match="the context is closed"):
            context.run(form, addresses([x]), addresses([y]))


class TestHotPath:
    def test_four_calls_and_nothing_else(self, npu):
        model = npu.load("two_io")
        context = model.context(0)
        a, b = random((1, 3, 16, 16)), random((1, 16))
        outputs = [np.empty((1, 8, 16, 16), np.float32), np.empty((1, 6), np.float32)]
        npu.reset()
        run(context, [a, b], outputs)
        assert npu.calls() == ["inputs_set", "inputs_set", "run", "outputs_get", "outputs_release"]
        assert [event.address for event in npu.events()[:2]] == [a.ctypes.data, b.ctypes.data]  # no copy of ours
        model.close()

    def test_forms_may_alternate_and_buffers_may_change(self, npu):
        model = npu.load("conv_f16")
        context = model.context(0)
        shape = (1, 8, 16, 16)
        wide, raw = np.empty(shape, np.float32), np.empty(shape, np.float16)
        forms = [form_of([random((1, 3, 32, 32))], [wide]), form_of([random((1, 3, 32, 32), dtype=np.float16)], [raw])]
        for seed in range(6):
            x = random((1, 3, 32, 32), seed, np.float16 if seed % 2 else np.float32)
            y = np.empty(shape, x.dtype)
            context.run(forms[seed % 2], addresses([x]), addresses([y]))
            np.testing.assert_array_equal(y, pattern([x.astype(np.float16)], 0, "float16", shape))
        model.close()

    def test_ten_thousand_runs_leave_nothing(self, npu):
        model = npu.load("bool_mask")
        context = model.context(0)
        arrays = [random((1, 16)), np.ones((1, 16), bool)], [np.empty((1, 6), np.float32)]
        form, inputs, outputs = form_of(*arrays), addresses(arrays[0]), addresses(arrays[1])

        def runs(count):
            for _ in range(count):
                context.run(form, inputs, outputs)

        runs(2000)  # the event log of the virtual NPU fills up, allocators settle
        assert_no_growth(lambda: runs(10_000), traced=2048)
        assert_no_growth(lambda: runs(10_000), resident=4096)
        assert npu.counters().outputs == 0
        model.close()


class TestShapeSets:
    def test_set_only_when_it_changes(self, npu):
        model = npu.load("dynamic")
        order = [0, 0, 2, 2, 1, 0]
        contexts = model.context(1), model.context(2)
        for context in contexts:
            for index, shape_set in enumerate(order):
                (shape,) = model.shape_sets[shape_set]
                x, y = random(shape, index), np.empty(model.output_shapes(shape_set)[0], np.float32)
                run(context, [x], [y], shape_set)
                np.testing.assert_array_equal(y, pattern([x.astype(np.float16)], 0, "float16", y.shape))
        npu.reset()
        for shape_set in order:
            (shape,) = model.shape_sets[shape_set]
            run(contexts[1], [random(shape)], [np.empty(model.output_shapes(shape_set)[0], np.float32)], shape_set)
        short = {"set_input_shapes": "S", "run": "r", "query": "q"}
        assert "".join(short.get(call, "") for call in npu.calls()) == "rrSrrSrSr"
        model.close()

    def test_a_refused_set_is_tried_again(self, npu):
        model = npu.load("dynamic")
        _, context = model.context(0), model.context(0)  # output_shapes() sets the first one
        arrays = [np.zeros(model.shape_sets[0][0], np.float32)], [np.empty(model.output_shapes(0)[0], np.float32)]
        run(context, *arrays, shape_set=0)
        other = [np.zeros(model.shape_sets[1][0], np.float32)], [np.empty(model.output_shapes(1)[0], np.float32)]
        npu.fault("rknn_set_input_shapes", -1, times=1)
        with pytest.raises(RknnError, match="rknn_set_input_shapes"):
            run(context, *other, shape_set=1)
        count = npu.calls().count("set_input_shapes")
        run(context, *arrays, shape_set=0)  # what the failure left is not known, so this one is set again
        assert npu.calls().count("set_input_shapes") == count + 1
        model.close()


class TestFaults:
    @pytest.mark.parametrize(
        ("function", "code", "text", "calls"),
        [
            ("rknn_inputs_set", -5, "An input buffer is smaller", []),
            ("rknn_inputs_set", -7, "load the model again", []),
            ("rknn_run", -1, "RKNN_LOG_LEVEL", ["inputs_set"]),
            ("rknn_run", -2, "did not finish in the driver's own time", ["inputs_set"]),
            ("rknn_run", -3, "The NPU is gone", ["inputs_set"]),
            ("rknn_run", -4, "Not enough memory", ["inputs_set"]),
            ("rknn_outputs_get", -5, "An output buffer is smaller", ["inputs_set", "run"]),
            ("rknn_outputs_release", -9, "RKNN_ERR_OUTPUT_INVALID", ["inputs_set", "run", "outputs_get"]),
        ],
    )
    def test_the_call_that_failed_is_named_and_nothing_is_called_after_it(self, npu, function, code, text, calls):
        model = npu.load("conv_f16")
        context = model.context(0)
        x, y = random((1, 3, 32, 32)), np.full((1, 8, 16, 16), 7, np.float32)
        npu.reset()
        npu.fault(function, code, times=1)
        with pytest.raises(RknnError, match=text) as caught:
            run(context, [x], [y])
        assert (caught.value.call, caught.value.code) == (function, code)
        assert [call for call in npu.calls() if f"rknn_{call}" != function] == calls
        if function != "rknn_outputs_release":
            assert (y == 7).all()
        run(context, [x], [y])  # the context still works
        np.testing.assert_array_equal(y, pattern([x.astype(np.float16)], 0, "float16", y.shape))
        model.close()

    @pytest.mark.parametrize("raised", [KeyboardInterrupt, MemoryError])
    def test_outputs_are_given_back_after_an_exception_amid_taking_them(self, npu, raised):
        """A signal's handler raises while rknn_outputs_get is at work, or when it has ended."""
        model = npu.load("conv_f16")
        context = model.context(0)
        x, y = random((1, 3, 32, 32)), np.empty((1, 8, 16, 16), np.float32)
        run(context, [x], [y])
        call = context._call
        assert call is not None
        get = call.get

        def interrupted(*arguments):
            assert get(*arguments) == 0
            raise raised

        call.get = interrupted
        npu.reset()
        with pytest.raises(raised):
            context.run(call.form, addresses([x]), addresses([y]))
        call.get = get
        assert npu.calls() == ["inputs_set", "run", "outputs_get", "outputs_release"]
        assert npu.counters().outputs == 0
        again = np.empty_like(y)
        run(context, [x], [again])
        np.testing.assert_array_equal(again, y)
        model.close()

    def test_the_bound_is_named_in_a_timeout(self, npu):
        model = npu.load("conv_f16", run_timeout_ms=250)
        npu.fault("rknn_run", -2, times=1)
        with pytest.raises(RknnError, match="within run_timeout_ms=250"):
            run(model.context(0), [random((1, 3, 32, 32))], [np.empty((1, 8, 16, 16), np.float32)])
        model.close()


@pytest.mark.wall_clock
def test_a_run_that_takes_too_long(npu):
    model = npu.load("conv_f16", run_timeout_ms=30)
    context = model.context(0)
    x, y = random((1, 3, 32, 32)), np.empty((1, 8, 16, 16), np.float32)
    npu.run_time_us = 300_000
    start = time.perf_counter()
    with pytest.raises(RknnError, match="RKNN_ERR_TIMEOUT") as caught:
        run(context, [x], [y])
    assert 0.02 < time.perf_counter() - start < 0.25
    assert (caught.value.call, caught.value.code) == ("rknn_run", -2)
    npu.run_time_us = 0
    run(context, [x], [y])
    model.close()


def test_runs_beside_a_compute_callback_in_python_do_not_lock_each_other_out(npu):
    """No function of a run holds the GIL, because a callback on another thread waits for it."""
    callback = COMPUTE(lambda user, n_in, inputs, n_out, outputs: time.sleep(0.0005) or 0)

    def on_context(library, context):
        assert library.rknn_virtual_set_compute(ctypes.c_uint64(context), callback, None) == 0

    model = npu.load("conv_f16", on_context=on_context)
    contexts = [model.context(mask) for mask in (1, 2, 4)]

    def work(context):
        x, y = random((1, 3, 32, 32)), np.empty((1, 8, 16, 16), np.float32)
        form = form_of([x], [y])
        for _ in range(100):
            context.run(form, addresses([x]), addresses([y]))

    threads = [threading.Thread(target=work, args=(context,)) for context in contexts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert npu.counters().runs == (100, 100, 100)
    model.close()


@pytest.mark.wall_clock
def test_contexts_run_at_the_same_time(npu):
    """The GIL is released while the NPU works."""
    model = npu.load("conv_f16")
    contexts = [model.context(mask) for mask in (1, 2, 4)]
    npu.run_time_us = 100_000

    def work(context):
        run(context, [random((1, 3, 32, 32))], [np.empty((1, 8, 16, 16), np.float32)])

    threads = [threading.Thread(target=work, args=(context,)) for context in contexts]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - start
    assert 0.1 <= elapsed < 0.25
    assert npu.counters().runs == (1, 1, 1)
    model.close()


ALL_SHORT = 10**12  # an emulated processor takes longer than a real one


class TestTheGil:
    """Held before and after a short run, released in a long one."""

    def test_kept_for_small_buffers(self, npu):
        model = npu.load("conv_f16")
        context = model.context(1)
        x, y = random((1, 3, 32, 32)), np.empty((1, 8, 16, 16), np.float32)
        assert x.nbytes + y.nbytes < 64 * 1024
        run(context, [x], [y])
        call = context._call
        assert (call.set, call.get, call.release) == model.binding.keeping_gil
        assert all(function._flags_ & 4 for function in model.binding.keeping_gil)  # ctypes' FUNCFLAG_PYTHONAPI
        assert not model.binding.run._flags_ & 4
        model.close()

    def test_the_gil_stays_released_in_long_runs(self, npu, monkeypatch):
        monkeypatch.setattr(_context, "_SHORT", ALL_SHORT)
        model = npu.load("conv_f16")
        context = model.context(1)
        x, y = random((1, 3, 32, 32)), np.empty((1, 8, 16, 16), np.float32)
        want, form = np.empty_like(y), form_of([x], [y])
        context.run(form, addresses([x]), addresses([want]))
        call = context._call
        monkeypatch.setattr(_context, "_SHORT", 0)  # as if nothing were short
        for _ in range(3):
            context.run(form, addresses([x]), addresses([y]))
            assert call.keeps_gil
        monkeypatch.setattr(_context, "_SHORT", ALL_SHORT)
        context.run(form, addresses([x]), addresses([y]))  # the long ones were not in a row
        monkeypatch.setattr(_context, "_SHORT", 0)
        for _ in range(4):
            assert call.keeps_gil
            context.run(form, addresses([x]), addresses([y]))
        monkeypatch.setattr(_context, "_SHORT", ALL_SHORT)
        for _ in range(2):
            assert not call.keeps_gil
            binding = model.binding
            assert (call.set, call.get, call.release) == (
                binding.inputs_set,
                binding.outputs_get,
                binding.outputs_release,
            )
            y[:] = 0
            context.run(form, addresses([x]), addresses([y]))
            np.testing.assert_array_equal(y, want)
        model.close()

    def test_never_kept_for_large_buffers(self, npu, monkeypatch):
        monkeypatch.setattr(_context, "_FEW_BYTES", 3 * 32 * 32 * 4 - 1)
        model = npu.load("conv_f16")
        context = model.context(1)
        run(context, [random((1, 3, 32, 32))], [np.empty((1, 8, 16, 16), np.float32)])
        assert not context._call.keeps_gil
        assert context._call.set is model.binding.inputs_set
        model.close()
