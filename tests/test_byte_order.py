"""Arrays whose byte order is not the machine's: onnxruntime would misread them."""

import asyncio
import threading

import numpy as np
import pytest
from support.virtual_sessions import MODELS, VIRTUAL, virtual_rk3588

import ort_rknn as ort

npu = pytest.fixture(virtual_rk3588)


def swapped(array):
    made = array.astype(array.dtype.newbyteorder())
    assert made.dtype.itemsize == 1 or not made.dtype.isnative
    return made


def feed_of(session):
    rng = np.random.default_rng(0)
    return {
        value.name: rng.integers(0, 30, value.shape).astype(value.type[7:-1].replace("float", "float32"))
        for value in session.get_inputs()
    }


def by_run(session, feed):
    return session.run(None, feed)


def by_run_async(session, feed):
    done, results = threading.Event(), []
    session.run_async(None, feed, lambda got, _, error: (results.append(error or got), done.set()), None)
    assert done.wait(20)
    return results[0]


def by_submit(session, feed):
    return session.submit(None, feed).result()


def by_submit_uncopied(session, feed):
    return session.submit(None, feed, copy=False).result()


def by_map(session, feed):
    return next(iter(session.map([feed])))


def by_awaitable(session, feed):
    async def run():
        return await session.run_awaitable(None, feed)

    return asyncio.run(run())


ON_NPU = [by_run, by_run_async, by_submit, by_submit_uncopied, by_map, by_awaitable]
#: There run is onnxruntime's own; checking each array would cost 2 % of the smallest run.
ON_CPU = [by_run_async, by_submit, by_map, by_awaitable]


@pytest.mark.parametrize("way", ON_NPU)
@pytest.mark.parametrize("model", ["conv_f16", "tokens_i64", "two_io"])
def test_on_the_npu(npu, model, way):
    with ort.InferenceSession(MODELS / f"{model}.onnx", provider_options=VIRTUAL) as session:
        feed = feed_of(session)
        want = session.run(None, feed)
        for given in ({n: swapped(a) for n, a in feed.items()}, {**feed, **{n: swapped(feed[n]) for n in [*feed][:1]}}):
            for got, expected in zip(way(session, given), want, strict=True):
                np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", ["int16", "uint16", "int32", "uint32", "int64", "float16"])
def test_every_dtype(npu, dtype):
    with ort.InferenceSession(
        MODELS / "conv_f16.onnx", provider_options={**VIRTUAL, "input_dtype": dtype, "layout": "nhwc"}
    ) as session:
        x = np.random.default_rng(1).integers(0, 100, (1, 32, 32, 3)).astype(dtype)
        np.testing.assert_array_equal(session.run(None, {"x": swapped(x)})[0], session.run(None, {"x": x})[0])


@pytest.mark.parametrize("way", ON_CPU)
def test_on_the_cpu(way):
    session = ort.InferenceSession(MODELS / "conv_f16.onnx", providers=["CPUExecutionProvider"])
    feed = feed_of(session)
    want = session.run(None, feed)[0]
    for array in (swapped(feed["x"]), swapped(np.asfortranarray(feed["x"]))):
        np.testing.assert_array_equal(way(session, {"x": array})[0], want)
        np.testing.assert_array_equal(way(session, feed)[0], want)  # buffers of both orders are distinguished


def test_a_session_that_moves_to_the_cpu_and_back(npu):
    with ort.InferenceSession(MODELS / "conv_f16.onnx", provider_options=VIRTUAL) as session:
        feed = feed_of(session)
        want = session.run(None, feed)[0]
        session.set_providers(["CPUExecutionProvider"])
        assert session._npu_run is None
        session.set_providers(["RKNNExecutionProvider"], [VIRTUAL])
        np.testing.assert_array_equal(session.run(None, {"x": swapped(feed["x"])})[0], want)


def test_a_feed_that_is_not_a_dict_is_still_an_error(npu):
    told = pytest.raises(AttributeError, match="'x'")
    with ort.InferenceSession(MODELS / "conv_f16.onnx", provider_options=VIRTUAL) as session, told:
        session.run(None, np.zeros((1, 3, 32, 32), ">f4"))
