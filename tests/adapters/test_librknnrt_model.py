"""Loading: a model's metadata, masks, shared weights, shape sets, and that everything opened is closed."""

import ctypes
import gc

import numpy as np
import pytest
from support.librknnrt_virtual import MODELS, Npu, pattern, run

from ort_rknn.adapter import AdapterError, Device, LoadSettings, ModelSource, Quantization, Query, RknnError, TensorInfo
from ort_rknn_librknnrt import LibrknnrtAdapter
from ort_rknn_librknnrt.runtime import load_model


@pytest.fixture
def npu():
    npu = Npu("rk3588")
    yield npu
    npu.assert_all_closed()


def test_the_adapter_from_finding_to_running(npu):
    adapter = LibrknnrtAdapter()
    survey = adapter.find(Query(runtime_library=npu.path, environ={"ORT_RKNN_SOC": "rk3588"}))
    (device,) = survey.devices
    model = adapter.load(device, ModelSource(str(MODELS / "conv_f16.rk3588.rknn")), LoadSettings(twin="ignored.onnx"))
    x, y = np.ones((1, 3, 32, 32), np.float32), np.empty((1, 8, 16, 16), np.float32)
    run(model.context(0), [x], [y])
    np.testing.assert_array_equal(y, pattern([x.astype(np.float16)], 0, "float16", y.shape))
    model.close()


def test_report(npu):
    model = npu.load("conv_f16")
    assert model.inputs == (TensorInfo("x", (1, 32, 32, 3), "float16", "NHWC"),)
    assert model.outputs == (TensorInfo("y", (1, 8, 16, 16), "float16", "NCHW"),)
    assert model.shape_sets == ()
    assert model.output_shapes(None) == ((1, 8, 16, 16),)
    assert set(model.versions) == {"runtime", "driver"}
    assert model.versions["runtime"].startswith("2.5.0")
    assert model.versions["driver"]
    assert model.custom_string == '{"note": "made by tests/models/convert.py"}'
    model.close()


def test_report_of_quantized_tensors(npu):
    model = npu.load("conv_i8")
    assert model.inputs == (TensorInfo("x", (1, 32, 32, 3), "int8", "NHWC", Quantization(0.03125, -6)),)
    (output,) = model.outputs
    assert (output.shape, output.dtype) == ((1, 20, 8, 8), "int8")
    assert output.quantization.scale == pytest.approx(0.0381174237)
    assert output.quantization.zero_point == -4
    model.close()


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        ("two_io", [("a", "float16", (1, 16, 16, 3)), ("b", "float16", (1, 16))], [(1, 8, 16, 16), (1, 6)]),
        ("tokens_i64", [("ids", "int64", (1, 16))], [(1, 16, 8), (1, 16)]),
        ("bool_mask", [("x", "float16", (1, 16)), ("mask", "bool", (1, 16))], [(1, 6)]),
        ("batch4", [("x", "float16", (4, 16, 16, 3))], [(4, 5)]),
        ("nd", [("x", "float16", (1, 8, 4)), ("v", "float16", (1, 2, 3, 4, 5))], [(1, 8, 6), (1, 2, 3, 4, 5)]),
    ],
)
def test_report_of_other_ranks_and_types(npu, name, inputs, outputs):
    model = npu.load(name, data=True)
    assert [(info.name, info.dtype, info.shape) for info in model.inputs] == inputs
    assert all(info.quantization is None for info in model.inputs)
    assert [info.shape for info in model.outputs] == outputs
    assert model.output_shapes(None) == tuple(outputs)
    model.close()


def test_on_context_comes_right_after_init(npu):
    seen = []
    model = npu.load("conv_f16", on_context=lambda library, context: seen.append((library._name, context, npu.calls())))
    ((path, context, calls),) = seen
    assert path == npu.path
    assert context != 0
    assert calls == ["init"]
    model.close()


def test_on_context_that_raises(npu):
    def refuse(library, context):
        raise LookupError("no")

    with pytest.raises(LookupError):
        npu.load("conv_f16", on_context=refuse)


