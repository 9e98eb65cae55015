"""A model behind HTTP on all boards of a cluster, with Ray Serve. Ends with Ctrl-C.

    python examples/cluster/service.py /models/model.onnx --boards 2 [--host 0.0.0.0]
    python examples/cluster/client.py http://HEAD:8000/ outputs/ input0.npy input1.npy

Every board has the model at that path, or a folder that all of them mount. Whoever reaches the port may use the model:
``--host 0.0.0.0`` belongs behind an authenticating proxy.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import threading
import time
import urllib.request

import ray
from ray import serve

from ort_rknn_ray import deployment


def wait_until_reachable(host: str, port: int, seconds: float = 30) -> None:
    """Wait until the HTTP server knows the service; until then it answers 404. Raises TimeoutError."""
    address = f"http://{host}:{port}/-/routes"  # also with 0.0.0.0, which is this machine
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError), urllib.request.urlopen(address) as answer:
            if "/" in json.load(answer):
                return
        time.sleep(0.05)
    raise TimeoutError(f"{address} does not list the service after {seconds:g} s")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--boards", type=int, default=1)
    parser.add_argument("--cores", type=int, default=3, help="of one board")
    parser.add_argument("--batch", type=int, default=1, help="requests of one sample that may share a run")
    parser.add_argument("--address", default="auto")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args(arguments)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())

    ray.init(address=given.address)
    # The head machine alone listens: every board could, each with its own view of when the service is up.
    serve.start(proxy_location="HeadOnly", http_options={"host": given.host, "port": given.port})
    try:
        serve.run(deployment(given.model, boards=given.boards, cores=given.cores, batch=given.batch))
        wait_until_reachable(given.host, given.port)
        print(f"ready: http://{given.host}:{given.port}/", flush=True)
        ended.wait()
    finally:
        serve.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
