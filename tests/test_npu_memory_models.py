"""NPU memory with models of other kinds: in parts, with several shape sets, in batches, on recreated contexts; and the
counts of it in stats()."""

import json
import os
import time

import numpy as np
import pytest
from support.models_in_parts import three_steps, write_in_parts
from support.virtual_sessions import MODELS, VIRTUAL, X, virtual_rk3588

import ort_rknn as ort

npu = pytest.fixture(virtual_rk3588)
RAW = {"layout": "NHWC", "input_dtype": "uint8"}
IMAGE = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)


def session(model="conv_f16", **options):
    return ort.InferenceSession(MODELS / f"{model}.onnx", provider_options={**VIRTUAL, **options})


def frame(content):
    array = ort.empty(content.shape, content.dtype, device="virtual:rk3588")
    array[...] = content
    return array


def test_stats_count_what_was_bound_and_what_was_copied(npu):
    with session(**RAW, schedule="0,1") as raw, session(layout="NCHW") as other:
        for _ in range(3):
            raw.run(None, {"x": frame(IMAGE)})
        raw.run(None, {"x": IMAGE})
        for _ in range(2):
            other.run(None, {"x": frame(X)})
        bound, copied = raw.stats(), other.stats()
        assert (bound.total.runs, bound.total.bound_runs, bound.total.unbound_runs) == (4, 3, 0)
        assert {core.bound_runs for core in bound.models[0].cores.values()} == {1, 2}
        assert bound.models[0].unbound == {}
        assert (copied.total.runs, copied.total.bound_runs, copied.total.unbound_runs) == (2, 0, 2)
        ((reason, number),) = copied.models[0].unbound.items()
        assert number == 2
        assert "NCHW" in reason
        assert json.loads(json.dumps(copied.as_dict()))["models"][0]["unbound"] == {reason: 2}
        samples = {s.name: 0.0 for s in bound.samples()}
        for s in bound.samples():
            samples[s.name] += s.value
        assert samples["ort_rknn_bound_runs_total"] == 3
        assert samples["ort_rknn_unbound_runs_total"] == 0
        before = ort.stats().total
    after = ort.stats()  # closed sessions keep theirs
    assert (after.total.bound_runs, after.total.unbound_runs) == (before.bound_runs, before.unbound_runs)
    assert after.total.unbound_runs >= 2


def test_a_model_in_parts(npu, tmp_path):
    """The first part reads the input: a float32 one is copied, counted by its reason; numbers are the same."""
    path = write_in_parts(tmp_path, three_steps())
    x = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
    with ort.InferenceSession(path, provider_options=VIRTUAL) as s:
        expected = s.run(None, {"x": x})
        y = ort.empty(expected[0].shape, np.float32, device="virtual:rk3588")
        array = frame(x)
        for got, want in zip(s.run(None, {"x": array}), expected):
            np.testing.assert_array_equal(got, want)
        binding = s.io_binding()
        binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(array))
        binding.bind_ortvalue_output("y", ort.OrtValue.ortvalue_from_numpy(y))
        binding.bind_output("s")
        s.run_with_iobinding(binding)
        np.testing.assert_array_equal(y, expected[0])
        total = s.stats().total
        assert total.bound_runs + total.unbound_runs >= 2
        assert all(reason for model in s.stats().models for reason in model.unbound)
    with ort.InferenceSession(path, provider_options={**VIRTUAL, "layout": "NHWC"}) as s:
        array = frame(np.ascontiguousarray(x.transpose(0, 2, 3, 1)))
        for got, want in zip(s.run(None, {"x": array}), expected):
            np.testing.assert_allclose(got, want, atol=2e-2)
    assert npu.counters().misuses == 0


@pytest.mark.parametrize("options", [{}, {"layout": "NHWC"}, RAW])
def test_a_model_with_several_shape_sets(npu, options):
    """Shape sets alternate, each with its own memory."""
    with session("dynamic", **options) as s:
        (given,) = s.get_inputs()
        rng = np.random.default_rng(2)
        dtype = np.uint8 if "uint8" in given.type else np.float32
        feeds = [rng.integers(0, 256, shape).astype(dtype) for (shape,) in s.shape_sets]
        wants = [s.run(None, {given.name: feed})[0] for feed in feeds]
        assert len({want.shape for want in wants}) > 1
        arrays = [frame(feed) for feed in feeds]
        for k in (0, 1, 0, 2, 2, 1, 0):
            np.testing.assert_array_equal(s.run(None, {given.name: arrays[k]})[0], wants[k])
        arrays[0][...] = 255 - feeds[0]
        want = s.run(None, {given.name: np.array(arrays[0])})[0]
        np.testing.assert_array_equal(s.run(None, {given.name: arrays[0]})[0], want)
        total = s.stats().total
        fits = options == RAW
        assert (total.bound_runs, total.unbound_runs) == ((8, 0) if fits else (0, 8))
    assert npu.counters().misuses == 0


