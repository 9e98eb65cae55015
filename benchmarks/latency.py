"""The overhead of a blocking run compared with the bare runtime calls, on an NPU that takes no time.

Ours is ``InferenceSession.run`` on the virtual NPU at zero simulated time. The reference makes the same four calls to
the same library with bare ctypes: inputs_set, run, outputs_get into a buffer of the caller, outputs_release. Both
convert the same inputs and compute the same pattern, so the difference is the overhead of onnxruntime, the execution
provider, the executor and the adapter.
"""

from __future__ import annotations

import ctypes
import os
import sys

os.environ["ORT_RKNN_VIRTUAL_COMPUTE"] = "pattern"

from measure import DEVICE, MODELS, SOC, Verdict, arguments, paired, pin

BAR_US = 21.0


class Bare:
    """One context and the structures of one call, prepared once; :meth:`run` makes only the four calls."""

    def __init__(self, library, model, inputs, outputs):
        from ort_rknn.adapter import rknn_api as abi

        self.library = ctypes.CDLL(library)
        context = ctypes.c_uint64()
        blob = model if isinstance(model, bytes) else model.read_bytes()
        code = self.library.rknn_init(ctypes.byref(context), blob, len(blob), 0, None)
        assert code == 0, f"rknn_init: {code}"
        self.context = context
        self.arrays = inputs, outputs
        self.inputs = (abi.Input * len(inputs))()
        for k, array in enumerate(inputs):
            layout = abi.LAYOUT_CODES["NCHW" if array.ndim == 4 else "UNDEFINED"]
            self.inputs[k] = abi.Input(k, array.ctypes.data, array.nbytes, 0, abi.DTYPE_CODES[array.dtype.name], layout)
        self.outputs = (abi.Output * len(outputs))()
        for k, array in enumerate(outputs):
            self.outputs[k] = abi.Output(1, 1, k, array.ctypes.data, array.nbytes)
        n_in, n_out = ctypes.c_uint32(len(inputs)), ctypes.c_uint32(len(outputs))
        self.calls = (
            (self.library.rknn_inputs_set, (context, n_in, ctypes.byref(self.inputs))),
            (self.library.rknn_run, (context, None)),
            (self.library.rknn_outputs_get, (context, n_out, ctypes.byref(self.outputs), None)),
            (self.library.rknn_outputs_release, (context, n_out, ctypes.byref(self.outputs))),
        )

    def run(self):
        for function, given in self.calls:
            if function(*given):
                raise RuntimeError("a call of the runtime failed")

    def close(self):
        self.library.rknn_destroy(self.context)


def compare(verdict, name, model, compiled, library, quick):
    import numpy as np

    import ort_rknn

    with ort_rknn.InferenceSession(model, provider_options=[{"device": DEVICE, "schedule": "0"}]) as session:
        assert session.get_providers()[0] == "RKNNExecutionProvider", session.explain()
        rng = np.random.default_rng(0)
        feed = {i.name: rng.random(i.shape, np.float32) for i in session.get_inputs()}
        outputs = [np.empty(o.shape, np.float32) for o in session.get_outputs()]
        bare = Bare(library, compiled, list(feed.values()), outputs)
        try:
            bare.run()
            for ours, theirs in zip(session.run(None, feed), outputs):
                np.testing.assert_array_equal(ours, theirs)
            names = [o.name for o in session.get_outputs()]
            turns, calls = (10, 50) if quick else (400, 100)
            seen = paired(lambda: session.run(names, feed), bare.run, turns=turns, calls=calls)
        finally:
            bare.close()
    bar = 500.0 if quick else BAR_US
    # The quickest batches: other load on the machine can only add time.
    more = seen.least_ours - seen.least_reference
    ratio = seen.least_ours / seen.least_reference
    verdict.hold(
        f"{name}: a run takes {seen.least_ours:.1f} us, the bare calls {seen.least_reference:.1f} us: {more:.1f} us "
        f"more, ratio {ratio:.2f} (medians {seen.ours:.1f} and {seen.reference:.1f} us, "
        f"{seen.difference:.1f} us more)",
        more <= bar,
        f"at most {bar:g} us more",
    )


def tiny(device):
    """A model with one input value and one output value, and its stand-in."""
    from ort_rknn_demo._onnx import identity
    from ort_rknn_virtual import VirtualAdapter

    ports = [("x", "float32", (1, 1, 1, 1))], [("y", "float32", (1, 1, 1, 1))]
    return identity((1, 1, 1, 1)), VirtualAdapter().stand_in(device, *ports)


def main():
    given = arguments(__doc__)
    pin()
    from ort_rknn._planning.discovery import survey
    from ort_rknn.adapter import Query
    from ort_rknn_virtual.control import virtual_npu

    npu = virtual_npu(SOC)
    npu.reset()
    verdict = Verdict()
    compiled = MODELS / f"conv_f16.{SOC}.rknn"
    compare(verdict, "conv_f16", MODELS / "conv_f16.onnx", compiled, str(npu.library), given.quick)
    device = survey(Query(device=DEVICE)).found[0].device
    compare(verdict, "a stand-in of one value", *tiny(device), str(npu.library), given.quick)
    return verdict.end()


if __name__ == "__main__":
    sys.exit(main())
