"""Type checks programs that use ort_rknn with mypy (strict) and pyright.

    python tests/check_types.py

Every runnable block of the README and of docs/ is accepted by both, and each mistake below is found by both. Needs
mypy, pyright and an installed ort_rknn.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^<!-- runnable -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

#: One a line, after ``import ort_rknn as ort`` and a session ``s``.
MISTAKES = """\
ort.InferenceSessio("m.onnx")
ort.nonsense
from ort_rknn import OptionErrors
ort.InferenceSession("m.onnx", providers=[3])
ort.InferenceSession("m.onnx", provider_options=3)
ort.make_provider_options(shedule=[0])
ort.make_provider_options(threads_per_core=[])
s.runn(None, {})
s.run(None, 3)
s.submit(None, 3)
ort.SessionOptions().intra_op_threads = 3
ort.SessionOptions().add_session_config_entry("a", 1)
ort.GraphOptimizationLevel.ORT_ENABLE_NONE
ort.register(devise="rk3588")
""".splitlines()
#: What both must accept in addition to the pages: spellings of providers and options, and onnxruntime's own names.
ACCEPTED = """\
import numpy as np

import ort_rknn as ort

so = ort.SessionOptions()
so.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
options = ort.make_provider_options(schedule=[0, 1, 2])
names = ["RKNNExecutionProvider", "CPUExecutionProvider"]
ort.InferenceSession(b"", so, names)
ort.InferenceSession("m.onnx", providers="RKNNExecutionProvider", provider_options=options)
ort.InferenceSession("m.onnx", providers=[("RKNNExecutionProvider", options), "CPUExecutionProvider"])
ort.InferenceSession("m.onnx", providers=[("RKNNExecutionProvider", {"schedule": 1})], enable_fallback=0)
ort.InferenceSession("m.onnx", providers=names, provider_options=[options, {}])
with ort.InferenceSession("m.onnx", so) as session:
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(np.zeros(3)))
    session.run_with_iobinding(binding, ort.RunOptions())
    first = session.run(["y"], {"x": np.zeros(3)})[0]
    print(first.shape, session.get_inputs()[0].name.upper(), session.get_modelmeta().version + 1, ort.__version__)
typed: ort.RknnProviderOptions = {"device": "rk3588", "threads_per_core": 2}
"""


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="ort-rknn-types-") as folder:
        good, bad = Path(folder, "accepted"), Path(folder, "mistakes.py")
        good.mkdir()
        (good / "more.py").write_text(ACCEPTED)
        for page in sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")]):
            for i, code in enumerate(BLOCK.findall(page.read_text())):
                (good / f"{page.stem.replace('-', '_')}_{i}.py").write_text(code)
        count = len(list(good.iterdir()))
        assert count > 8, "the pages have no blocks"
        lines = ["import ort_rknn as ort", 's = ort.InferenceSession("m.onnx")', *MISTAKES]
        bad.write_text("\n".join(lines) + "\n")
        wrong = 0
        for checker in (mypy, pyright):
            found = set()
            for file, number, text in checker([*sorted(good.iterdir()), bad], folder):
                if file != bad.name:
                    print(f"{checker.__name__} rejects {file}:{number}: {text}")
                    wrong += 1
                else:
                    found.add(number)
            for number, line in enumerate(lines, 1):
                if (number > 2) != (number in found):
                    print(f"{checker.__name__} {'does not find' if number > 2 else 'rejects'}: {line}")
                    wrong += 1
    print(f"{count} programs, {len(MISTAKES)} mistakes, 2 checkers: {wrong or 'nothing'} wrong")
    return 1 if wrong else 0


#: File, line, text.
Message = tuple[str, int, str]


def mypy(files: list[Path], folder: str) -> list[Message]:
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-color-output", *map(str, files)]
    # Outside a checkout, so that the installed package is checked.
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    if done.returncode not in (0, 1):
        raise SystemExit(done.stdout + done.stderr)
    found = re.findall(r"^(.*?):(\d+): error: (.*)$", done.stdout, re.MULTILINE)
    return [(Path(file).name, int(number), text) for file, number, text in found]


def pyright(files: list[Path], folder: str) -> list[Message]:
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, *map(str, files)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    if done.returncode not in (0, 1):
        raise SystemExit(done.stdout + done.stderr)
    return [
        (Path(d["file"]).name, d["range"]["start"]["line"] + 1, d["message"])
        for d in json.loads(done.stdout)["generalDiagnostics"]
        if d["severity"] == "error"
    ]


if __name__ == "__main__":
    sys.exit(main())
