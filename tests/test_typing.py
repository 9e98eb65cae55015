"""The names that type checkers know are those that exist."""

import ast
import inspect
import types
from pathlib import Path

import onnxruntime
import pytest

import ort_rknn

STUB = Path(ort_rknn.__file__).with_name("_onnxruntime.pyi")
TREE = ast.parse(STUB.read_text())
CLASSES = {node.name: node for node in TREE.body if isinstance(node, ast.ClassDef)}
#: The stub is for the newest onnxruntime; an older one lacks some of it.
NEWEST = tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 32)
#: Modules of onnxruntime's that its own module imports.
MODULES = {"capi", "onnxruntime_validation"}
OURS = {"InferenceSession", "get_all_providers", "get_available_providers"}


def declared():
    names = set()
    for node in TREE.body:
        if isinstance(node, ast.ImportFrom) and node.module == "onnxruntime":
            names |= {alias.asname for alias in node.names} - MODULES
        elif isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


def there():
    """onnxruntime's public names without modules: which of its submodules are there depends on what was imported."""
    return {n for n, v in vars(onnxruntime).items() if not n.startswith("_") and not isinstance(v, types.ModuleType)}


def members(node):
    names = set()
    for item in node.body:
        if isinstance(item, ast.FunctionDef):
            names.add(item.name)
        elif isinstance(item, ast.AnnAssign):
            names.add(item.target.id)
    return {name for name in names if not name.startswith("_")}


def test_the_stub_has_onnxruntimes_names():
    assert there() <= declared()
    if NEWEST:
        assert declared() == there()


def test_what_the_stub_gives_to_the_module():
    (given,) = (ast.literal_eval(node.value) for node in TREE.body if isinstance(node, ast.Assign))  # __all__
    assert set(given) == (declared() - OURS) | {"__version__", "__author__"} | MODULES
    assert len(given) == len(set(given))


@pytest.mark.parametrize("name", sorted(n for n in CLASSES if not n.startswith("_")))
def test_members_of_a_class(name):
    theirs = getattr(onnxruntime, name, None)
    if theirs is None:
        assert not NEWEST
        pytest.skip("this onnxruntime does not have it")
    if hasattr(theirs, "__members__"):
        real = set(theirs.__members__)
    else:
        real = {n for n in dir(theirs) if not n.startswith("_")}
    assert real <= members(CLASSES[name]) or not NEWEST
    if NEWEST:
        assert members(CLASSES[name]) == real


@pytest.mark.parametrize("name", ["InferenceSession", "OrtValue", "IOBinding"])
@pytest.mark.skipif(not NEWEST, reason="signatures grow with onnxruntime")
def test_parameters(name):
    for item in CLASSES[name].body:
        if not isinstance(item, ast.FunctionDef) or (item.name.startswith("_") and item.name != "__init__"):
            continue
        told = [a.arg for a in (*item.args.posonlyargs, *item.args.args, *item.args.kwonlyargs)]
        real = [
            p.name
            for p in inspect.signature(getattr(getattr(onnxruntime, name), item.name)).parameters.values()
            if p.kind is not p.VAR_KEYWORD
        ]
        bound = isinstance(inspect.getattr_static(getattr(onnxruntime, name), item.name), classmethod)
        assert told[bound:] == real, item.name


def test_type_checkers_know_our_names():
    """Those that are imported at first use are imported for checkers."""
    tree = ast.parse(Path(ort_rknn.__file__).read_text())
    told = {a.asname for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names if a.asname == a.name}
    assert set(ort_rknn._OURS) <= told
