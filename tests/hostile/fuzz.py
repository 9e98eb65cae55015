"""Coverage-guided fuzzing of the readers, with atheris: ``python tests/hostile/fuzz.py SECONDS [TARGET ...]``.

Each target runs in its own process. Its corpus is kept in ``build/corpus/TARGET``. An input that raises an undocumented
error, or takes more than 1 GB or 20 s, is kept in ``build/found/``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["ort_rknn"], enable_loader_override=False):
    from ort_rknn._arrays import ArrayError, names_in, open_npz, read_member
    from ort_rknn._compile.record import RecordError, read_record
    from ort_rknn._errors import OptionError
    from ort_rknn._independence import independence_of
    from ort_rknn._json import JsonError, parse_json
    from ort_rknn._options import read_options
    from ort_rknn.files import OnnxFileError, Origin, RknnFileError, judge_twin, left_out, read_onnx, read_rknn
    from ort_rknn.files.compatibility import compatibility, parse_info
    from ort_rknn.files.left_out import Disagreement
    from ort_rknn.files.operators import read_operators

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "tests" / "models"
SCRATCH = Path(tempfile.gettempdir()) / "ort_rknn-fuzz.json"


RECORD = {
    "version": 2, "sha256": "0" * 64, "target": "rk3588", "toolkit": "2.5.0", "shapes": {"x": [1, 3]}, "mean": [[1.5]],
    "std": [[2]], "freeze": {"z": [1]}, "fit": "stretch", "data": "/d", "samples": ["a" * 64], "whole": True,
    "lowered": True, "hybrid": False, "algorithm": "mmse", "on_cpu": {"3": "Loop"},
}  # fmt: skip


def of_rknn(data: bytes) -> None:
    for read in (read_rknn, read_operators):
        try:
            found = read(data)
        except RknnFileError:
            continue
        if read is read_rknn:
            judge_twin(found, soc="rk3588", runtime_version="2.3.2")
            compatibility(found, soc="rk3588", runtime="2.3.2", driver="0.9.8")


def of_onnx(data: bytes) -> None:
    try:
        model = read_onnx(data)
        left_out(data, [v.name for v in model.inputs[:1]], [v.name for v in model.outputs])
    except (OnnxFileError, Disagreement):
        pass


def of_proof(data: bytes) -> None:
    try:
        independence_of(data)
    except OnnxFileError:
        pass


def of_record(data: bytes) -> None:
    SCRATCH.write_bytes(data)
    try:
        read_record(SCRATCH, __file__)
    except RecordError:
        pass


def of_json(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    try:
        parse_json(data)
    except JsonError:
        pass
    Origin.parse(text)
    Origin.others_in(text)
    file = parse_info(text)
    if file is not None:
        compatibility(file, soc="rk3588", runtime=text, driver=text)


def of_options(data: bytes) -> None:
    key, _, value = data.decode("utf-8", "replace").partition("=")
    try:
        read_options({key: value})
    except OptionError:
        pass


def of_arrays(data: bytes) -> None:
    import io

    try:
        with open_npz(io.BytesIO(data)) as archive:
            for name in names_in(archive):
                read_member(archive, name, 1 << 20)
    except ArrayError:
        pass


TARGETS = {
    "rknn": (of_rknn, lambda: [p.read_bytes() for p in MODELS.glob("*.rknn")]),
    "onnx": (of_onnx, lambda: [p.read_bytes() for p in MODELS.glob("*.onnx")]),
    "proof": (of_proof, lambda: [p.read_bytes() for p in MODELS.glob("*.onnx")]),
    "record": (of_record, lambda: [json.dumps(RECORD).encode()]),
    "json": (of_json, lambda: [b'{"ort_rknn_origin": {"v": 1, "onnx": ["m", 1, 2, "aa"]}}', b"rknn;target=rk3588"]),
    "options": (of_options, lambda: [b"schedule=0,1", b'layout={"x": "nhwc"}', b'axes={"x": [0]}', b"tp_mode=all"]),
    "arrays": (of_arrays, lambda: [p.read_bytes() for p in MODELS.glob("*.npz") if p.stat().st_size < 20_000][:4]),
}


def fuzz(target: str, seconds: str) -> None:
    run, seeds = TARGETS[target]
    corpus, found = ROOT / "build" / "corpus" / target, ROOT / "build" / "found"
    corpus.mkdir(parents=True, exist_ok=True)
    found.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    limits = ["-timeout=20", "-rss_limit_mb=1024", "-max_len=65536", f"-artifact_prefix={found}/{target}-"]
    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", *limits, str(corpus)], run)
    atheris.Fuzz()


def main(seconds: str, *targets: str) -> int:
    wrong = []
    for target in targets or TARGETS:
        done = subprocess.run([sys.executable, __file__, "--one", target, seconds], capture_output=True, text=True)
        tail = [line for line in done.stderr.splitlines() if line.startswith(("Done", "#"))][-1:]
        print(f"{target}: {'as documented' if done.returncode == 0 else 'WRONG'}: {' '.join(tail)}", flush=True)
        if done.returncode:
            print(done.stderr[-3000:])
            wrong.append(target)
    return len(wrong)


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        fuzz(*sys.argv[2:])
    else:
        sys.exit(main(*sys.argv[1:]))
