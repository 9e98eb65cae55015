"""Call k runs on schedule[k % len(schedule)], and waits only for its own core."""

import asyncio
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.virtual_sessions import MODELS

import ort_rknn as ort
import ort_rknn_ez_async as ez
from ort_rknn_virtual.control import virtual_npu

MODEL = MODELS / "conv_f16.onnx"
SCHEDULE = (0, 0, 2, 1)
CALLS = 24


@pytest.fixture
def npu():
    device = virtual_npu("rk3588")
    device.reset()
    yield device
    device.reset()


def options(**more):
    return {"device": "virtual:rk3588", "schedule": list(SCHEDULE), "max_queue_size": 30, **more}


def feeds(count=CALLS):
    return [{"x": np.full((1, 3, 32, 32), k, np.float32)} for k in range(count)]


def cores_by_call(npu, since, of_address):
    """The cores of each call's runs, identified by the buffers that they read."""
    cores, addresses = {}, {}
    for event in npu.events(since):
        if event.kind == "inputs_set":
            addresses[event.context, event.thread] = event.address
        elif event.kind == "run":
            k = of_address[addresses[event.context, event.thread]]
            cores.setdefault(k, []).append(event.core_mask.bit_length() - 1)
    return [cores[k] for k in sorted(cores)]


def by_submit(session, frames):
    for future in [session.submit(None, feed, copy=False) for feed in frames]:
        future.result(30)


def by_map(session, frames):
    assert len(list(session.map(frames, copy=False))) == len(frames)


def by_map_in_depth(session, frames):
    assert len(list(session.map(frames, copy=False, depth=9))) == len(frames)


def by_pipeline(session, frames):
    for feed in frames:
        session.run_pipeline(feed, depth=7, copy=False)
    session.flush()


def by_awaitable(session, frames):
    async def main():
        await asyncio.gather(*[session.run_awaitable(None, feed, copy=False) for feed in frames])

    asyncio.run(main())


WAYS = [by_submit, by_map, by_map_in_depth, by_pipeline, by_awaitable]


