"""Models on the lite2 adapter: the numbers of the librknnrt adapter, its errors, and nothing left behind."""

import ctypes
import dataclasses
import gc
import logging
import os
import stat
import tempfile
import threading

import numpy as np
import pytest
from support.growth import assert_no_growth
from support.lite2_board import MODELS, REAL, Board, port, random, run

from ort_rknn._tensors import onnx_order
from ort_rknn.adapter import (
    AdapterError,
    CallForm,
    Device,
    LoadSettings,
    ModelSource,
    PortForm,
    RknnError,
    SettingError,
)
from ort_rknn_librknnrt.runtime import load_model

NAMES = sorted(path.name.partition(".")[0] for path in MODELS.glob("*.rk3588.rknn"))
X = random((1, 3, 32, 32))
REPEATS = 5000
#: The allowed growth of a process in KiB; an emulator also keeps translated code.
ROOM = 40_000 if REAL else 6_000


@pytest.fixture
def board(tmp_path, monkeypatch):
    board = Board(tmp_path, monkeypatch)
    yield board
    board.assert_all_closed()


@pytest.fixture
def model(board):
    model = board.load()
    yield model
    model.close()


def feeds(model, shape_set=None):
    arrays = []
    for index, info in enumerate(model.inputs):
        shape = onnx_order(info.shape, info.layout) if shape_set is None else model.shape_sets[shape_set][index]
        if info.dtype in ("int64", "bool"):
            arrays.append(np.random.default_rng(index).integers(0, 2, shape).astype(info.dtype))
        else:
            arrays.append(random(shape, seed=index))
    return arrays


def buffers(model, dtype="float32", shape_set=None):
    return [np.full(shape, 77, dtype) for shape in model.output_shapes(shape_set)]


