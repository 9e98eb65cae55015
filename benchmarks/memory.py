"""Memory of a session over a 200 MB ONNX and its compiled twin, compared with a session over the compiled model alone.

Only the ONNX's signature and metadata are read, so its size should affect neither resident memory nor the peak.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import DEVICE, MODELS, SOC, Verdict, arguments

BAR_MB = 10.0
COMPILED = MODELS / f"conv_f16.{SOC}.rknn"


def write_onnx(path, megabytes):
    """An ONNX with the signature of conv_f16, and an initializer of ``megabytes`` MB."""
    import numpy as np

    from ort_rknn.files._wire import BYTES, bytes_field, int_field, text_field, varint
    from ort_rknn_demo._onnx import float_tensor, node, value

    size = megabytes * 1_000_000 // 4 * 4
    ballast = int_field(1, size // 4) + int_field(2, 1) + text_field(8, "ballast")
    ballast += varint(9 << 3 | BYTES) + varint(size)
    kernel = float_tensor(np.zeros((8, 3, 3, 3), np.float32), "w")
    conv = node("Conv", ["x", "w"], "y", kernel_shape=(3, 3), pads=(1, 1, 1, 1), strides=(2, 2))
    first = bytes_field(1, conv) + text_field(2, "large") + bytes_field(5, kernel)
    first += varint(5 << 3 | BYTES) + varint(len(ballast) + size) + ballast
    last = bytes_field(11, value("x", (1, 3, 32, 32))) + bytes_field(12, value("y", (1, 8, 16, 16)))
    opset = bytes_field(8, text_field(1, "") + int_field(2, 13))
    with open(path, "wb") as file:
        file.write(int_field(1, 8) + varint(7 << 3 | BYTES) + varint(len(first) + size + len(last)) + first)
        block = np.random.default_rng(0).random(250_000, np.float32).tobytes()
        left = size
        while left:
            left -= file.write(block[:left])
        file.write(last + opset)


def status(field):
    """A field of /proc/self/status in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def child(model):
    """In a separate process: by how much a session and its first runs increase resident memory and its peak."""
    import numpy as np

    import ort_rknn

    # The one-time cost of a process's first session (registration, imports) is excluded.
    options = [{"device": DEVICE, "schedule": "0"}]
    feed = {"x": np.ones((1, 3, 32, 32), np.float32)}
    with ort_rknn.InferenceSession(COMPILED, provider_options=options) as warm:
        warm.run(None, feed)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    session = ort_rknn.InferenceSession(model, provider_options=options)
    assert session.get_providers()[0] == "RKNNExecutionProvider", session.explain()
    for _ in range(3):
        session.run(None, feed)
    print(status("VmRSS") - before, status("VmHWM") - before)
    session.close()


def grown(model):
    done = subprocess.run(
        [sys.executable, __file__, "--child", str(model)],
        env={**os.environ, "ORT_RKNN_VIRTUAL_COMPUTE": "pattern"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return tuple(map(float, done.stdout.split()))


def main():
    given = arguments(__doc__)
    megabytes = 30 if given.quick else 200
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "large.onnx"
        write_onnx(model, megabytes)
        shutil.copy(COMPILED, Path(folder) / f"large.{SOC}.rknn")
        # The lowest of a few: allocators vary from run to run, and only upwards.
        attempts = 1 if given.quick else 5
        ours = [min(x) for x in zip(*(grown(model) for _ in range(attempts)))]
        alone = [min(x) for x in zip(*(grown(COMPILED) for _ in range(attempts)))]
    verdict = Verdict()
    for what, mine, theirs in zip(("resident", "at its peak"), ours, alone):
        verdict.hold(
            f"{what}: a session over {megabytes} MB of ONNX and its twin {mine:+.2f} MB, over the .rknn alone "
            f"{theirs:+.2f} MB: {mine - theirs:+.2f} MB, {(mine - theirs) / megabytes:.4f} of the ONNX",
            mine - theirs < BAR_MB,
            f"less than {BAR_MB:g} MB",
        )
    return verdict.end()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2])
        sys.exit(0)
    sys.exit(main())
