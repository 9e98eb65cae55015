"""The house: which module may import which. Read from the sources, imports inside functions and for type checkers
included."""

import ast
import functools
import graphlib
import sys
from pathlib import Path

import onnxruntime
import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "ort_rknn").is_dir(), reason="the sources are not here")

#: From the bottom to the top. A folder imports what stands before it; folders of one layer do not import each other.
LAYERS = (
    ("_onnxruntime", "_cache", "_errors", "_interrupts", "_locks", "_regular", "_rknpu", "_tensors", "_version"),
    ("_arrays", "_environment", "_json"),
    ("adapter",),
    ("files",),
    ("_options", "_independence"),
    ("_concurrency", "_compile"),
    ("_executor",),
    ("_planning",),
    ("_ep",),
    ("_measure",),
    ("_session",),
    ("_bench", "_checking", "_selftest"),
    ("",),  # ort_rknn/__init__.py
    ("_cli",),
    ("__main__",),
)
#: Public submodules; all others are underscored, because a name of ours would shadow one of onnxruntime's.
PUBLIC_FOLDERS = {"adapter", "files"}


@functools.cache
def modules():
    """Module name -> (source file, whether it is a package)."""
    found = {}
    for base in (ROOT, ROOT / "adapters", ROOT / "compat"):
        for top in base.glob("ort_rknn*"):
            for path in top.rglob("*.py*"):
                if path.suffix in (".py", ".pyi"):
                    parts = path.relative_to(base).with_suffix("").parts
                    package = parts[-1] == "__init__"
                    found[".".join(parts[:-1] if package else parts)] = (path, package)
    return found


@functools.cache
def imports(name):
    """The modules of ours that a module imports."""
    path, package = modules()[name]
    here = name.split(".") if package else name.split(".")[:-1]
    out = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            out.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            out.update(f"{source}.{a.name}" if f"{source}.{a.name}" in modules() else source for a in node.names)
    return {m for m in out if m.split(".")[0].startswith("ort_rknn") and m != name}


def core():
    return [name for name in modules() if name.split(".")[0] == "ort_rknn"]


def folder(name):
    return name.split(".")[1] if "." in name else ""


def test_the_reader_of_imports_sees_all_kinds():
    seen = imports("ort_rknn._planning.facts")
    assert {"ort_rknn._errors", "ort_rknn.files", "ort_rknn._planning.in_parts"} <= seen  # the last in a function
    assert "ort_rknn._onnxruntime" in imports("ort_rknn._session.session")  # for type checkers
    assert len(core()) > 100


def test_imports_go_downward_only():
    layer = {name: number for number, folders in enumerate(LAYERS) for name in folders}
    assert {folder(name) for name in core()} == layer.keys()
    wrong = {
        (name, imported)
        for name in core()
        for imported in imports(name)
        if imported.split(".")[0] == "ort_rknn"
        and folder(imported) != folder(name)
        and layer[folder(imported)] >= layer[folder(name)]
    }
    assert wrong == set()


def test_no_module_is_in_a_cycle():
    done, path = set(), []

    def walk(name):
        if name in path:
            raise AssertionError(" -> ".join([*path[path.index(name) :], name]))
        if name in done:
            return
        path.append(name)
        for imported in sorted(imports(name) & modules().keys()):
            # A module of a package imports the package itself only to get at another module of it.
            if not name.startswith(imported + "."):
                walk(imported)
        path.pop()
        done.add(name)

    for name in modules():
        walk(name)


def test_no_package_is_in_a_cycle():
    """The distributed packages: the core, the adapters, and what is built on the core."""
    needs = {}
    for name in modules():
        package = name.split(".")[0]
        needs.setdefault(package, set()).update({i.split(".")[0] for i in imports(name)} - {package})
    assert graphlib.TopologicalSorter(needs).prepare() is None  # raises CycleError


