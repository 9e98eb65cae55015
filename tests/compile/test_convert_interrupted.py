"""A conversion that is killed, or whose disk is full, leaves each file either unchanged or complete."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from support.models_in_parts import value, weights

from ort_rknn._compile.record import read_record, record_path
from ort_rknn.files.hashes import sha256_of

MODELS = Path(__file__).parent.parent / "models"

OLDER, NEWER = "conv_f16.rk3588.rknn", "image_u8.rk3588.rknn"
#: Converts in a process of its own for each line of stdin. That one is killed before or after it gives file number AT
#: its name, or finds the disk full at that one. Answers with the exit code, the number of files, and what was said.
SCRIPT = """
import json, os, resource, signal, sys, tempfile
import ort_rknn._compile.convert
from ort_rknn._cli.main import main

rename, mkstemp = os.replace, tempfile.mkstemp

def convert(how, at, argv, saying, counted):
    named = opened = 0

    def naming(source, place):
        nonlocal named
        if os.fspath(place).startswith(os.path.dirname(argv[1])):
            named += 1
            os.write(counted, b".")
        if named == at and how == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, place)
        if named == at and how == "after":
            os.kill(os.getpid(), signal.SIGKILL)

    def opening(*args, **given):
        nonlocal opened
        opened += os.fspath(given.get("dir") or "").startswith(os.path.dirname(argv[1]))
        if opened == at and how == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return mkstemp(*args, **given)

    os.replace, tempfile.mkstemp = naming, opening
    os.dup2(saying, 1)
    os.dup2(saying, 2)
    code = main(argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

for line in sys.stdin:
    how, at, becomes, argv = json.loads(line)
    os.environ["FAKE_TOOLKIT_ANY"] = becomes
    said, saying = os.pipe()
    files, counted = os.pipe()
    child = os.fork()
    if not child:
        convert(how, at, argv, saying, counted)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(saying)
    os.close(counted)
    print(json.dumps([code, len(os.read(files, 100)), os.read(said, 1 << 16).decode()]), flush=True)
    os.close(said)
    os.close(files)
"""


@pytest.fixture(scope="module")
def converting(toolkit_python, tmp_path_factory):
    """A function that converts in a separate process, without starting Python each time."""
    cache = tmp_path_factory.mktemp("cache")
    environment = {**os.environ, "FAKE_TOOLKIT_MODELS": str(MODELS), "XDG_CACHE_HOME": str(cache)}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def convert(path, becomes, how="", at=0):
            argv = ["convert", str(path), "--target", "rk3588", "--toolkit", toolkit_python]
            process.stdin.write(json.dumps([how, at, becomes, argv]) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield convert
        process.stdin.close()


def write_model(path, *, parts):
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)]
    if parts:  # the stand-in for the converter refuses a model with a node of this name
        nodes += [
            helper.make_node("Identity", ["y"], ["b"]),
            helper.make_node("Det", ["b"], ["d"], name="a.domain"),
            helper.make_node("Mul", ["b", "d4"], ["c"]),
            helper.make_node("Conv", ["c", "v"], ["z"], pads=[1] * 4),
        ]
        nodes.insert(3, helper.make_node("Unsqueeze", ["d", "axes"], ["d4"]))
    outputs = [value("z" if parts else "y", [1, 4, 8, 8])]
    constants = [weights("w", (4, 3, 3, 3), 1), weights("v", (4, 4, 3, 3), 2)]
    constants.append(onnx.numpy_helper.from_array(np.array([2, 3]), "axes"))
    graph = helper.make_graph(nodes, "g", [value("x", [1, 3, 8, 8])], outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def assert_whole(folder):
    """Every file under its final name is complete, from the older or the newer conversion, and the record belongs to
    the present result."""
    known = [(MODELS / name).read_bytes() for name in (OLDER, NEWER)]
    results = [path for path in folder.rglob("*.rknn") if not path.name.startswith(".")]
    for path in results:
        assert path.read_bytes() in known, path
    found = [path for path in (folder / "m.rk3588_ctx.onnx", folder / "m.rk3588.rknn") if path.exists()]
    place = record_path(folder, "m", "rk3588")
    assert found or not place.exists()
    if found:
        assert read_record(place, str(folder / "m.onnx")).result == sha256_of(found[0])
    for path in folder.glob("*_ctx.onnx"):
        for node in onnx.load(path).graph.node:
            for attribute in node.attribute:
                if attribute.name == "ep_cache_context":
                    assert (folder / attribute.s.decode()).is_file()


@pytest.fixture(scope="module", params=[False, True], ids=["whole", "parts"])
def older(request, converting, tmp_path_factory):
    """A folder with an ONNX and an older conversion of it, and how many files got a name: the parts, the record under
    its hidden name, the result, the record."""
    folder = tmp_path_factory.mktemp("older")
    write_model(folder / "m.onnx", parts=request.param)
    code, names, said = converting(folder / "m.onnx", OLDER)
    assert (code, names) == (0, 5 if request.param else 3), said
    return folder, names


def test_the_first_conversion_is_killed(older, converting, tmp_path):
    folder, names = older
    for at in (names - 1, names):
        first = tmp_path / str(at)
        first.mkdir()
        shutil.copy(folder / "m.onnx", first)
        code, files, said = converting(first / "m.onnx", NEWER, "before", at)
        assert (code, files) == (-9, at), said
        assert_whole(first)


def test_a_full_disk_leaves_nothing_of_a_first_conversion(older, converting, tmp_path):
    folder, names = older
    for at in range(1, names):
        first = tmp_path / str(at)
        first.mkdir()
        shutil.copy(folder / "m.onnx", first)
        code, _, said = converting(first / "m.onnx", NEWER, "full", at)
        assert code == 1, said
        assert sorted(os.listdir(first)) == ["m.convert.log", "m.onnx"]
        assert f"ort-rknn: {first}{os.sep}" in said


@pytest.mark.parametrize("how", ["before", "after", "full"])
def test_what_is_interrupted(older, converting, tmp_path, how):
    folder, names = older
    before = sorted(os.listdir(folder))
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    code, _, said = converting(tmp_path / "m.onnx", NEWER, how, names - 1)  # the result
    assert_whole(tmp_path)
    if how == "full":
        assert code == 1, said
        assert "File too large" in said and "Traceback" not in said
        assert sorted(os.listdir(tmp_path)) == before
    else:
        assert code == -9
    code, _, said = converting(tmp_path / "m.onnx", OLDER)  # takes away what the killed one left
    assert code == 0, said
    assert sorted(os.listdir(tmp_path)) == before
    assert all(each.read_bytes() == (MODELS / OLDER).read_bytes() for each in tmp_path.rglob("*.rknn"))