class TestContexts:
    def test_the_first_reuses_what_loading_made_and_others_share_its_weights(self, npu):
        model = npu.load("conv_f16")
        weights = npu.counters().weight_bytes
        contexts = [model.context(mask) for mask in (1, 2, 4)]
        assert [context.core_mask for context in contexts] == [1, 2, 4]
        assert (npu.counters().contexts, npu.counters().models) == (3, 1)
        assert npu.counters().weight_bytes == weights > 0
        calls = [call for call in npu.calls() if call != "query"]
        assert calls == ["init", "set_core_mask", "dup_context", "set_core_mask", "dup_context", "set_core_mask"]
        for context in contexts:
            context.close()
        assert npu.counters().contexts == 1
        model.close()

    @pytest.mark.parametrize("data", [False, True])
    def test_weights_not_shared(self, npu, data):
        model = npu.load("conv_f16", data=data, share_weights=False)
        weights = npu.counters().weight_bytes
        model.context(1), model.context(2)
        assert (npu.counters().contexts, npu.counters().models) == (2, 2)
        assert npu.counters().weight_bytes == 2 * weights
        assert "dup_context" not in npu.calls()
        model.close()

    def test_the_first_is_given_again_after_it_was_closed(self, npu):
        model = npu.load("conv_f16")
        first, second = model.context(1), model.context(2)
        first.close()
        assert npu.counters().contexts == 2  # the second shares its weights
        third = model.context(4)
        assert npu.counters().contexts == 2
        assert third.core_mask == 4
        second.close()
        model.close()

    def test_closing_the_model_closes_its_contexts_the_first_one_last(self, npu):
        model = npu.load("conv_f16")
        contexts = [model.context(0) for _ in range(3)]
        model.close()
        assert npu.counters().contexts == 0
        destroyed = [event.context for event in npu.events() if event.kind == "destroy"]
        first = next(event.context for event in npu.events() if event.kind == "init")
        assert len(destroyed) == 3
        assert destroyed[-1] == first
        for context in contexts:
            context.close()
        model.close()
        assert npu.calls().count("destroy") == 3
        with pytest.raises(AdapterError, match="model is closed"):
            model.context(0)
        with pytest.raises(AdapterError, match="model is closed"):
            model.output_shapes(None)

    def test_a_dropped_model_is_destroyed_without_a_collection(self, npu):
        gc.disable()
        try:
            model = npu.load("conv_f16")
            context, other = model.context(1), model.context(2)
            del model, other
            assert npu.counters().contexts == 2  # a context keeps its model
            del context
            assert npu.counters().contexts == 0
            destroyed = [event.context for event in npu.events() if event.kind == "destroy"]
            assert len(destroyed) == 2
            assert destroyed[-1] == next(event.context for event in npu.events() if event.kind == "init")
        finally:
            gc.enable()


class TestCoreMask:
    @pytest.mark.parametrize("mask", [0, 1, 2, 3, 4, 7, 0xFFFF])
    def test_possible_masks(self, npu, mask):
        model = npu.load("conv_f16")
        assert model.context(mask).core_mask == mask
        assert [event.core_mask for event in npu.events()][-1] == mask
        model.close()

    @pytest.mark.parametrize("mask", [5, 6])
    def test_refused_for_the_first_and_for_another(self, npu, mask):
        model = npu.load("conv_f16")
        for alive in (1, 2):
            with pytest.raises(RknnError) as caught:
                model.context(mask)
            assert caught.value.call == "rknn_set_core_mask"
            assert caught.value.hint == (
                f"Core mask {mask:#x} is not possible: rk3588 has 3 cores, masks 0, 1, 2, 4, 3, 7 and 0xffff."
            )
            assert npu.counters().contexts == 1
            model.context(0)  # the first is still to be had
            assert npu.counters().contexts == alive
        model.close()

    @pytest.mark.parametrize(
        ("code", "hint"),
        [
            (-3, "The NPU is gone: dmesg may say why; load the model again."),
            (-4, "Not enough memory for the NPU: use fewer contexts, or close sessions."),
            (
                -13,
                "rk3588 has 3 cores, so core mask 0x2 should be possible: the SoC may be detected wrongly",
            ),
        ],
    )
    def test_a_possible_one_is_not_blamed(self, npu, code, hint):
        npu.fault("rknn_set_core_mask", code, times=1)
        model = npu.load("conv_f16")
        with pytest.raises(RknnError) as caught:
            model.context(2)
        assert caught.value.code == code and caught.value.hint.startswith(hint)
        model.close()

    def test_a_core_that_the_soc_lacks(self):
        npu = Npu("rk3576")
        model = npu.load("conv_f16")
        model.context(3).close()
        with pytest.raises(RknnError, match=r"rk3576 has 2 cores, masks 0, 1, 2, 3 and 0xffff"):
            model.context(4)
        model.close()

    def test_one_core(self):
        npu = Npu("rk3566")
        model = npu.load("conv_f16")
        for mask in (0, 1, 0xFFFF):
            assert model.context(mask).core_mask == mask  # the runtime answers -13 to each
        for mask in (2, 3, 7):
            with pytest.raises(RknnError, match="rk3566 has 1 core, masks 0, 1 and 0xffff") as caught:
                model.context(mask)
            assert caught.value.code == -13
        assert npu.counters().contexts == 3
        model.close()
        assert npu.counters().contexts == 0

    def test_one_core_tolerates_that_one_code_only(self):
        npu = Npu("rk3566")
        model = npu.load("conv_f16")
        npu.fault("rknn_set_core_mask", -7, times=1)
        with pytest.raises(RknnError, match="RKNN_ERR_CTX_INVALID"):
            model.context(0)
        model.close()


