"""The recipes can be read, and what compares their results finds differences. Nothing is installed."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
if sys.version_info < (3, 11):
    pytest.skip("recipes are read with tomllib", allow_module_level=True)

spec = importlib.util.spec_from_file_location("downstream_run", HERE / "run.py")
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)

RECIPES = sorted(HERE.glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe(path):
    recipe = run.read_recipe(path)
    assert recipe["run"][0] == {"name": "swapped", "equal": recipe["run"][0]["equal"]}  # on the CPU: equal to the bit
    assert all("==" in name for name in recipe["install"])
    assert bool(recipe.get("twin")) == any(one.get("twins") for one in recipe["run"])
    imported = {
        name
        for node in ast.walk(ast.parse((HERE / recipe["script"]).read_text()))
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None)])
    }
    assert not any(name and name.startswith(("ort_rknn", "onnxruntime")) for name in imported)


def test_there_are_three_programs():
    assert len(RECIPES) >= 3


def test_a_recipe_that_is_wrong(tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text('script = "programs/find_pitch.py"\ninstal = []\n[[run]]\nname = "x"\n')
    with pytest.raises(run.Failed, match="instal"):
        run.read_recipe(path)


@pytest.mark.parametrize(
    ("spec", "got", "told", "text"),
    [
        ({"equal": ["a"]}, {"a": [1, 2.0000001]}, "", "a differs"),
        ({"close": {"a": 0.1}}, {"a": [1, 2.2]}, "", "more than 0.1"),
        ({"close": {"a": 0.1}}, {"a": [1]}, "", "more than 0.1"),
        ({"report": ["on the NPU"]}, {}, "on the CPU", "lacks 'on the NPU'"),
    ],
)
def test_what_differs_is_found(spec, got, told, text):
    with pytest.raises(run.Failed, match=text):
        run.compare(spec, {"a": [1, 2.0]}, got, told)


def test_what_does_not_differ(capsys):
    run.compare(
        {"equal": ["a"], "close": {"b": 0.1}, "report": ["x"]}, {"a": "t", "b": [[1]]}, {"a": "t", "b": [[1.05]]}, "x"
    )


def test_used_wrongly(capsys):
    with pytest.raises(SystemExit) as stop:
        run.main(["nothing"])
    assert stop.value.code == 2
    assert "no recipe 'nothing'" in capsys.readouterr().err


def test_a_failing_program_is_a_failure(tmp_path):
    with pytest.raises(run.Failed, match=r"(?s)exit code 3.*a last word"):
        run.call(sys.executable, "-c", "import sys; sys.stderr.write('a last word'); sys.exit(3)")
