"""Every proof is true: random graphs are run with the whole batch and with each sample alone."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from support.random_graphs import Drawn, options

from ort_rknn._independence import independence_of

BLOCK = 15


def disagreement(drawn: Drawn, output: str) -> str | None:
    """Whether stacking samples changes any: run whole, and each sample alone, with the CPU."""
    content = drawn.content(output)
    session = onnxruntime.InferenceSession(content, options(), providers=["CPUExecutionProvider"])
    for seed in range(2):
        feeds = drawn.feeds(seed)
        whole = session.run(None, feeds)[0]
        if whole.shape[:1] != (drawn.count,):
            return f"shape {whole.shape} for {drawn.count} samples"
        for at in range(drawn.count):
            try:
                alone = session.run(None, {name: array[at : at + 1] for name, array in feeds.items()})[0]
            except Exception as problem:
                return f"sample {at} alone: {problem}"
            if alone.shape != (1, *whole.shape[1:]):
                return f"sample {at} alone has the shape {alone.shape}, among others {whole.shape}"
            if not np.allclose(alone[0], whole[at], rtol=1e-3, atol=1e-3, equal_nan=True):
                return f"sample {at} differs by {np.abs(alone[0].astype(float) - whole[at].astype(float)).max()}"
    return None


def judge(seed: int) -> tuple[int, int]:
    """How many outputs of a drawn graph were proved, and how many were looked at."""
    drawn = Drawn(seed)
    outputs = drawn.candidates()[:4]
    proved = 0
    for output in outputs:
        found = independence_of(drawn.content(output))
        if found.proved:
            proved += 1
            difference = disagreement(drawn, output)
            assert difference is None, f"seed {seed}, output {output}: {difference}"
    return proved, len(outputs)


@pytest.mark.parametrize("block", range(20))
def test_no_proof_is_wrong(block):
    proved = sum(judge(seed)[0] for seed in range(block * BLOCK, (block + 1) * BLOCK))
    assert proved > 0
