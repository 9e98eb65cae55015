"""Models are untrusted input: damaged and hostile ones are detected, in bounded time and memory."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from support.independence_models import INT64, model, node, value
from support.random_graphs import Drawn

from ort_rknn._independence import Independence, independence_of
from ort_rknn.files import OnnxFileError


@pytest.mark.parametrize("seed", range(60))
def test_damaged_models(seed):
    drawn = Drawn(seed)
    content = drawn.content((drawn.candidates() or ["x0"])[0])
    rng = np.random.default_rng(seed)
    for _ in range(40):
        damaged = bytearray(content)
        for at in rng.integers(0, len(content), int(rng.integers(1, 6))):
            damaged[at] = rng.integers(256)
        try:
            found = independence_of(bytes(damaged[: rng.integers(1, len(content))] if rng.random() < 0.2 else damaged))
        except OnnxFileError:
            continue
        assert isinstance(found, Independence) and found.reason


def cost(content: bytes) -> tuple[float, int]:
    """Processor time in seconds and the most memory in bytes."""
    independence_of(content[:1] + content[1:])
    tracemalloc.start()
    try:
        independence_of(content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    began = time.process_time()
    independence_of(content)
    return time.process_time() - began, peak


def test_numbers_do_not_grow_without_end():
    """A length that is squared forty times."""
    nodes = [node("Shape", "x", "s"), node("Gather", "s one", "n0")]
    nodes += [node("Mul", f"n{at} n{at}", f"n{at + 1}") for at in range(40)]
    nodes += [node("ReduceSum", "n40", "t", keepdims=0), node("Cast", "t", "f", to=1), node("Mul", "x f", "y")]
    for dim in ("S", 3):
        content = model(nodes, {"x": ["N", dim]}, ["y"], {"one": np.array([1], np.int64)})
        seconds, memory = cost(content)
        assert independence_of(content).proved  # whatever the number is, it is the same for all samples
        assert seconds < 1 and memory < 4 << 20


@pytest.mark.wall_clock
def test_many_small_tensors_cost_no_more_than_many_nodes():
    nodes = [node("Mul", "c c" if at == 0 else f"n{at} c", f"n{at + 1}") for at in range(20_000)]
    content = model([*nodes, node("Relu", "x", "y")], {"x": ["N", 3]}, ["y"], {"c": np.ones(256, np.int64)})
    assert cost(content)[0] < 5


def test_lengths_that_no_tensor_has():
    huge = np.array([1 << 62], np.int64)
    nodes = [
        node("Range", "zero far one", "r"), node("ConstantOfShape", "far1", "z"), node("Slice", "x zero1 far1", "a"),
        node("Tile", "x both", "b"), node("Expand", "x both", "c"), node("Concat", "a b c", "y", axis=0),
    ]  # fmt: skip
    constants = {"zero": np.int64(0), "far": huge[0], "one": np.int64(1), "far1": huge,
                 "zero1": np.array([0], np.int64), "both": np.array([1 << 62, 1 << 62], np.int64)}  # fmt: skip
    seconds, memory = cost(model(nodes, {"x": ["N", 3]}, ["y", "r", "z"], constants))
    assert seconds < 1 and memory < 4 << 20


def test_declared_shapes_that_cannot_be():
    assert not independence_of(model([node("Relu", "x", "y")], [value("x", [], INT64)], ["y"])).proved
    many = ["N", *[1] * 500]
    assert independence_of(model([node("Relu", "x", "y")], {"x": many}, ["y"])).proved
