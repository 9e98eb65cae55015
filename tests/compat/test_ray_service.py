"""The replica of the Ray Serve deployment, without Ray: its results and its health checks."""

import asyncio
import io
import sys
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from support.virtual_sessions import MODELS, VIRTUAL, X, virtual_rk3588

from ort_rknn_ray._samples import filled
from ort_rknn_ray._serve import _Service, _ServiceAnywhere, deployment

npu = pytest.fixture(virtual_rk3588)
MODEL = str(MODELS / "conv_f16.onnx")


def npz(**arrays):
    body = io.BytesIO()
    np.savez(body, **arrays)
    return body.getvalue()


def test_answers(npu):
    service = _Service(MODEL, provider_options=VIRTUAL)
    (want,) = service.session.run(None, {"x": X})
    status, answer = asyncio.run(service.answer(npz(x=X)))
    assert status == 200
    with np.load(io.BytesIO(answer), allow_pickle=False) as file:
        np.testing.assert_array_equal(file["y"], want)
    for bad in (b"", b"no npz", npz(q=X), npz(x=X[0]), npz(x=X.astype(np.float64))):
        status, answer = asyncio.run(service.answer(bad))
        assert status == 400
        assert answer.endswith("\n")
    service.session.close()


@pytest.fixture
def gathered(monkeypatch):
    """Stands in for @serve.batch: the requests of one turn of the event loop, at most ``max_batch_size`` of them."""
    told = []

    def batch(*, max_batch_size, batch_wait_timeout_s, max_concurrent_batches):
        told.append((max_batch_size, max_concurrent_batches))
        assert 0 < batch_wait_timeout_s < 0.1

        def decorate(function):
            waiting = []

            async def flush():
                items, waiting[:] = waiting[:max_batch_size], waiting[max_batch_size:]
                results = await function([feed for feed, _ in items])
                for (_, future), result in zip(items, results, strict=True):
                    future.set_result(result)

            async def one(feed):
                future = asyncio.get_running_loop().create_future()
                waiting.append((feed, future))
                await asyncio.sleep(0)
                while waiting and not future.done():
                    await flush()
                return await future

            return one

        return decorate

    ray = SimpleNamespace(serve=SimpleNamespace(batch=batch))
    monkeypatch.setitem(sys.modules, "ray", ray)
    return told


def asked(service, feeds):
    async def crowd():
        return await asyncio.gather(*[service.predict(feed) for feed in feeds], return_exceptions=True)

    return asyncio.run(crowd())


@pytest.mark.parametrize("model", ["batch4", "free_batch"])
def test_requests_share_runs_where_the_model_takes_several_samples(npu, gathered, model):
    path = str(MODELS / f"{model}.onnx")
    service = _Service(path, provider_options={**VIRTUAL, "schedule": "0,1,2"}, batch=4)
    assert gathered == [(4, 6)]
    lengths = []
    run = service.run

    async def counted(feed):
        lengths.append(len(feed["x"]))
        return await run(feed)

    service._gathering._run = counted
    x = np.random.default_rng(1).standard_normal((6, 3, 16, 16)).astype(np.float32)
    answers = asked(service, [{"x": x[k : k + 1]} for k in range(6)])
    want = np.concatenate([on_cpu(path, filled(x[k : k + 4], 4)) for k in (0, 4)])[:6]
    for k, answer in enumerate(answers):
        assert answer["y"].shape == (1, 5)
        np.testing.assert_allclose(answer["y"], want[k : k + 1], atol=0.01)
    assert lengths == ([4, 4] if model == "batch4" else [4, 2])
    service.session.close()


def on_cpu(path, x):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def test_a_wrong_request_fails_alone(npu, gathered):
    service = _Service(str(MODELS / "free_batch.onnx"), provider_options=VIRTUAL, batch=8)
    x = np.ones((1, 3, 16, 16), np.float32)
    wrong = [{"x": x[:, :2]}, {"x": x.astype(np.float64)}, {"q": x}]
    feeds = [{"x": x}, *wrong, {"x": np.ones((3, 3, 16, 16), np.float32)}]
    right, *errors, three = asked(service, feeds)
    np.testing.assert_allclose(right["y"], on_cpu(str(MODELS / "free_batch.onnx"), x), atol=0.01)
    assert three["y"].shape == (3, 5)
    assert all(isinstance(answer, Exception) for answer in errors)
    for bad in wrong:
        assert asyncio.run(service.answer(npz(**bad)))[0] == 400
    service.session.close()


def test_a_model_that_does_not_take_several_samples(npu, gathered):
    with pytest.raises(ValueError, match=r"batch=2: the model takes 1 sample per run"):
        _Service(MODEL, provider_options=VIRTUAL, batch=2)
    with pytest.raises(ValueError, match=r"batch=8: the model takes 4 samples per run"):
        _Service(str(MODELS / "batch4.onnx"), provider_options=VIRTUAL, batch=8)
    assert npu.counters().contexts == 0


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"cores": 0}])
def test_wrong_arguments(monkeypatch, wrong):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(serve=SimpleNamespace()))
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected an integer >= 1, got 0"):
        deployment(MODEL, **wrong)


@pytest.mark.parametrize(("given", "ongoing", "queued"), [({}, 6, 12), ({"boards": 2, "cores": 2, "batch": 4}, 16, 64)])
def test_limits(monkeypatch, given, ongoing, queued):
    """Requests that run and that wait are bounded by the boards' cores."""
    told = {}

    def declare(kind, **options):
        told.update(options)
        return SimpleNamespace(bind=lambda *arguments, **named: named)

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(serve=SimpleNamespace(deployment=declare)))
    bound = deployment(MODEL, **given)
    assert (told["max_ongoing_requests"], told["max_queued_requests"]) == (ongoing, queued)
    assert bound["batch"] == given.get("batch", 1)


def test_a_full_queue_is_busy(npu):
    """503 and not 500: a load balancer tries another replica, and no alarm is raised."""
    options = {**VIRTUAL, "schedule": "0", "max_queue_size": 1, "submit_timeout_ms": 30}
    service = _Service(MODEL, provider_options=options)
    npu.run_time_us = 100_000

    async def crowd():
        return await asyncio.gather(*[service.answer(npz(x=X)) for _ in range(12)])

    statuses = [status for status, _ in asyncio.run(crowd())]
    assert set(statuses) == {200, 503}
    npu.run_time_us = 0
    assert asyncio.run(service.answer(npz(x=X)))[0] == 200
    service.session.close()


def test_health(npu):
    service = _Service(MODEL, provider_options={**VIRTUAL, "schedule": "0,1", "retries": 0})
    service.check_health()  # nothing ran yet
    asyncio.run(service.answer(npz(x=X)))
    service.check_health()
    service.check_health()  # an idle one is healthy
    npu.fault("rknn_run", -1, times=1)
    with pytest.raises(Exception, match="RKNN"):
        asyncio.run(service.answer(npz(x=X)))
    with pytest.raises(RuntimeError, match="all . runs on the NPU failed"):
        service.check_health()
    asyncio.run(service.answer(npz(x=X)))
    service.check_health()  # it works again
    service.session.close()
    anywhere = _ServiceAnywhere(MODEL, provider_options=VIRTUAL, on_cpu="serve")
    anywhere.session.set_providers(["CPUExecutionProvider"])
    anywhere.check_health()  # which may be on the CPU
    service.session = anywhere.session
    with pytest.raises(RuntimeError, match="not run on the NPU"):
        service.check_health()
    anywhere.session.close()