class TestShapeSets:
    SETS = (((1, 3, 32, 32),), ((1, 3, 16, 24),), ((1, 3, 16, 16),))

    def test_in_the_order_of_the_onnx(self, npu):
        model = npu.load("dynamic")
        assert sorted(model.shape_sets) == sorted(self.SETS)
        assert model.inputs[0].shape == (1, 32, 32, 3)
        for index, ((_, _, height, width),) in enumerate(model.shape_sets):
            assert model.output_shapes(index) == ((1, 4, height, width),)
        model.close()

    def test_output_shapes_are_queried_once(self, npu):
        model = npu.load("dynamic")
        model.output_shapes(1)
        before = len(npu.calls())
        model.output_shapes(1)
        assert len(npu.calls()) == before
        model.close()

    @pytest.mark.parametrize(("name", "shape_set"), [("dynamic", None), ("dynamic", 3), ("dynamic", -1), ("nd", 0)])
    def test_sets_that_are_not_there(self, npu, name, shape_set):
        model = npu.load(name)
        with pytest.raises(AdapterError, match=rf"shape sets, and {shape_set} is none"):
            model.output_shapes(shape_set)
        model.close()

    def test_a_set_that_the_runtime_refuses(self, npu):
        model = npu.load("dynamic")
        npu.fault("rknn_set_input_shapes", -1, times=1)
        with pytest.raises(RknnError, match="does not accept this set of input shapes") as caught:
            model.output_shapes(0)
        assert caught.value.call == "rknn_set_input_shapes"
        assert model.output_shapes(0)
        model.close()


class TestRefusals:
    def load(self, npu, source, **settings):
        return load_model(npu.path, npu.device, source, LoadSettings(**settings))

    @pytest.mark.parametrize("timeout", [-1, 2**31])
    def test_timeouts_out_of_range(self, npu, timeout):
        with pytest.raises(AdapterError, match="run_timeout_ms must be from 0 to 2147483647"):
            npu.load("conv_f16", run_timeout_ms=timeout)

    @pytest.mark.parametrize("source", [ModelSource(), ModelSource("/a", b"b")])
    def test_a_source_is_one_of_two(self, npu, source):
        with pytest.raises(AdapterError, match="either as a path or as bytes"):
            self.load(npu, source)

    def test_no_file(self, npu, tmp_path):
        for path in (tmp_path, tmp_path / "gone.rknn"):
            with pytest.raises(AdapterError, match="is not a file"):
                self.load(npu, ModelSource(str(path)))

    def test_empty_bytes_are_not_taken_for_a_path(self, npu):
        with pytest.raises(AdapterError, match="from 1 byte to 4 GiB, not 0 bytes"):
            self.load(npu, ModelSource(data=b""))
        assert npu.calls() == []

    def test_not_a_model(self, npu, tmp_path):
        path = tmp_path / "model.rknn"
        path.write_bytes(b"something else" * 9)
        for source in (ModelSource(str(path)), ModelSource(data=path.read_bytes())):
            with pytest.raises(RknnError, match=r"rknn_init failed.*The file is not an RKNN model") as caught:
                self.load(npu, source)
            assert caught.value.code == -6

    def test_a_model_for_another_soc(self, npu):
        with pytest.raises(RknnError) as caught:
            self.load(npu, ModelSource(str(MODELS / "conv_f16.rk3566.rknn")))
        assert caught.value.code == -13
        assert caught.value.hint == (
            "The model was made by toolkit 2.5.0 for rk3566; this device is rk3588. Convert the model for rk3588."
        )

    def test_a_wrong_soc_in_the_environment(self, npu):
        """The model fits the SoC that the user named, but the board has another one."""
        device = Device("librknnrt", "rk3566", "rk3566", 1, details={"soc source": "ORT_RKNN_SOC"})
        with pytest.raises(RknnError) as caught:
            load_model(npu.path, device, ModelSource(str(MODELS / "conv_f16.rk3566.rknn")), LoadSettings())
        assert caught.value.code == -13
        assert caught.value.hint == (
            "The model was made by toolkit 2.5.0 for rk3566; this device is rk3566 according to ORT_RKNN_SOC, "
            "but not to the runtime: correct that."
        )

    def test_files_that_are_no_libraries(self, npu, tmp_path):
        path = tmp_path / "lib.so"
        path.write_bytes(b"no")
        with pytest.raises(AdapterError, match=r"lib\.so cannot be opened"):
            load_model(str(path), npu.device, ModelSource(data=b"x"), LoadSettings())
        with pytest.raises(AdapterError, match=r"is not a usable RKNN runtime: it has no function rknn_init"):
            load_model("libc.so.6", npu.device, ModelSource(data=b"x"), LoadSettings())


