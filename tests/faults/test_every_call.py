"""Every function of the runtime, every error code, at its first, middle and last call, in every way to call a session.

The cases are generated from the calls that each way really makes. ``FAULTS=all`` runs all of them (``tox -e faults``),
else a sample.
"""

import asyncio
import ctypes
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from support.models_in_parts import three_steps, write_in_parts
from support.outcome import caught
from support.virtual_sessions import MODELS, X, session, virtual_rk3588

import ort_rknn_ez_async as ez
from ort_rknn._rknpu import RKNN_ERRORS

npu = pytest.fixture(virtual_rk3588)
EVERYTHING = os.environ.get("FAULTS") == "all"
#: One case of so many, where not everything is tried.
SAMPLE = 29
RUNS = 6
BLAME_THE_CORE = (-1, -2, -3)
#: Functions of the virtual NPU that no board has.
NOT_RKNN = {"misuse", "set_compute", "virtual_set_compute", "virtual_dmabuf"}
#: The functions of a run. Their errors are retried on another core.
OF_A_RUN = {"inputs_set", "run", "outputs_get", "outputs_release", "set_input_shapes"}


def run(made, feeds):
    return [caught(lambda f=f: made.run(None, f)) for f in feeds]


def threads(made, feeds):
    with ThreadPoolExecutor(len(feeds)) as pool:
        return list(pool.map(lambda feed: caught(lambda: made.run(None, feed)), feeds))


def submit(made, feeds):
    return [caught(lambda f=f: f.result(timeout=60)) for f in [made.submit(None, f) for f in feeds]]


def map_(made, feeds):
    results = []
    while len(results) < len(feeds):  # an error ends a map
        rest = made.map(feeds[len(results) :])
        while True:
            result = caught(lambda rest=rest: next(rest))
            if isinstance(result, StopIteration):
                break
            results.append(result)
            if isinstance(result, Exception):
                break
    return results


def run_awaitable(made, feeds):
    async def all_of_them():
        return await asyncio.gather(*[made.run_awaitable(None, f) for f in feeds], return_exceptions=True)

    return asyncio.run(all_of_them())


def run_async(made, feeds):
    def ended(outputs, future, error):
        future.set_exception(RuntimeError(error)) if error else future.set_result(outputs)

    futures = [Future() for _ in feeds]
    for feed, future in zip(feeds, futures):
        made.run_async(None, feed, ended, future)
    return [caught(lambda f=f: f.result(timeout=60)) for f in futures]


def bound(made, feeds):
    buffers = made.buffers(len(feeds))
    for buffer, feed in zip(buffers, feeds):
        for name, value in feed.items():
            buffer[name][...] = value
    return run(made, buffers)


def distinct(name, shape, dtype="float32"):
    """Feeds of which no two have the same answer."""
    generator = np.random.default_rng(5)
    return [{name: (generator.standard_normal(shape) * 3).astype(dtype)} for _ in range(RUNS)]


class Way:
    """A way to call a session of some model."""

    def __init__(self, call, feeds, make):
        self.call, self.feeds, self.make = call, feeds, make

    def once(self):
        """One session's life: its results, or the exception that making it raised."""
        made = caught(self.make)
        if isinstance(made, Exception):
            return made, []
        try:
            results = self.call(made, self.feeds)
            later = run(made, self.feeds)  # the fault is over by now, in most cases
            return None, [*results, *later]
        finally:
            made.close()


def ways(tmp_path):
    conv = distinct("x", X.shape)
    options = {"schedule": "0,1,2", "retries": 0}
    parts = write_in_parts(tmp_path, three_steps()).with_name("m.rk3588_ctx.onnx")
    face = {"device": "virtual:rk3588", "schedule": "0,1,2", "retries": 0}

    def of_the_face():
        return ez.InferenceSession(str(MODELS / "conv_f16.rk3588.rknn"), provider_options=face)

    def batches():
        return session(MODELS / "free_batch.onnx", split_batch=True, **options)

    with batches() as made:
        name, rest = made.get_inputs()[0].name, made.get_inputs()[0].shape[1:]
    with session(MODELS / "dynamic.onnx") as made:
        signature = made.get_inputs()[0]
        shapes = made._npu.executor.signature.sets
        dynamic = [distinct(signature.name, shapes[k % len(shapes)][0])[k] for k in range(RUNS)]
    with session(MODELS / "image_u8.onnx", input_dtype="uint8", layout="nhwc") as made:
        pixels = made.get_inputs()[0]

    return {
        "run": Way(run, conv, lambda: session(**options)),
        "run with retries": Way(run, conv, lambda: session(**{**options, "retries": 1})),
        "run, contexts that load": Way(run, conv, lambda: session(disable_dup_context=True, **options)),
        "run, bounded": Way(run, conv, lambda: session(run_timeout_ms=10_000, **options)),
        "threads": Way(threads, conv, lambda: session(threads_per_core=2, **{**options, "schedule": "auto"})),
        "submit": Way(submit, conv, lambda: session(**options)),
        "map": Way(map_, conv, lambda: session(**options)),
        "run_awaitable": Way(run_awaitable, conv, lambda: session(**options)),
        "run_async": Way(run_async, conv, lambda: session(**options)),
        "batches": Way(run, distinct(name, [7, *rest]), batches),
        "parts": Way(run, distinct("x", (1, 3, 8, 8)), lambda: session(parts, **options)),
        "shape sets": Way(run, dynamic, lambda: session(MODELS / "dynamic.onnx", **options)),
        "NPU memory": Way(
            bound,
            distinct(pixels.name, pixels.shape, "uint8"),
            lambda: session(MODELS / "image_u8.onnx", input_dtype="uint8", layout="nhwc", **options),
        ),
        "the face, run": Way(run, conv, of_the_face),
        "the face, run_async": Way(run_async, conv, of_the_face),
    }