class TestNumbers:
    @pytest.mark.parametrize("name", NAMES)
    def test_every_model_gives_what_the_librknnrt_adapter_gives(self, board, name):
        if name == "dynamic":
            board.npu.attributes_follow(True)
        model = board.load(name)
        device = Device("librknnrt", "rk3588", "rk3588", 3, runtime=str(board.npu.library))
        source = ModelSource(path=str(MODELS / f"{name}.rk3588.rknn"))
        other = load_model(device.runtime, device, source, LoadSettings())
        assert (model.inputs, model.shape_sets) == (other.inputs, other.shape_sets)
        assert tuple(dataclasses.replace(output, raw=True) for output in model.outputs) == other.outputs
        assert [output.raw for output in model.outputs] == [output.quantization is None for output in other.outputs]
        for shape_set in range(len(model.shape_sets)) if model.shape_sets else (None,):
            assert model.output_shapes(shape_set) == other.output_shapes(shape_set)
            ours, theirs = (
                run(m.context(1), feeds(m, shape_set), buffers(m, shape_set=shape_set), shape_set)
                for m in (model, other)
            )
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(a, b)
                assert not (a == 77).all()
        model.close()
        other.close()

    def test_both_layouts(self, model):
        context = model.context(0)
        (nchw,) = run(context, [X], buffers(model))
        (nhwc,) = run(context, [np.ascontiguousarray(X.transpose(0, 2, 3, 1))], buffers(model), layout="NHWC")
        np.testing.assert_array_equal(nchw, nhwc)

    def test_what_the_package_would_take_for_something_else(self, board, model):
        """It checks no shapes: NCHW data as NHWC, or too large a batch, would be computed as far as they go."""
        context = model.context(0)
        board.npu.reset()
        for array, layout in ((X, "NHWC"), (np.concatenate([X, X]), "NCHW"), (X[:, :, :16], "NCHW"), (X[0, 0], None)):
            with pytest.raises(AdapterError, match=r"but the model takes \[1, 3?") as caught:
                run(context, [np.ascontiguousarray(array)], buffers(model), layout=layout)
            assert not isinstance(caught.value, RknnError)
        assert board.runs() == []

    def test_the_caller_s_arrays_are_left_alone(self, model):
        given = X.copy()
        context = model.context(0)
        first = run(context, [given], buffers(model))[0].copy()
        for _ in range(3):
            np.testing.assert_array_equal(run(context, [given], buffers(model))[0], first)
        np.testing.assert_array_equal(given, X)

    @pytest.mark.parametrize("dtype", ["float16", "uint8", "int8", "int32", "bool"])
    def test_dtypes_that_the_runtime_converts(self, model, dtype):
        given = (np.arange(X.size) % 2).reshape(X.shape)
        context = model.context(0)
        (want,) = run(context, [given.astype(np.float32)], buffers(model))
        np.testing.assert_array_equal(run(context, [given.astype(dtype)], buffers(model))[0], want)

    def test_pass_through(self, board):
        model = board.load("conv_i8")
        quantization = model.inputs[0].quantization
        stored = np.random.default_rng(2).integers(-128, 128, (1, 32, 32, 3), np.int8)
        real = (stored.astype(np.float32) - quantization.zero_point) * np.float32(quantization.scale)
        context = model.context(0)
        (want,) = run(context, [real], buffers(model), layout="NHWC")
        (got,) = run(context, [stored], buffers(model), layout="NHWC", pass_through=True)
        np.testing.assert_array_equal(got, want)
        model.close()

    def test_float16_and_integers_as_they_are_stored(self, model, board):
        context = model.context(0)
        (wide,) = run(context, [X], buffers(model))
        (raw,) = run(context, [X], buffers(model, np.float16))
        np.testing.assert_array_equal(raw, wide.astype(np.float16))
        tokens = board.load("tokens_i64")
        ids = np.arange(16, dtype=np.int64)[None]
        outputs = [np.empty((1, 16, 8), np.float32), np.empty((1, 16), np.int64)]
        run(tokens.context(0), [ids], outputs)
        assert outputs[1].any()
        tokens.close()

    def test_integers_that_a_float32_does_not_hold(self, board, monkeypatch):
        model = board.load("tokens_i64")
        context = model.context(0)
        rknn = context._instance._rknn
        beyond = [np.zeros((1, 16, 8), np.float32), np.full((1, 16), 2**24, np.float32)]
        inference = rknn.inference
        monkeypatch.setattr(rknn, "inference", lambda **more: inference(**more) and beyond)
        outputs = [np.empty((1, 16, 8), np.float32), np.empty((1, 16), np.int64)]
        with pytest.raises(AdapterError, match=r"output 'label' has integers from 2\*\*24 on"):
            run(context, [np.zeros((1, 16), np.int64)], outputs)
        beyond[1] -= 1
        run(context, [np.zeros((1, 16), np.int64)], outputs)
        assert (outputs[1] == 2**24 - 1).all()
        model.close()

    def test_a_model_in_memory_is_a_private_file_for_a_moment(self, board, tmp_path, monkeypatch):
        seen = []
        mkstemp = tempfile.mkstemp

        def watched(**more):
            descriptor, path = mkstemp(dir=tmp_path, **more)
            seen.append((path, stat.S_IMODE(os.fstat(descriptor).st_mode)))
            return descriptor, path

        monkeypatch.setattr(tempfile, "mkstemp", watched)
        model = board.load(data=True)
        contexts = [model.context(1), model.context(2)]
        results = [run(context, [X], buffers(model))[0] for context in contexts]
        np.testing.assert_array_equal(*results)
        # The package would keep the model's bytes for as long as its object lives.
        assert [context._instance._rknn.rknn_data for context in contexts] == [None, None]
        assert [mode for _, mode in seen] == [0o600, 0o600]
        assert not any(os.path.exists(path) for path, _ in seen)
        model.close()