def runs_of(npu, session, way, per_call=1):
    frames = feeds()
    since = npu.counters().events
    way(session, frames)
    cores = cores_by_call(npu, since, {feed["x"].ctypes.data: k for k, feed in enumerate(frames)})
    assert cores == [[SCHEDULE[k % 4]] * per_call for k in range(CALLS)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("factors", [(1, 1, 1), (1, 6, 20)])
def test_call_k_is_task_k(npu, way, factors):
    npu.run_time_us = 500
    for core, factor in enumerate(factors):
        npu.core_factor(core, factor)
    with ort.InferenceSession(MODEL, provider_options=options()) as session:
        runs_of(npu, session, way)
        runs_of(npu, session, way)  # 24 is a multiple of 4


@pytest.mark.parametrize("way", WAYS)
def test_with_parallel_execution(npu, way):
    npu.run_time_us = 500
    npu.core_factor(2, 10)
    so = ort.SessionOptions()
    so.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    with ort.InferenceSession(MODEL, so, provider_options=options()) as session:
        runs_of(npu, session, way)
    assert so.execution_mode == ort.ExecutionMode.ORT_PARALLEL, "the user's own is not changed"


@pytest.mark.parametrize("way", WAYS)
def test_in_a_subclass_that_runs_twice(npu, way):
    class Twice(ort.InferenceSession):
        def run(self, *args):
            super().run(*args)
            return super().run(*args)

    npu.run_time_us = 500
    with Twice(MODEL, provider_options=options()) as session:
        runs_of(npu, session, way, per_call=2)


def test_blocking_runs_are_counted_too(npu):
    with ort.InferenceSession(MODEL, provider_options=options()) as session:
        since = npu.counters().events
        frames = feeds(8)
        for k in range(0, 8, 2):
            session.run(None, frames[k])
            session.submit(None, frames[k + 1]).result(10)
        masks = [event.core_mask for event in npu.events(since) if event.kind == "run"]
        assert masks == [1 << SCHEDULE[k % 4] for k in range(8)]


def test_samples_of_a_batch_go_on_from_the_call_s_core(npu):
    with ort.InferenceSession(
        MODELS / "free_batch.onnx", provider_options={**options(), "schedule": [0, 1, 2]}
    ) as session:
        name, shape = session.get_inputs()[0].name, session.get_inputs()[0].shape
        batch = np.zeros((6, *shape[1:]), np.float32)
        since = npu.counters().runs
        for future in [session.submit(None, {name: batch}) for _ in range(5)]:
            assert future.result(20)[0].shape[0] == 6
        assert [now - then for now, then in zip(npu.counters().runs, since)] == [10, 10, 10]
        one = np.zeros((1, *shape[1:]), np.float32)
        since = npu.counters().events
        session.submit(None, {name: one}).result(10)  # the sixth call
        masks = [event.core_mask for event in npu.events(since) if event.kind == "run"]
        assert masks == [1 << 2]


@pytest.mark.parametrize("way", ["submit", "awaitable", "pipeline", "face", "face's pipeline"])
def test_a_slow_core_holds_up_no_call_of_another(npu, way):
    """Core 2 needs four seconds a run; the fourteen calls of core 0 are done long before."""
    npu.run_time_us = 2000
    npu.core_factor(2, 2000)
    given = {"schedule": [0, 0, 2], "max_queue_size": 100}
    frames, done = feeds(21), []
    if way.startswith("face"):
        session = ez.InferenceSession(MODEL.with_suffix(".rk3588.rknn"), provider_options=given)
    else:
        session = ort.InferenceSession(MODEL, provider_options={**given, "device": "virtual:rk3588"})
    before = npu.counters().runs
    if way == "submit":
        futures = [session.submit(None, feed) for feed in frames]
        wanted = [k for k in range(21) if k % 3 != 2]
        assert all(futures[k].result(3) for k in wanted)
        assert not any(futures[k].done() for k in range(2, 21, 3))
        for future in futures:
            future.cancel()
    elif way == "awaitable":

        async def main():
            tasks = [asyncio.ensure_future(session.run_awaitable(None, feed)) for feed in frames]
            await asyncio.wait_for(asyncio.gather(*[t for k, t in enumerate(tasks) if k % 3 != 2]), 3)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

        asyncio.run(main())
    else:
        for feed in frames:
            if way == "pipeline":
                session.run_pipeline(feed, depth=50)
            elif way == "face":
                session.run_async(None, feed["x"], lambda *got: done.append(got))
            else:
                session.run_pipeline(feed["x"], 50)
        end = time.monotonic() + 3
        while (runs := npu.counters().runs[0] - before[0]) < 14 and time.monotonic() < end:
            time.sleep(0.005)
        assert runs == 14
    npu.core_factor(2, 1)
    session.close()


@pytest.fixture(autouse=True)
def virtual_device(monkeypatch):
    monkeypatch.setenv("ORT_RKNN_DEVICE", "virtual:rk3588")


def test_run_async_of_the_face_takes_its_number_at_the_call(npu):
    npu.run_time_us = 500
    npu.core_factor(2, 10)
    given = {"schedule": list(SCHEDULE), "max_queue_size": 30}
    results = []
    with ez.InferenceSession(MODEL.with_suffix(".rk3588.rknn"), provider_options=given) as session:
        expected = {session.run(None, feed["x"])[0].tobytes(): k for k, feed in enumerate(feeds(8))}
        since = npu.counters().runs
        for feed in feeds(8):
            session.run_async(None, feed["x"], lambda got, *_: results.append(expected[got[0].tobytes()]))
    assert results == list(range(8))
    assert [now - then for now, then in zip(npu.counters().runs, since)] == [4, 2, 2]


# Graphs of several nodes ------------------------------------------------------------------------------------------


def two_nodes(tmp_path: Path) -> Path:
    """A compiled model beside a node for the CPU, in one graph."""
    from ort_rknn.files import ep_context_model, read_onnx

    inner = read_onnx(MODEL)
    blob = MODEL.with_suffix(".rk3588.rknn").read_bytes()
    content = ep_context_model(
        model=inner,
        inputs=inner.inputs,
        outputs=inner.outputs,
        source="RKNNExecutionProvider",
        cache_context=blob,
        node_name="npu",
    )
    model = onnx.load_from_string(content)
    shape = [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    model.graph.node.append(helper.make_node("Neg", ["y"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, shape))
    onnx.save(model, tmp_path / "two_nodes.onnx")
    return tmp_path / "two_nodes.onnx"


def test_where_nodes_run_elsewhere_explain_says_so(npu, tmp_path):
    so = ort.SessionOptions()
    so.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    model = two_nodes(tmp_path)
    with ort.InferenceSession(model, so, provider_options={**options(), "schedule": [0, 1]}) as session:
        assert "in which their nodes begin, not in the order of the calls" in session.explain()
        before = npu.counters().runs
        for future in [session.submit(None, feed) for feed in feeds(12)]:
            future.result(10)
        assert [now - then for now, then in zip(npu.counters().runs, before)] == [6, 6, 0]
    with ort.InferenceSession(model, provider_options=options()) as session:
        assert "order of the calls" not in session.explain()
        runs_of(npu, session, by_submit)