@pytest.mark.parametrize("follow", [True, False])
def test_sets_that_take_turns_bind_outputs_and_copy_nothing(npu, follow):
    """The shape is set, and the memory bound, only in runs where the shape changes."""
    npu.attributes_follow(follow)
    with session("dynamic", **RAW) as s:
        (given,), (told,) = s.get_inputs(), s.get_outputs()
        rng = np.random.default_rng(4)
        feeds = [rng.integers(0, 256, shape).astype(np.uint8) for (shape,) in s.shape_sets[:2]]
        wants = [s.run(None, {given.name: feed})[0] for feed in feeds]
        xs = [frame(feed) for feed in feeds]
        ys = [ort.empty(want.shape, want.dtype, device="virtual:rk3588") for want in wants]
        bindings = []
        for x, y in zip(xs, ys):
            binding = s.io_binding()
            binding.bind_ortvalue_input(given.name, ort.OrtValue.ortvalue_from_numpy(x))
            binding.bind_ortvalue_output(told.name, ort.OrtValue.ortvalue_from_numpy(y))
            bindings.append(binding)
        kinds = []
        for k in (0, 0, 1, 1, 0, 0):
            ys[k][...] = 0
            since = npu.events()[-1].sequence
            s.run_with_iobinding(bindings[k])
            np.testing.assert_array_equal(ys[k], wants[k])
            kinds.append([e.kind for e in npu.events(since)])
        assert not {"inputs_set", "outputs_get", "create_mem"} & {kind for one in kinds for kind in one}
        assert [one.count("set_input_shapes") for one in kinds] == [1, 0, 1, 0, 1, 0]
        assert [one.count("set_io_mem") for one in kinds] == [2, 0, 2, 0, 2, 0]
        assert s._npu.executor.buffer_runs().copied == 0
    assert npu.counters().misuses == 0
    assert npu.counters().mems == 0


def test_a_set_that_the_runtime_refuses_is_set_again_at_the_next_run(npu):
    with session("dynamic", **RAW) as s:
        (given,) = s.get_inputs()
        feeds = [np.full(shape, 50, np.uint8) for (shape,) in s.shape_sets[:2]]
        wants = [s.run(None, {given.name: feed})[0] for feed in feeds]
        arrays = [frame(feed) for feed in feeds]
        for k in (0, 1):
            np.testing.assert_array_equal(s.run(None, {given.name: arrays[k]})[0], wants[k])
        npu.fault("rknn_set_input_shapes", -1, times=1)
        with pytest.raises(ort.capi.onnxruntime_pybind11_state.RuntimeException, match="rknn_set_input_shapes"):
            s.run(None, {given.name: arrays[0]})
        for k in (0, 1, 0):
            np.testing.assert_array_equal(s.run(None, {given.name: arrays[k]})[0], wants[k])
    assert npu.counters().misuses == 0


@pytest.mark.parametrize("samples", [1, 3, 7])
def test_a_batch_that_is_cut(npu, samples):
    with session("free_batch") as s:
        x = np.random.default_rng(3).standard_normal((samples, 3, 16, 16)).astype(np.float32)
        want = s.run(None, {"x": x})[0]
        np.testing.assert_array_equal(s.run(None, {"x": frame(x)})[0], want)
    with session("free_batch", **RAW) as s:
        x = np.random.default_rng(3).integers(0, 256, (samples, 16, 16, 3), np.uint8)
        want = s.run(None, {"x": x})[0]
        np.testing.assert_array_equal(s.run(None, {"x": frame(x)})[0], want)
    assert npu.counters().misuses == 0


def test_a_new_context_binds_again(npu):
    """A core fails, is disabled, gets a new context and returns: the new context binds the same buffers."""
    with session(**RAW, schedule="0,1", retries=1) as s:
        want = s.run(None, {"x": IMAGE})[0]
        array = frame(IMAGE)
        for _ in range(4):
            np.testing.assert_array_equal(s.run(None, {"x": array})[0], want)
        npu.fault("rknn_run", -1, core_mask=2)
        for _ in range(60):
            np.testing.assert_array_equal(s.run(None, {"x": array})[0], want)
        assert s.stats().models[0].cores["core 1"].out == 1
        npu.clear_faults()
        end = time.monotonic() + 15
        while s.stats().models[0].cores["core 1"].out and time.monotonic() < end:
            np.testing.assert_array_equal(s.run(None, {"x": array})[0], want)
            time.sleep(0.02)
        before = s.stats().models[0].cores["core 1"]
        assert not before.out
        array[...] = 255 - IMAGE
        want = s.run(None, {"x": 255 - IMAGE})[0]
        # It gets runs as soon as the thread that tested it has given its context back.
        while s.stats().models[0].cores["core 1"].bound_runs < before.bound_runs + 2:
            assert time.monotonic() < end
            np.testing.assert_array_equal(s.run(None, {"x": array})[0], want)
    assert npu.counters().mems == 0
    assert npu.counters().misuses == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_with_the_parents_buffers(python):
    python(
        f"""
import os, signal
import numpy as np, ort_rknn
from ort_rknn_virtual.control import virtual_npu
npu = virtual_npu("rk3588")
s = ort_rknn.InferenceSession({str(MODELS / "conv_f16.onnx")!r}, provider_options={{**{VIRTUAL!r}, **{RAW!r}}})
image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
x = ort_rknn.empty(image.shape, image.dtype, device="virtual:rk3588")
x[...] = image
want = s.run(None, {{"x": image}})[0]
assert np.array_equal(s.run(None, {{"x": x}})[0], want)
pid = os.fork()
if not pid:
    signal.alarm(25)
    assert np.array_equal(s.run(None, {{"x": x}})[0], want)
    y = ort_rknn.empty(image.shape, image.dtype, device="virtual:rk3588")
    y[...] = image
    assert np.array_equal(s.run(None, {{"x": y}})[0], want)
    s.close()
    assert npu.counters().misuses == 0
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert np.array_equal(s.run(None, {{"x": x}})[0], want)
assert npu.counters().misuses == 0
""",
        quiet=False,
    )
