"""A service with Ray Serve: answers, bad requests, and refusing where too many wait."""

import io
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


def _npz(**arrays):
    body = io.BytesIO()
    np.savez(body, **arrays)
    return body.getvalue()
