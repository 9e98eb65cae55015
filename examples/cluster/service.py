"""A model behind HTTP on all boards of a cluster, with Ray Serve. Ends with Ctrl-C.

    python examples/cluster/service.py /models/model.onnx --boards 2 [--host 0.0.0.0]
    python examples/cluster/client.py http://HEAD:8000/ outputs/ input0.npy input1.npy

Every board has the model at that path, or a folder that all of them mount. Whoever reaches the port may use the model:
``--host 0.0.0.0`` belongs behind an authenticating proxy.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading

import ray
from ray import serve

from ort_rknn_ray import deployment


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
    serve.start(http_options={"host": given.host, "port": given.port})
    try:
        serve.run(deployment(given.model, boards=given.boards, cores=given.cores, batch=given.batch))
        print(f"ready: http://{given.host}:{given.port}/", flush=True)
        ended.wait()
    finally:
        serve.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