WAYS = (
    *("run", "run with retries", "run, contexts that load", "run, bounded", "threads", "submit", "map"),
    *("run_awaitable", "run_async", "batches"),
    *("parts", "shape sets", "NPU memory", "the face, run", "the face, run_async"),
)


def calls(npu, way):
    """How often each function was called in one life that nothing disturbed."""
    npu.reset()
    failed, results = way.once()
    assert failed is None and not [r for r in results if isinstance(r, Exception)]
    counts = {}
    for event in npu.events():
        if event.kind == "inputs_set" and event.index:
            continue  # one call has an event for each input
        counts[event.kind] = counts.get(event.kind, 0) + 1
    return counts, results


def cases(counts):
    for function, number in sorted(counts.items()):
        if function in NOT_RKNN:
            continue
        for code in RKNN_ERRORS:
            for after in sorted({0, number // 2, number - 1}):
                yield function, code, after


def destroy_what_is_left(npu):
    """Destroy the contexts whose rknn_destroy was made to fail: the fault left them open."""
    library = ctypes.CDLL(str(npu.library))
    for event in npu.events():
        if event.kind == "destroy" and event.code:
            library.rknn_destroy(ctypes.c_uint64(event.context))


def judge(npu, name, way, rights, function, code, after):
    """What is wrong with this case; None if nothing is."""
    npu.reset()
    before = npu.counters()
    npu.fault(f"rknn_{function}", code, after=after, times=1)
    failed, results = way.once()
    hit = any(event.code == code for event in npu.events() if event.kind == function)
    npu.clear_faults()
    if function == "destroy":
        destroy_what_is_left(npu)
    counters = npu.counters()
    if counters.misuses:
        return f"{counters.misuses} misuses"
    left = (counters.contexts - before.contexts, counters.models - before.models, counters.mems - before.mems)
    if left != (0, 0, int(function == "destroy_mem" and hit)):
        return f"contexts, models and memory left: {left}"
    if failed is not None:
        return None if f"({code})" in str(failed) and f"rknn_{function}" in str(failed) else f"made: {failed!r}"
    errors = [r for r in results if isinstance(r, Exception)]
    for result, right in zip(results, rights, strict=True):
        if not isinstance(result, Exception):
            for one, other in zip(result, right, strict=True):
                if not np.array_equal(one, other):
                    return "a wrong result"
    if len(errors) > 1:
        return f"{len(errors)} errors: {errors[:2]}"
    if errors and name == "run with retries" and code in BLAME_THE_CORE:
        return f"not tried again: {errors[0]}"
    if errors:
        text = str(errors[0])
        wanted = ("core ", f"rknn_{function}", f"({code})", ".rknn" if name != "parts" else "part")
        if not all(word in text for word in wanted):
            return f"says too little: {text}"
    elif hit and function in OF_A_RUN and not (name == "run with retries" and code in BLAME_THE_CORE):
        return "no error"
    return None


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", WAYS)
def test_each_function_and_code(npu, tmp_path, monkeypatch, name, record_property):
    monkeypatch.setenv("ORT_RKNN_STRICT", "1")
    way = ways(tmp_path)[name]
    counts, rights = calls(npu, way)
    everything = list(cases(counts))
    if name == "shape sets":
        # A runtime answers so when it is asked for the shape sets of a static model: this one is then taken for such.
        everything = [case for case in everything if case[:2] not in (("query", -1), ("query", -5))]
    tried = everything if EVERYTHING else everything[WAYS.index(name) % SAMPLE :: SAMPLE]
    started = time.monotonic()
    wrong = []
    for function, code, after in tried:
        found = judge(npu, name, way, rights, function, code, after)
        if found is not None:
            wrong.append(f"rknn_{function} {code} after {after} of {counts[function]}: {found}")
    npu.reset()
    record_property("faults", len(tried))
    print(
        f"{name}: {len(tried)} of {len(everything)} cases, {len(counts)} functions, {time.monotonic() - started:.1f} s"
    )
    assert not wrong, f"{len(wrong)} of {len(tried)}:\n" + "\n".join(wrong[:20])
