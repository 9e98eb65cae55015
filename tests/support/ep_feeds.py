"""Feeds for a provider's sessions, and what the fake NPU computes from them."""

import numpy as np

from support.fake_npu import info

CPU = "CPUExecutionProvider"
X = np.array([[-3, -2, -1], [0, 1, 2]], np.float32)


def elementwise(npu, function, shape=(2, 3), **ports):
    """The NPU has one input and one output of ``shape``."""
    npu.inputs, npu.outputs = (info("in", shape),), (info("out", shape),)
    npu.compute = lambda arrays: [function(arrays[0])]


def random_feed(session):
    rng = np.random.default_rng(1)
    feed = {}
    for i in session.get_inputs():
        shape = [d if isinstance(d, int) else 1 for d in i.shape]
        if "int64" in i.type:
            feed[i.name] = rng.integers(0, 32, shape)
        elif "bool" in i.type:
            feed[i.name] = rng.random(shape) > 0.5
        else:
            feed[i.name] = rng.random(shape, np.float32)
    return feed
