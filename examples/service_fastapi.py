"""A model behind HTTP, with back-pressure: requests wait for a core, and those that wait too long get a 503.

    pip install fastapi uvicorn
    MODEL=model.onnx uvicorn --app-dir examples service_fastapi:app

    curl -s --data-binary @input.npy http://127.0.0.1:8000/run -o output.npy
    curl -s http://127.0.0.1:8000/health

The body is the model's only input as a ``.npy`` file, and the answer its first output. One process is enough: the event
loop never blocks, and all cores work.
"""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request, Response
from ort_rknn.capi.onnxruntime_pybind11_state import InvalidArgument

import ort_rknn as ort

#: Larger bodies are refused before they are read.
LIMIT = 64 << 20


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The session is created before the first request and closed after the last."""
    options = ort.make_provider_options(schedule="auto", submit_timeout_ms=2000)
    with ort.InferenceSession(os.environ["MODEL"], provider_options=options) as session:
        app.state.session = session
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/run")
async def run(request: Request) -> Response:
    session: ort.InferenceSession = request.app.state.session
    (image,) = session.get_inputs()
    if int(request.headers.get("content-length", LIMIT + 1)) > LIMIT:
        raise HTTPException(413, f"the body is larger than {LIMIT} bytes, or has no length")
    try:
        array: Any = np.load(io.BytesIO(await request.body()), allow_pickle=False)
        (output, *_) = await session.run_awaitable(None, {image.name: array})
    except ort.QueueFull:
        raise HTTPException(503, "busy", headers={"Retry-After": "1"}) from None
    except (ValueError, InvalidArgument) as error:  # no .npy, or of another dtype or shape
        raise HTTPException(422, str(error)) from None
    answer = io.BytesIO()
    np.save(answer, output)
    return Response(answer.getvalue(), media_type="application/octet-stream")


@app.get("/health")
async def health(request: Request) -> dict[str, object]:
    session: ort.InferenceSession = request.app.state.session
    return {
        "providers": session.get_providers(),
        "runs": sum(core.runs for model in session.stats().models for core in model.cores.values()),
    }
