"""A web server that loads the program before it forks its workers."""

import collections
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

pytest.importorskip("gunicorn", reason="gunicorn is not installed: pip install -e '.[test]'")

APP = """
import os, numpy as np, ort_rknn
s = ort_rknn.InferenceSession(PATH, provider_options={"device": "virtual:rk3588", "schedule": "0,1,2"})
x = {"x": np.ones((1, 3, 32, 32), np.float32)}
first = s.run(None, x)[0]
def app(environ, start):
    y = s.run(None, x)[0]
    body = f"{os.getpid()} {np.array_equal(y, first)} {s.get_providers()[0]}".encode()
    start("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.mark.parametrize("workers", [("-w", "2"), ("-w", "1", "-k", "gthread", "--threads", "4")])
def test_preloading(models, tmp_path, workers):
    (tmp_path / "service.py").write_text(APP.replace("PATH", repr(str(models / "conv_f16.onnx"))))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gunicorn", "--preload", *workers, "-b", f"127.0.0.1:{port}", "service:app"]
    server = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        said = collections.Counter()
        for _ in range(60):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as answer:
                pid, rest = answer.read().decode().split(" ", 1)
            said[rest] += 1
            assert int(pid) != server.pid
        assert said == {"True RKNNExecutionProvider": 60}
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            _, log = server.communicate(timeout=40)
        except subprocess.TimeoutExpired:
            server.kill()
            raise
    assert server.returncode == 0, log
    assert "was sent SIG" not in log and "WORKER TIMEOUT" not in log, log
