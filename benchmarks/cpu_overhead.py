"""The overhead of our session if the CPU runs the model: a one-node model, ours against plain onnxruntime."""

from __future__ import annotations

import sys

from measure import Verdict, arguments, paired, pin

BAR = 1.02


def main():
    given = arguments(__doc__)
    pin()
    import numpy as np
    import onnxruntime

    import ort_rknn
    from ort_rknn_demo._onnx import identity

    shape = (1, 16)
    model = identity(shape)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    cpu = ["CPUExecutionProvider"]
    plain = onnxruntime.InferenceSession(model, options, providers=cpu)
    again = onnxruntime.InferenceSession(model, options, providers=cpu)
    ours = ort_rknn.InferenceSession(model, options, providers=cpu)
    fallen_back = ort_rknn.InferenceSession(model, options)
    assert fallen_back.get_providers() == cpu, "this benchmark is for a machine without an NPU"
    feed = {"x": np.ones(shape, np.float32)}

    def runs(session):
        return lambda: session.run(None, feed)

    turns, calls = (6, 300) if given.quick else (1000, 500)
    bar = 1.5 if given.quick else BAR
    verdict = Verdict()
    noise = paired(runs(again), runs(plain), turns=max(turns // 4, 6), calls=calls)
    for name, session in (("providers=[CPU]", ours), ("no provider named, no NPU there", fallen_back)):
        seen = paired(runs(session), runs(plain), turns=turns, calls=calls)
        verdict.hold(
            f"{name}: {seen.ours:.2f} us a run, plain onnxruntime {seen.reference:.2f} us: ratio {seen.ratio:.4f} "
            f"(plain against plain {noise.ratio:.4f})",
            seen.ratio <= bar,
            f"at most {bar:g}",
        )
    return verdict.end()


if __name__ == "__main__":
    sys.exit(main())