def test_the_core_imports_no_adapter_and_no_face():
    assert {(m, i) for m in core() for i in imports(m) if i.split(".")[0] != "ort_rknn"} == set()
    for name in core():
        others = {m.split(".")[0] for m in modules()} - {"ort_rknn"}
        strings = {n.value for n in ast.walk(ast.parse(modules()[name][0].read_text())) if isinstance(n, ast.Constant)}
        assert not others & {s.split(".")[0] for s in strings if isinstance(s, str)}, name


def test_adapters_import_the_public_doors_only():
    reach = {
        (name.split(".")[0], imported)
        for name, (path, _) in modules().items()
        if (ROOT / "adapters") in path.parents
        for imported in imports(name)
        if imported.split(".")[0] == "ort_rknn" and folder(imported) not in PUBLIC_FOLDERS
    }
    assert reach == set()


def test_public_submodules():
    public = {folder(name) for name in core() if not folder(name).startswith("_")} - {""}
    assert public == PUBLIC_FOLDERS
    # A later release's name would be ours to give up: a new one of this kind is a reason to rename a door.
    theirs = Path(onnxruntime.__file__).parent
    assert not {path.stem for path in theirs.iterdir()} & PUBLIC_FOLDERS
    assert not {name.split(".")[1] for name in sys.modules if name.startswith("onnxruntime.")} & PUBLIC_FOLDERS


#: Functions beyond the bounds, each with its reason.
_SPELLED_OUT = "every option is a keyword that editors complete"
_THEIRS = "the signature of another library"
_ONE_STRUCTURE = "fills in one structure, field by field"
LONG_OR_WIDE = {
    "ort_rknn._options.make_provider_options": _SPELLED_OUT,
    "ort_rknn._checking.check.check": _SPELLED_OUT,
    "ort_rknn._compile.call.convert": _SPELLED_OUT,
    "ort_rknn_ray._boards.__init__": _SPELLED_OUT,
    "ort_rknn_ez_async._binding.bind_output": _THEIRS,
    "ort_rknn_ez_async._values.ortvalue_from_numpy": _THEIRS,
    "ort_rknn_ez_async._values.ortvalue_from_shape_and_type": _THEIRS,
    "ort_rknn_ez_async._values.ortvalue_from_dmabuf": _THEIRS,
    "ort_rknn_ez_async.options.make_provider_options": _THEIRS,
    "ort_rknn._ep.context_nodes.context_node": _ONE_STRUCTURE,
    "ort_rknn.files.wrapper.ep_context_model": _ONE_STRUCTURE,
    "ort_rknn._compile.spec.part_spec": _ONE_STRUCTURE,
    "ort_rknn_librknnrt.runtime.__init__": _ONE_STRUCTURE,
}


def test_functions_are_short_and_take_few_parameters():
    """At most 60 lines, docstring included, and seven parameters besides ``self``."""
    beyond = set()
    for name, (path, _) in modules().items():
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                wide = len(given) - (given[:1] != [] and given[0].arg in ("self", "cls")) > 7
                if wide or node.end_lineno - node.lineno + 1 > 60:
                    beyond.add(f"{name}.{node.name}")
    assert beyond == LONG_OR_WIDE.keys()


#: Lines of the largest module. Only ever lowered.
LARGEST_MODULE = 455


def test_modules_are_small():
    lines = {name: len(path.read_text().splitlines()) for name, (path, _) in modules().items()}
    largest = max(lines, key=lambda name: lines[name])
    assert lines[largest] <= LARGEST_MODULE, (largest, lines[largest])


#: Class names that stand more than once, each with its reason.
NAMESAKES = {
    "InferenceSession": "the name of onnxruntime's class in each API that takes its place",
    "RknnProviderOptions": "the name of the other API's class",
}


def test_no_class_name_stands_twice():
    """One name per thing: a class name identifies the class everywhere."""
    homes = {}
    for name, (path, _) in modules().items():
        if path.suffix == ".py":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    homes.setdefault(node.name.lstrip("_"), []).append(name)
    twice = {name: where for name, where in homes.items() if len(where) > 1}
    assert twice.keys() == NAMESAKES.keys(), twice
