"""The replica of the Ray Serve deployment, without Ray: its answers, and what it says of its health."""

import asyncio
import io

import numpy as np
import pytest
from support.virtual_sessions import MODELS, VIRTUAL, X, virtual_rk3588

from ort_rknn_ray._serve import _Service, _ServiceAnywhere

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


def test_a_full_queue_is_busy(npu):
    """503 and not 500: a load balancer asks another one, and nobody is alarmed."""
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
