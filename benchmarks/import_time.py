"""The time of ``import ort_rknn`` compared with ``import onnxruntime``, each in fresh processes."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

from measure import ROOT, Verdict, arguments, pin

BAR = 1.15
CODE = "import time; t = time.perf_counter_ns(); import {}; print(time.perf_counter_ns() - t)"


def import_ms(module, byte_code):
    """Milliseconds of the import statement alone, without the interpreter's start."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "adapters"), str(ROOT / "compat")])
    # With byte code, and without OpenBLAS threads that spin during the import.
    env = {**os.environ, "PYTHONPATH": path, "PYTHONPYCACHEPREFIX": byte_code, "OPENBLAS_NUM_THREADS": "1"}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(module)],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout) / 1e6


def main():
    given = arguments(__doc__)
    pin()
    turns = 3 if given.quick else 40
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(turns + 1):
            if turn % 2:
                theirs, ours = import_ms("onnxruntime", folder), import_ms("ort_rknn", folder)
            else:
                ours, theirs = import_ms("ort_rknn", folder), import_ms("onnxruntime", folder)
            if turn:  # the first one fills caches and writes bytecode
                pairs.append((ours, theirs))
    ratio = statistics.median(a / b for a, b in pairs)
    medians = [statistics.median(side) for side in zip(*pairs)]
    verdict = Verdict()
    bar = 2.0 if given.quick else BAR
    verdict.hold(
        f"import ort_rknn {medians[0]:.1f} ms, import onnxruntime {medians[1]:.1f} ms: ratio {ratio:.3f}",
        ratio <= bar,
        f"at most {bar:g}",
    )
    return verdict.end()


if __name__ == "__main__":
    sys.exit(main())