class TestFaults:
    @pytest.mark.parametrize(
        ("code", "text"),
        [
            (-1, "RKNN_LOG_LEVEL"),
            (-2, "did not answer"),
            (-3, "/dev/dri/renderD129 exists and that this user may read and write it"),
            (-4, "Not enough memory for the NPU"),
            (-6, "made by toolkit 2.5.0 for rk3588; the runtime .* Convert the model"),
            (-10, "do not fit: update the board's image"),
            (-11, "Convert the model with the toolkit of the runtime's version"),
            (-12, "or install that version"),
            (-13, "this device is rk3588"),
            (-14, "encrypted"),
            (-99, "unknown RKNN error"),
        ],
    )
    def test_a_failing_init(self, npu, code, text):
        npu.fault("rknn_init", code, times=1)
        with pytest.raises(RknnError, match=text) as caught:
            npu.load("conv_f16")
        assert (caught.value.call, caught.value.code) == ("rknn_init", code)

    @pytest.mark.parametrize(
        ("after", "what"), [(0, "the version"), (1, "the number of inputs"), (2, "input 0"), (3, "output 0")]
    )
    def test_queries_at_load(self, npu, after, what):
        npu.fault("rknn_query", -5, after=after, times=1)
        with pytest.raises(RknnError, match=f"The runtime does not report {what}") as caught:
            npu.load("conv_f16")
        assert caught.value.call == "rknn_query"
        assert npu.counters().contexts == 0

    def test_queries_that_may_fail(self, npu):
        npu.fault("rknn_query", -5, after=4, times=2)  # dynamic range, custom string
        model = npu.load("conv_f16")
        assert model.shape_sets == ()
        assert model.custom_string == ""
        model.close()

    @pytest.mark.parametrize("data", [False, True])
    def test_a_failing_dup_context(self, npu, data):
        model = npu.load("conv_f16", data=data)
        model.context(0)
        npu.fault("rknn_dup_context", -4, times=1)
        with pytest.raises(RknnError, match="fewer contexts") as caught:
            model.context(0)
        assert (caught.value.call, caught.value.code) == ("rknn_dup_context", -4)
        assert npu.counters().contexts == 1
        model.context(0)
        model.close()

    def test_a_failing_second_init(self, npu):
        model = npu.load("conv_f16", share_weights=False)
        model.context(0)
        npu.fault("rknn_init", -4, times=1)
        with pytest.raises(RknnError, match="rknn_init failed"):
            model.context(0)
        assert npu.counters().contexts == 1
        model.close()

    def test_a_failed_destroy_is_logged(self, npu, caplog):
        model = npu.load("conv_f16")
        model.context(1), model.context(2)
        npu.fault("rknn_destroy", -7, times=1)
        model.close()
        assert "rknn_destroy failed with -7" in caplog.text
        assert npu.counters().contexts == 1  # the one whose destruction "failed"
        left = next(event.context for event in npu.events() if event.code == -7)
        assert ctypes.CDLL(npu.path).rknn_destroy(ctypes.c_uint64(left)) == 0
