"""The cost of the counters of ``session.stats()`` per run.

The reference is the same code without the counting lines: they are removed from the source of the executor's and the
adapter's run, and the rest is recompiled. Both run the same model on an NPU that takes no time.
"""

from __future__ import annotations

import inspect
import os
import sys
import textwrap

os.environ["ORT_RKNN_VIRTUAL_COMPUTE"] = "pattern"

from measure import DEVICE, MODELS, Verdict, arguments, paired, pin

BAR_US = 0.3


def without(function, *lines):
    """``function`` without these texts, each of which must occur in it."""
    source = textwrap.dedent(inspect.getsource(function))
    for text, instead in lines:
        assert source.count(text) == 1, text
        source = source.replace(text, instead)
    space: dict[str, object] = {}
    exec(
        compile("from __future__ import annotations\n" + source, "<without counters>", "exec"),
        function.__globals__,
        space,
    )
    return space[function.__name__]


def uncounted(executor):
    """Take the counters out of one executor's runs."""
    from ort_rknn._executor.work import Work
    from ort_rknn_librknnrt._context import RuntimeContext

    do = without(
        Work.do,
        (
            """    if lease.timed:
        start, ready, over, end = lease.context.times  # type: ignore[attr-defined]  # see TimesRuns
        lease.convert_ns += ready - start
        lease.run_ns += over - ready
        lease.fetch_ns += end - over
        if sinks:
            record(self.signature, self.label, lease, (start, ready, over, end), asked)
""",
            "",
        ),
    )
    run = without(
        RuntimeContext.run,
        ("    end = perf_counter_ns()\n    self.times = (start, ready, over, end)\n", ""),
        ("call.took(ready - start, end - over)", "call.took(ready - start, perf_counter_ns() - over)"),
    )
    executor._work.__class__ = type("Uncounted", (Work,), {"do": do, "__slots__": ()})
    for lease in executor._leases:
        lease.context.__class__ = type("Uncounted", (RuntimeContext,), {"run": run, "__slots__": ()})


def main():
    given = arguments(__doc__)
    pin()
    import numpy as np

    import ort_rknn

    def session():
        return ort_rknn.InferenceSession(MODELS / "conv_f16.onnx", provider_options={"device": DEVICE, "schedule": "0"})

    verdict = Verdict()
    with session() as counted, session() as bare:
        uncounted(bare._npu.executor)
        calls = []
        for one in (counted, bare):
            executor = one._npu.executor
            call = executor.static_call
            sources = [np.zeros(shape, np.float32) for shape in call.inputs]
            targets = [np.zeros(shape, np.float32) for shape in call.outputs]
            at = [a.ctypes.data for a in sources], [a.ctypes.data for a in targets]
            calls.append(lambda e=executor, c=call, at=at, keep=(sources, targets): e.execute(c, *at))
        turns, number = (20, 200) if given.quick else (400, 500)
        seen = paired(*calls, turns=turns, calls=number)
        ran = counted.stats().total, bare.stats().total
    assert ran[0].runs == ran[1].runs and ran[0].run_seconds > 0 and ran[1].run_seconds == 0
    bar = 5.0 if given.quick else BAR_US
    more = seen.least_ours - seen.least_reference
    verdict.hold(
        f"a run with counters takes {seen.least_ours:.2f} us, without {seen.least_reference:.2f} us: {more:.2f} us "
        f"more (median of the differences {seen.difference:.2f} us)",
        more <= bar,
        f"at most {bar:g} us more",
    )
    return verdict.end()


if __name__ == "__main__":
    sys.exit(main())
