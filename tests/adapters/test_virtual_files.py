"""Damaged model files, and files that no converter made."""

import os
import subprocess
from pathlib import Path

import pytest
from support.virtual_runtime import MODELS, Runtime

from ort_rknn.adapter import AdapterError
from ort_rknn.files.rknn import read_rknn
from ort_rknn_virtual import _build
from ort_rknn_virtual._standin import CUSTOM_STRING, stand_in

#: Damaged copies per model; ``tox -e sanitizers`` tries more, and others each time.
ROUNDS, SEED = os.environ.get("VIRTUAL_FUZZ_ROUNDS", "4000"), os.environ.get("VIRTUAL_FUZZ_SEED", "11")
LONGEST = 100 if ROUNDS == "4000" else 3600
SOURCES = Path(_build.__file__).parent / "c"


@pytest.fixture(scope="module", params=["as built", "with sanitizers"])
def fuzzer(request, tmp_path_factory):
    """The damage tester: as users build it, and watched by the sanitizers for addresses and undefined behavior."""
    watched = "" if request.param == "as built" else "address,undefined"
    return _program("virtual_fuzz.c", watched, tmp_path_factory.mktemp("fuzz") / "fuzz")


@pytest.fixture(scope="module", params=["", "address,undefined", "thread"])
def caller(request, tmp_path_factory):
    """The program full of mistakes, and what watches it."""
    return _program("virtual_calls.c", request.param, tmp_path_factory.mktemp("calls") / "calls"), request.param


def _program(source, sanitizers, out):
    compiler = _build.find_compiler()
    assert compiler is not None
    files = [str(Path(__file__).with_name(source)), *map(str, SOURCES.glob("*.c"))]
    basic = ["-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-pthread", f"-I{SOURCES}", *files, "-o", str(out), "-lm"]
    watched = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"] if sanitizers else []
    made = subprocess.run([*compiler.command, *watched, *basic], capture_output=True, text=True)
    if watched and made.returncode and _fails_on_anything(compiler, watched, out):
        pytest.skip(f"{compiler.command[0]} comes without the libraries of its sanitizers")
    assert made.returncode == 0, made.stderr
    return out


def _fails_on_anything(compiler, flags, out):
    made = subprocess.run(
        [*compiler.command, *flags, "-x", "c", "-", "-o", str(out)],
        input="int main(void) { return 0; }\n",
        text=True,
        capture_output=True,
    )
    return made.returncode != 0


def test_sources_compile_without_a_warning(tmp_path):
    compiler = _build.find_compiler()
    assert compiler is not None
    flags = ["-std=c11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Wshadow", "-Werror"]
    for file in SOURCES.glob("*.c"):
        done = subprocess.run(
            [*compiler.command, *flags, "-c", str(file), "-o", str(tmp_path / "out.o")],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


def _made(kind):
    if kind == "static":
        inputs = [("x", "float32", (1, 3, 8, 8)), ("ids", "int64", (1, 5)), ("b", "bool", (2,))]
        return stand_in(inputs, [("y", "float32", (1, 4, 4, 4)), ("k", "int64", (3,))], "rk3588")
    sets = [([(1, 3, 8, 8)], [(1, 4, 8, 8)]), ([(1, 3, 4, 4)], [(1, 4, 4, 4)])]
    return stand_in([("x", "float32", (1, 3, 8, 8))], [("y", "float32", (1, 4, 8, 8))], "rk3588", shape_sets=sets)


@pytest.mark.parametrize("name", ["static", "dynamic", "conv_i8", "image_u8", "dynamic.real", "mean_std"])
def test_damage_is_survived(fuzzer, tmp_path, name):
    soc = "rk3562" if name == "mean_std" else "rk3588"
    if name in ("static", "dynamic"):
        model = tmp_path / "model.rknn"
        model.write_bytes(_made(name))
    else:
        model = MODELS / f"{name.removesuffix('.real')}.{soc}.rknn"
    environ = {**os.environ, "RKNN_VIRTUAL_SOC": soc}
    command = [fuzzer, model, ROUNDS, SEED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "refused" in done.stdout


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("name", ["conv_f16", "dynamic"])
def test_mistakes_are_answered_with_a_code(caller, name, threads):
    """Destroyed or busy contexts, memory of other contexts, buffers that are too small, calls in any order: they return
    documented codes, touch only the library's memory, and leave nothing allocated."""
    program, sanitizers = caller
    command = [program, MODELS / f"{name}.rk3588.rknn", "1500" if sanitizers == "thread" else "5000", "7", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    if sanitizers == "thread" and "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer does not run on this kernel")
    assert done.returncode == 0, done.stdout + done.stderr


def test_stand_in_is_what_a_reader_expects():
    inputs = [("x", "float32", (1, 3, 8, 8)), ("ids", "int64", (1, 5))]
    inputs += [("naïve'\"\\", "bool", ()), ("d", "float64", (2,))]
    outputs = [("y", "float32", (1, 4, 4, 4)), ("k", "int32", (3,))]
    file = read_rknn(stand_in(inputs, outputs, "rk3576"))
    assert file.unknown == ()
    assert (file.targets, file.custom_string, file.dynamic) == (("rk3576",), CUSTOM_STRING, False)
    assert [(p.name, p.dtype, p.shape, p.runtime_dtype) for p in file.inputs + file.outputs] == [
        ("x", "float32", (1, 3, 8, 8), "float16"),
        ("ids", "int64", (1, 5), "int64"),
        ("naïve'\"\\", "bool", (1,), "bool"),
        ("d", "float64", (2,), "float16"),
        ("y", "float32", (1, 4, 4, 4), "float16"),
        ("k", "int32", (3,), "int32"),
    ]


@pytest.mark.parametrize("soc", ["rk3588", "rk3576", "rk3566", "rk3568", "rk3562"])
def test_stand_in_loads_on_its_soc(soc):
    rt = Runtime(soc)
    name = "naïve'\"\\/\u4e2d\U0001f600"
    context = rt.open(stand_in([(name, "uint8", (2, 3, 4, 5))], [("y", "int16", (7,))], soc))
    assert (rt.attr(context, 1).name.decode(), rt.attr(context, 1).shape, rt.attr(context, 1).type) == (
        name,
        (2, 4, 5, 3),
        3,
    )
    assert (rt.attr(context, 2).shape, rt.attr(context, 2).type) == ((7,), 4)
    rt.destroy(context)


def test_dynamic_stand_in():
    file = read_rknn(_made("dynamic"))
    assert file.unknown == () and file.dynamic
    assert file.shape_sets == (((1, 3, 8, 8),), ((1, 3, 4, 4),))


@pytest.mark.parametrize(
    ("inputs", "outputs", "soc", "word"),
    [
        ([("x", "float32", (1, 0))], [("y", "float32", (1,))], "rk3588", "dimension"),
        ([("x", "complex64", (1,))], [("y", "float32", (1,))], "rk3588", "complex64"),
        ([("x", "float32", (1 << 20, 1 << 20))], [("y", "float32", (1,))], "rk3588", "'x'"),
        ([("x", "float32", (1,))], [], "rk3588", "outputs"),
        ([("x", "float32", (1,))], [("x", "float32", (1,))], "rk3588", "different names"),
        ([("x", "float32", (1,))], [("y", "float32", (1,))], "rk9999", "rk3588"),
    ],
)
def test_what_a_stand_in_cannot_be(inputs, outputs, soc, word):
    with pytest.raises(AdapterError, match=word):
        stand_in(inputs, outputs, soc)