class TestContexts:
    def test_each_runs_on_its_cores(self, board, model):
        masks = (1, 2, 4, 3, 7, 0xFFFF, 0)
        contexts = [model.context(mask) for mask in masks]
        board.npu.reset()
        for context in contexts:
            run(context, [X], buffers(model))
        assert [context.core_mask for context in contexts] == list(masks)
        assert [event.core_mask for event in board.runs()] == [1, 2, 4, 3, 7, 7, 1]
        assert (board.npu.counters().contexts, board.npu.counters().models) == (7, 7)  # weights are not shared
        assert "cannot share" in model.versions["weights"]
        assert model.versions["package"].startswith("rknn-toolkit-lite2 ")
        assert model.versions["runtime"]

    def test_a_mask_that_the_runtime_refuses(self, board, model):
        for _ in range(2):
            with pytest.raises(RknnError, match="Core mask 0x5 is not possible: rk3588 has 3 cores") as caught:
                model.context(5)
            assert caught.value.call == "rknn_set_core_mask"
        model.context(1)
        with pytest.raises(RknnError):
            model.context(6)
        assert board.npu.counters().contexts == 1

    @pytest.mark.parametrize("code, said", [(-5, "mask 0x1 should be possible"), (-3, "check the device node")])
    def test_a_possible_mask_is_not_blamed(self, board, model, code, said):
        board.npu.fault("rknn_set_core_mask", code)
        with pytest.raises(RknnError, match=said):
            model.context(1)

    @pytest.mark.wall_clock
    def test_three_at_once_take_the_time_of_one(self, board, model):
        contexts = [model.context(1 << core) for core in range(3)]
        board.npu.reset()
        board.npu.run_time_us = 500_000
        threads = [threading.Thread(target=run, args=(c, [X], buffers(model))) for c in contexts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        runs = board.runs()
        assert sorted(event.core_mask for event in runs) == [1, 2, 4]
        assert max(event.start_ns for event in runs) < min(event.end_ns for event in runs)

    def test_close(self, board):
        model = board.load()
        first, second = model.context(1), model.context(2)
        first.close()
        first.close()
        assert board.npu.counters().contexts == 1
        with pytest.raises(AdapterError, match="the context is closed"):
            run(first, [X], buffers(model))
        run(second, [X], buffers(model))
        model.close()
        model.close()
        assert board.npu.counters().contexts == 0
        with pytest.raises(AdapterError, match="the model is closed"):
            model.context(1)

    def test_a_dropped_model_leaves_nothing(self, board):
        model = board.load()
        context = model.context(1)
        run(context, [X], buffers(model))
        del context, model
        gc.collect()
        assert board.npu.counters().contexts == 0


class TestDynamic:
    def test_a_runtime_that_the_package_would_read_beyond_the_outputs_of(self, board):
        board.npu.attributes_follow(False)
        with pytest.raises(AdapterError, match="would return memory beyond them. Use the adapter 'librknnrt'"):
            board.load("dynamic")
        assert board.npu.counters().contexts == 0

    def test_the_form_chooses_a_set(self, board):
        board.npu.attributes_follow(True)
        model = board.load("dynamic")
        context = model.context(0)
        for bad in (None, 3, -1):
            with pytest.raises(AdapterError, match="shape set"):
                run(context, [X], [np.empty((1, 4, 32, 32), np.float32)], bad)
        with pytest.raises(AdapterError, match=r"but the model takes \[1, 3, 16, 24\]"):
            run(context, [X], [np.empty((1, 4, 32, 32), np.float32)], 1)
        with pytest.raises(AdapterError, match="the model has 3 shape sets, and None is none"):
            model.output_shapes(None)
        model.close()


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "text"),
        [
            ({"run_timeout_ms": 5}, "run_timeout_ms: .* Leave it out, or use the adapter 'librknnrt'"),
            ({"custom_op_paths": ("/x.so",)}, "custom_op_paths"),
            ({"custom_op_default_path": True}, "custom_op_default_path"),
        ],
    )
    def test_settings(self, board, settings, text):
        with pytest.raises(SettingError, match=text):
            board.load(**settings)

    def test_weights_of_another_model(self, board, model):
        with pytest.raises(AdapterError, match="cannot share weights"):
            board.load(share_with=model)

    def test_sharing_is_allowed_and_not_done(self, board):
        for share in (True, False):
            board.load(share_weights=share).close()

    @pytest.mark.parametrize(
        ("output", "text"),
        [
            (PortForm("int8", "NCHW", (1, 20, 8, 8), 1280), "raw int8 is not available.*use the adapter 'librknnrt'"),
            (PortForm("float16", "NCHW", (1, 20, 8, 8), 2560), "the model gives int8 or float32, not float16"),
            (PortForm("float32", "NHWC", (1, 8, 8, 20), 5120), "it comes as NCHW"),
        ],
    )
    def test_outputs(self, board, output, text):
        model = board.load("conv_i8")
        form = CallForm((port(X),), (output,))
        with pytest.raises(AdapterError, match=text):
            model.context(0).run(form, (X.ctypes.data,), (8,))
        model.close()

    def test_forms(self, model):
        context, y = model.context(0), buffers(model)
        with pytest.raises(AdapterError, match="no float64 can be fed"):
            run(context, [X.astype(np.float64)], y)
        with pytest.raises(AdapterError, match="the form has 2 inputs, but the model has 1"):
            run(context, [X, X], y)
        with pytest.raises(AdapterError, match="chooses shape set 0, but the model has none"):
            run(context, [X], y, 0)
        with pytest.raises(AdapterError, match="but 0 and 1 addresses were given"):
            context.run(CallForm((port(X),), (port(y[0]),)), (), (8,))

    def test_sources(self, board, tmp_path):
        (device,) = board.find().devices
        for source, text in (
            (ModelSource(), "either as a path or as bytes"),
            (ModelSource(path=str(tmp_path / "none.rknn")), "is not a file"),
            (ModelSource(data=b"garbage" * 100), "rknn_init failed: RKNN_ERR_"),
        ):
            with pytest.raises(AdapterError, match=text):
                board.adapter.load(device, source, LoadSettings())


