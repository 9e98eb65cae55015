"""A service with Ray Serve: answers, bad requests, and refusing where too many wait."""

import io
import re
import time
import urllib.error
import urllib.request

import numpy as np
import onnxruntime
import pytest
from ray import serve

from ort_rknn_ray import deployment


def post(url, body):
    with urllib.request.urlopen(urllib.request.Request(url, data=body, method="POST"), timeout=60) as answer:
        return answer.read()


def wait_for_route(url):
    """An application may be ready before the HTTP proxy knows of it."""
    end = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"{url}-/routes", timeout=10) as answer:
                if b'"/"' in answer.read():
                    return
        except OSError:
            pass
        assert time.monotonic() < end, "the proxy has no route"
        time.sleep(0.2)


def test_http(cluster, models):
    cluster.add(1)
    cluster.connect()
    serve.start(http_options={"host": "127.0.0.1", "port": 18765})
    try:
        handle = serve.run(deployment(str(models / "conv_f16.onnx")), route_prefix="/")
        x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
        want = onnxruntime.InferenceSession(models / "conv_f16.onnx").run(None, {"x": x})[0]
        body = io.BytesIO()
        np.savez(body, x=x)
        url = "http://127.0.0.1:18765/"
        wait_for_route(url)
        with np.load(io.BytesIO(post(url, body.getvalue())), allow_pickle=False) as answer:
            (got,) = (answer[name] for name in answer.files)
        np.testing.assert_allclose(got, want, atol=0.01)
        for bad in (b"no npz", _npz(y=x), _npz(x=x[:, :2])):
            with pytest.raises(urllib.error.HTTPError) as error:
                post(url, bad)
            assert error.value.code == 400
        outputs = handle.predict.remote({"x": x}).result(timeout_s=30)
        np.testing.assert_allclose(next(iter(outputs.values())), want, atol=0.01)
    finally:
        serve.shutdown()


def test_requests_of_one_sample_share_runs(cluster, models):
    cluster.add(1)
    cluster.connect()
    serve.start(http_options={"host": "127.0.0.1", "port": 18765})
    try:
        handle = serve.run(deployment(str(models / "batch4.onnx"), batch=4), route_prefix="/")
        x = np.random.default_rng(0).standard_normal((20, 3, 16, 16)).astype(np.float32)
        session = onnxruntime.InferenceSession(models / "batch4.onnx")
        want = np.concatenate([session.run(None, {"x": x[k : k + 4]})[0] for k in range(0, 20, 4)])
        calls = [handle.predict.remote({"x": x[k : k + 1]}) for k in range(20)]
        for k, call in enumerate(calls):
            np.testing.assert_allclose(call.result(timeout_s=60)["y"], want[k : k + 1], atol=0.01)
        told = handle.describe.remote().result(timeout_s=60)["explain"]
        runs = sum(map(int, re.findall(r"core \d: (\d+) runs", told)))
        assert 5 <= runs < 20, told
    finally:
        serve.shutdown()


def _npz(**arrays):
    body = io.BytesIO()
    np.savez(body, **arrays)
    return body.getvalue()
