"""The cost of a part of a model in parts: `run` through k parts, compared with the runtime's runs and the CPU's
nodes."""

from __future__ import annotations

import os
import sys

from measure import DEVICE, SOC, Verdict, arguments, paired, pin

BAR = 15.0
PARTS = 4
SHAPE = (1, 4, 4, 4)


def models():
    """A chain part, Neg, part, Neg ... with EPContext nodes, and the Negs alone."""
    from onnx import TensorProto, helper

    from ort_rknn_virtual._standin import stand_in

    ours, negs = [], []
    for k in range(PARTS):
        content = stand_in([(f"n{k}", "float32", SHAPE)], [(f"p{k}", "float32", SHAPE)], SOC)
        ours.append(
            helper.make_node(
                "EPContext", [f"n{k}"], [f"p{k}"], name=f"part{k}", domain="com.microsoft", main_context=1,
                embed_mode=1, ep_cache_context=content, source="RKNNExecutionProvider",
            )
        )  # fmt: skip
        ours.append(helper.make_node("Neg", [f"p{k}"], [f"n{k + 1}"]))
        negs.append(helper.make_node("Neg", [f"n{k}"], [f"n{k + 1}"]))
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, SHAPE) for n in ("n0", f"n{PARTS}")]
    hidden = [helper.make_tensor_value_info(f"p{k}", TensorProto.FLOAT, SHAPE) for k in range(PARTS)]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    for nodes, inner in ((ours, hidden), (negs, [])):
        graph = helper.make_graph(nodes, "g", values[:1], values[1:], value_info=inner)
        yield helper.make_model(graph, ir_version=8, opset_imports=imports).SerializeToString()


def main():
    given = arguments(__doc__)
    pin()
    os.environ["ORT_RKNN_VIRTUAL_COMPUTE"] = "pattern"
    import numpy as np
    import onnxruntime

    import ort_rknn

    in_parts, negs = models()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort_rknn.InferenceSession(in_parts, options, provider_options={"device": DEVICE, "schedule": "0"})
    # Without the optimizer, which removes pairs of Negs.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    cpu = onnxruntime.InferenceSession(negs, options, providers=["CPUExecutionProvider"])
    feed = {"n0": np.ones(SHAPE, np.float32)}
    array, result = np.ones(SHAPE, np.float32), np.empty(SHAPE, np.float32)
    bare = []
    for executor in session._npu.executors:
        call = executor.call_for((SHAPE,))
        assert call.direct
        bare.append((executor._leases[0].context.run, call.form))
    assert len(bare) == PARTS

    def reference():
        cpu.run(None, feed)
        for run, form in bare:
            run(form, [array.ctypes.data], [result.ctypes.data])

    turns, calls = (6, 50) if given.quick else (200, 200)
    seen = paired(lambda: session.run(None, feed), reference, turns=turns, calls=calls)
    each = seen.difference / PARTS
    verdict = Verdict()
    verdict.hold(
        f"{PARTS} parts: {seen.ours:.1f} us a run, the CPU's nodes and the runtime's runs {seen.reference:.1f} us: "
        f"{each:.1f} us more per part",
        each <= (100 if given.quick else BAR),
        f"at most {100 if given.quick else BAR:g} us",
    )
    session.close()
    return verdict.end()


if __name__ == "__main__":
    sys.exit(main())