class TestFailures:
    @pytest.mark.parametrize(
        ("call", "code", "text"),
        [
            ("rknn_init", -6, "RKNN_ERR_MODEL_INVALID .*convert the model again"),
            ("rknn_init", -13, "RKNN_ERR_TARGET_PLATFORM_UNMATCH .*convert it for rk3588"),
            ("rknn_query", -7, "RKNN_ERR_CTX_INVALID"),
        ],
    )
    def test_at_loading(self, board, capfd, call, code, text):
        board.npu.fault(call, code)
        with pytest.raises(RknnError, match=text) as caught:
            board.load()
        assert (caught.value.call, caught.value.code) == (call, code)
        board.npu.clear_faults()
        assert board.npu.counters().contexts == 0
        assert "Traceback" not in capfd.readouterr().err  # the package prints them; here they are in the exception

    @pytest.mark.parametrize("how", ["disable", "level", "off"])
    def test_at_loading_in_a_program_that_silences_the_package(self, board, monkeypatch, how):
        """Why the package does not start is in its log only."""
        board.load().close()
        logger = logging.getLogger("acuityLogger")
        if how == "disable":
            monkeypatch.setattr(logging.Logger.manager, "disable", logging.CRITICAL)
        elif how == "level":
            monkeypatch.setattr(logger, "level", logging.CRITICAL + 1)
        else:
            monkeypatch.setattr(logger, "disabled", True)
        monkeypatch.setattr(logger, "_cache", {})
        board.npu.fault("rknn_init", -6)
        with pytest.raises(RknnError, match="rknn_init failed: RKNN_ERR_MODEL_INVALID"):
            board.load()
        assert not logger.isEnabledFor(logging.ERROR)  # for the program

    def test_at_a_second_context(self, board, model):
        model.context(1)
        board.npu.fault("rknn_init", -4)
        with pytest.raises(RknnError, match="RKNN_ERR_MALLOC_FAIL .*every context has its own weights"):
            model.context(2)
        assert board.npu.counters().contexts == 1

    @pytest.mark.parametrize(
        ("call", "code"),
        [("rknn_inputs_set", -5), ("rknn_run", -2), ("rknn_outputs_get", -1), ("rknn_query", -7)],
    )
    def test_at_a_run(self, board, model, capfd, call, code):
        context = model.context(1)
        (want,) = run(context, [X], buffers(model))
        board.npu.fault(call, code, times=1)
        with pytest.raises(RknnError) as caught:
            run(context, [X], buffers(model))
        assert (caught.value.call, caught.value.code) == (call, code)
        assert "Traceback" not in capfd.readouterr().err
        (again,) = run(context, [X], buffers(model))
        np.testing.assert_array_equal(again, want)

    def test_a_failed_run_never_gives_the_result_before(self, board, model):
        """The package ignores rknn_run's answer. Since a board's buffers are still full, the old result would be
        returned."""
        context = model.context(1)
        run(context, [X], buffers(model))
        board.npu.fault("rknn_run", -1, times=2)
        since = board.npu.events()[-1].sequence
        for _ in range(2):
            (target,) = buffers(model)
            with pytest.raises(RknnError, match="rknn_run failed: RKNN_ERR_FAIL"):
                run(context, [X + 1], [target])
            assert (target == 77).all()
        kinds = [event.kind for event in board.npu.events(since)]
        assert kinds.count("run") == 2
        assert "outputs_get" not in kinds  # it was not even read

    def test_one_context_s_failures_are_not_another_s(self, board, model):
        bad, good = model.context(1), model.context(2)
        board.npu.fault("rknn_run", -2, core_mask=1)
        for _ in range(3):
            with pytest.raises(RknnError):
                run(bad, [X], buffers(model))
            run(good, [X], buffers(model))

    def test_outputs_that_are_not_released(self, board, model):
        context = model.context(1)
        board.npu.fault("rknn_outputs_release", -1, times=1)
        with pytest.raises(RknnError, match="rknn_outputs_release failed"):
            run(context, [X], buffers(model))

    @pytest.mark.skipif(REAL, reason="the package's own code is interrupted")
    @pytest.mark.parametrize("raised", [KeyboardInterrupt, MemoryError])
    def test_outputs_are_given_back_after_an_exception_amid_reading_them(self, board, model, monkeypatch, raised):
        """The package gets, copies and releases the outputs: an exception may occur at any point between."""
        context = model.context(1)
        wanted = buffers(model)
        run(context, [X], wanted)
        before = board.npu.counters().outputs

        def amid(*args):
            raise raised

        with monkeypatch.context() as patch, pytest.raises((raised, AdapterError)):
            patch.setattr(ctypes, "memmove", amid)
            run(context, [X], buffers(model))
        assert board.npu.counters().outputs == before
        again = buffers(model)
        run(context, [X], again)
        for got, want in zip(again, wanted):
            np.testing.assert_array_equal(got, want)

    def test_a_context_that_is_not_destroyed(self, board, caplog):
        model = board.load()
        board.npu.fault("rknn_destroy", -7, times=1)
        model.close()
        assert "rknn_destroy failed with -7" in caplog.text
        (left,) = {e.context for e in board.npu.events() if e.kind == "init"}
        ctypes.CDLL(str(board.npu.library)).rknn_destroy(ctypes.c_uint64(left))

    @pytest.mark.skipif(REAL, reason="other releases than the one at hand")
    def test_a_release_that_hides_what_rknn_run_returns(self, board, monkeypatch):
        monkeypatch.setattr(board.fake, "RUNS_BEHIND_THE_BACK", True)
        model = board.load()
        with pytest.raises(AdapterError, match="made 0 runs that could be seen instead of one"):
            run(model.context(1), [X], buffers(model))
        model.close()
        monkeypatch.setattr(board.fake, "HIDES_LIBRARY", True)
        with pytest.raises(AdapterError, match="hides its library"):
            board.load()
        monkeypatch.setattr(board.fake.RKNNLite, "init_runtime", lambda self: delattr(self, "rknn_runtime") or 0)
        with pytest.raises(AdapterError, match="hides its library"):
            board.load()

    @pytest.mark.skipif(REAL, reason="a broken installation")
    def test_a_package_that_does_not_import(self, board, tmp_path):
        (tmp_path / "site/rknnlite/api/__init__.py").write_text("import module_that_nobody_has\n")
        with pytest.raises(AdapterError, match="cannot be used .ModuleNotFoundError.*Reinstall it"):
            board.load()


class TestMemory:
    @pytest.mark.parametrize("collector", ["on", "off"])
    @pytest.mark.timeout(600)
    def test_thousands_of_runs_leave_nothing(self, board, model, collector):
        context = model.context(1)
        (y,) = buffers(model)
        form = CallForm((port(X),), (port(y),))

        def runs(count):
            for _ in range(count):
                context.run(form, (X.ctypes.data,), (y.ctypes.data,))

        if collector == "off":
            gc.disable()
        try:
            runs(400)
            # One run's inputs and outputs are 20,000 bytes; without the collector, 256 runs leave their garbage.
            assert_no_growth(lambda: runs(REPEATS), traced=300_000 if collector == "on" else 256 * 24_000)
            if not REAL:  # the emulator takes its time
                assert_no_growth(lambda: runs(REPEATS), resident=ROOM)
        finally:
            gc.enable()
        assert board.npu.counters().outputs == 0

    def test_loading_again_and_again(self, board):
        def loads(count):
            for _ in range(count):
                board.load().close()

        loads(3)
        assert_no_growth(lambda: loads(20 if REAL else 200), resident=ROOM)
