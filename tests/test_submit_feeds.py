"""Feeds of asynchronous calls belong to the call: the caller may use its arrays again at once."""

import asyncio

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.virtual_sessions import MODELS

import ort_rknn as ort
from ort_rknn_virtual.control import virtual_npu

FRAMES = 12


@pytest.fixture
def npu():
    device = virtual_npu("rk3588")
    device.reset()
    device.run_time_us = 2_000
    yield device
    device.reset()


@pytest.fixture(params=["npu", "cpu"])
def session(npu, request):
    options = {"providers": ["CPUExecutionProvider"]}
    if request.param == "npu":
        options = {"provider_options": {"device": "virtual:rk3588", "schedule": "0,1,2", "max_queue_size": 20}}
    with ort.InferenceSession(MODELS / "conv_f16.onnx", **options) as made:
        yield made


X = np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)


class Array:
    def __init__(self):
        self.value = X.copy()

    def fill(self, k):
        self.value[:] = X * k


class Columns(Array):
    """An array that is not C-contiguous."""

    def __init__(self):
        self.value = np.asfortranarray(X)


class Value(Array):
    def __init__(self):
        self.value = ort.OrtValue.ortvalue_from_numpy(X.copy())

    def fill(self, k):
        self.value.update_inplace(np.ascontiguousarray(X * k))


class SharedValue(Array):
    """An OrtValue on the memory of an array that changes."""

    def __init__(self):
        self.array = X.copy()
        self.value = ort.OrtValue.ortvalue_from_numpy(self.array)

    def fill(self, k):
        self.array[:] = X * k


class Lists(Array):
    def __init__(self):
        self.value = X.tolist()

    def fill(self, k):
        for row, new in zip(self.value[0][0], (X * k)[0][0]):
            row[:] = new.tolist()
        for channel in (1, 2):
            self.value[0][channel] = (X * k)[0][channel].tolist()


class ChangingDict(Array):
    """Another array each time, in one dict."""

    def fill(self, k):
        self.value = X * k


def by_submit(session, frames, **given):
    return [future.result(20)[0] for future in [session.submit(None, feed, **given) for feed in frames]]


def by_map(session, frames, **given):
    return [results[0] for results in session.map(frames, **given)]


def by_pipeline(session, frames, **given):
    early = [session.run_pipeline(feed, depth=5, **given) for feed in frames]
    return [results[0] for results in [*early[5:], *session.flush()]]


def by_awaitable(session, frames, **given):
    async def main():
        # A list: the arrays change between the calls, before any of them was awaited.
        return await asyncio.gather(*[session.run_awaitable(None, feed, **given) for feed in frames])

    return [results[0] for results in asyncio.run(main())]


WAYS = [by_submit, by_map, by_pipeline, by_awaitable]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [Array, Columns, Value, SharedValue, Lists, ChangingDict])
def test_every_result_belongs_to_its_frame(session, way, kind):
    expected = [session.run(None, {"x": np.ascontiguousarray(X * k)})[0] for k in range(FRAMES)]
    source, feed = kind(), {}

    def frames():
        for k in range(FRAMES):
            source.fill(k)
            feed.clear()
            feed["x"] = source.value
            yield feed
        feed.clear()

    got = way(session, frames())
    assert [np.array_equal(g, e) for g, e in zip(got, expected, strict=True)] == [True] * FRAMES


@pytest.mark.parametrize("way", WAYS)
def test_without_a_copy_the_runtime_reads_the_array_itself(npu, way):
    options = {"device": "virtual:rk3588", "schedule": "0", "max_queue_size": 20}
    with ort.InferenceSession(MODELS / "conv_f16.onnx", provider_options=options) as made:
        made.run(None, {"x": X})
        since = npu.counters().events
        way(made, [{"x": X}] * 8, copy=False)
        assert {e.address for e in npu.events(since) if e.kind == "inputs_set"} == {X.ctypes.data}
        since = npu.counters().events
        way(made, [{"x": X}] * 8)
        addresses = [e.address for e in npu.events(since) if e.kind == "inputs_set"]
        assert X.ctypes.data not in addresses


def test_buffers_are_used_again(npu):
    options = {"device": "virtual:rk3588", "schedule": "0"}
    with ort.InferenceSession(MODELS / "conv_f16.onnx", provider_options=options) as made:
        since = npu.counters().events
        for _ in range(20):
            made.submit(None, {"x": X}).result(10)
        addresses = [e.address for e in npu.events(since) if e.kind == "inputs_set"]
        assert len(addresses) == 20 and len(set(addresses)) <= 2


def identity(tmp_path):
    """A model whose output is its input, and a second one that is not."""
    x, y, z = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3]) for n in "xyz")
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])]
    graph = helper.make_graph(nodes, "g", [x], [x, y, z])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "identity.onnx")
    return tmp_path / "identity.onnx"


@pytest.mark.parametrize("way", WAYS)
def test_results_share_nothing_with_buffers(tmp_path, way):
    with ort.InferenceSession(identity(tmp_path), providers=["CPUExecutionProvider"]) as made:
        buffer = np.empty((2, 3), np.float32)
        kept = []

        class Keeps(ort.InferenceSession):
            """A subclass that returns its feed as the result, and keeps it."""

            def run(self, names, feed, options=None):
                kept.append(feed["x"])
                return [feed["x"], *super().run(names, feed, options)]

        def frames():
            for k in range(FRAMES):
                buffer[:] = k
                yield {"x": buffer}

        assert [g[0, 0] for g in way(made, frames())] == list(range(FRAMES))
        with Keeps(identity(tmp_path), providers=["CPUExecutionProvider"]) as other:
            assert [g[0, 0] for g in way(other, frames())] == list(range(FRAMES))
            assert sorted(x[0, 0] for x in kept) == list(range(FRAMES))


def test_inputs_of_other_kinds(tmp_path):
    """Strings are copied. Bad values raise what run() raises; the copy accepts them. A feed that is not a dict is a
    TypeError at once."""
    s, t = (helper.make_tensor_value_info(n, TensorProto.STRING, [2]) for n in "st")
    graph = helper.make_graph([helper.make_node("Identity", ["s"], ["t"])], "g", [s], [t])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "strings.onnx"
    )
    with ort.InferenceSession(tmp_path / "strings.onnx", providers=["CPUExecutionProvider"]) as made:
        words = np.array(["a", "b"], object)
        future = made.submit(None, {"s": words})
        words[:] = "x"
        assert future.result(10)[0].tolist() == ["a", "b"]
        for wrong in ([1], None, np.zeros(2)):
            with pytest.raises(TypeError, match="input_feed is a dict"):
                made.submit(None, wrong)
        for wrong in ({}, {"s": object()}, {"s": None}):
            with pytest.raises(Exception) as directly:
                made.run(None, wrong)
            assert isinstance(made.submit(None, wrong).exception(10), directly.type)


def test_values_that_numpy_lacks_are_copied(tmp_path):
    x, y = (helper.make_tensor_value_info(n, kind, [2]) for n, kind in (("x", TensorProto.BFLOAT16), ("y", 1)))
    graph = helper.make_graph([helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)], "g", [x], [y])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "bf16.onnx"
    )
    with ort.InferenceSession(tmp_path / "bf16.onnx", providers=["CPUExecutionProvider"]) as made:
        bits = np.array([0x3F80, 0x4000], np.uint16)
        value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, TensorProto.BFLOAT16)
        future = made.submit(None, {"x": value})
        bits[:] = 0
        assert future.result(10)[0].tolist() == [1.0, 2.0]
