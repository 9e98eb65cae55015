"""A service on asyncio: requests over sockets, more than the NPU can serve."""

import asyncio
import os
import subprocess
import sys

import numpy as np

import ort_rknn

SERVICE = """
import asyncio, sys
import numpy as np
import ort_rknn
from ort_rknn_virtual.control import virtual_npu

virtual_npu("rk3588").run_time_us = 20_000
session = ort_rknn.InferenceSession(sys.argv[1], provider_options={
    "device": "virtual:rk3588", "schedule": [0, 1, 2], "max_queue_size": 3, "submit_timeout_ms": 40})

async def answer(reader, writer):
    head = (await reader.readuntil(b"\\r\\n\\r\\n")).decode()
    number = int(head.split()[1].strip("/"))
    x = np.full((1, 3, 32, 32), number, np.float32)
    try:
        (y,) = await session.run_awaitable(None, {"x": x})
        status, body = "200 OK", repr(float(y[0, 0, 0, 0]))
    except ort_rknn.QueueFull:
        status, body = "503 Busy", "busy"
    writer.write(f"HTTP/1.0 {status}\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n{body}".encode())
    await writer.drain()
    writer.close()

async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=200)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()

asyncio.run(main())
"""


def test_an_overloaded_asyncio_service(models):
    """Over real sockets: every request gets its own answer or "busy", none waits long, and the service works
    afterwards."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("ORT_RKNN_")}
    model = models / "conv_f16.onnx"
    with ort_rknn.InferenceSession(model, provider_options={"device": "virtual:rk3588"}) as session:
        wants = {
            k: float(session.run(None, {"x": np.full((1, 3, 32, 32), k, np.float32)})[0][0, 0, 0, 0]) for k in range(8)
        }
    assert len(set(wants.values())) == 8
    server = subprocess.Popen(
        [sys.executable, "-c", SERVICE, str(model)], env=environ, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())

        async def ask(number):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET /{number} HTTP/1.1\r\n\r\n".encode())
            reply = (await reader.read()).decode()
            writer.close()
            return number, int(reply.split()[1]), reply.rpartition("\r\n")[2]

        async def crowd(n):
            return await asyncio.wait_for(asyncio.gather(*[ask(k % 8) for k in range(n)]), 30)

        replies = asyncio.run(crowd(100))
        for number, status, body in replies:
            assert body == ("busy" if status == 503 else repr(wants[number]))
        served = sum(status == 200 for _, status, _ in replies)
        assert 6 <= served < 100
        for _ in range(3):  # and works on
            assert asyncio.run(crowd(3)) == [(k, 200, repr(wants[k])) for k in range(3)]
        assert server.poll() is None
    finally:
        server.kill()
        server.communicate()
