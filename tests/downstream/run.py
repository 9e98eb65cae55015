"""Third-party programs, unmodified, with onnxruntime and with ort_rknn in its place.

    python tests/downstream/run.py                  # everything, from nothing
    python tests/downstream/run.py magika --keep DIR --converter PYTHON

Each recipe (a .toml file here) has its own environment, created with venv and pip: the program, and ort_rknn as it
is in this checkout. Its script is run by the plain interpreter, then through ``python -m ort_rknn run``, and what it
prints (one JSON object) is compared. Runs with ``twins`` have the program's models compiled beside them by the vendor's
rknn-toolkit2, in one more environment (5 GB) or by the Python that --converter names.

Exit code 0: all results are equal. 1: some differ. 2: usage error.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CONVERTER = ["setuptools<81", "rknn-toolkit2==2.5.0", "onnx<=1.18"]
SOC = "rk3588"
KEYS = {"about", "install", "install_after", "script", "run", "twin"}
RUN_KEYS = {"name", "options", "twins", "equal", "close", "report"}


class Failed(Exception):
    """A comparison or a step failed; the text says which and how."""


def read_recipe(path):
    """Read a recipe and check its required and allowed keys."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    unknown = set(recipe) - KEYS | {k for run in recipe.get("run", ()) for k in set(run) - RUN_KEYS}
    if unknown or not recipe.get("run"):
        raise Failed(f"{path.name}: unknown keys {sorted(unknown)}, or no [[run]]")
    if not (HERE / recipe["script"]).is_file():
        raise Failed(f"{path.name}: no script {recipe['script']}")
    return recipe


def call(*command, env=None, cwd=None, timeout=1800):
    """Run a command; returns its (stdout, stderr). Raises Failed with its output."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("ORT_RKNN_", "PYTHON", "VIRTUAL_ENV"))}
    command = [str(part) for part in command]
    done = subprocess.run(
        command, env={**environ, **(env or {})}, cwd=cwd, capture_output=True, text=True, timeout=timeout
    )
    if done.returncode:
        said = f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        raise Failed(f"{' '.join(command)[:300]}: exit code {done.returncode}\n{said}")
    return done.stdout, done.stderr


def environment(folder, *installs):
    """A virtual environment's Python; each of ``installs`` is the arguments of one pip install."""
    python = folder / "bin" / "python"
    if not python.exists():
        call(sys.executable, "-m", "venv", folder)
    marker = folder / "installed.json"
    wanted = json.dumps(installs)
    if not marker.exists() or marker.read_text() != wanted:
        for arguments in installs:
            call(python, "-m", "pip", "install", "-q", *arguments)
        marker.write_text(wanted)
    return python


def compile_twins(recipe, python, work, converter):
    """Put a compiled twin beside each of the program's models. Returns their paths."""
    packages = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")[0].strip())
    made = []
    for twin in recipe.get("twin", ()):
        onnx = packages / twin["onnx"]
        out = onnx.with_name(f"{onnx.stem}.{SOC}.rknn")
        task = {"onnx": str(onnx), "out": str(out), "target": SOC, "inputs": twin["inputs"]}
        task["shape_sets"] = twin["shape_sets"]
        scratch = work / "converting"
        scratch.mkdir(exist_ok=True)
        call(converter, HERE / "make_twin.py", json.dumps(task), cwd=scratch)
        made.append(out)
    return made


def close(a, b, limit):
    """Whether two nested lists of numbers have one form and differ by ``limit`` at most."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(close(x, y, limit) for x, y in zip(a, b))
    return math.isclose(a, b, rel_tol=0, abs_tol=limit)


def compare(run, plain, got, told):
    """Raises Failed for the first thing that differs."""
    for key in run.get("equal", ()):
        if plain[key] != got[key]:
            raise Failed(f"{key} differs:\n  plain   {plain[key]}\n  swapped {got[key]}"[:4000])
    for key, limit in run.get("close", {}).items():
        if not close(plain[key], got[key], limit):
            raise Failed(f"{key} differs by more than {limit}:\n  plain   {plain[key]}\n  swapped {got[key]}"[:4000])
    for text in run.get("report", ()):
        if text not in told:
            raise Failed(f"the report lacks {text!r}:\n{told}")


def run_recipe(path, work, converter_of, say):
    """Install, run and compare one recipe. Raises Failed."""
    recipe = read_recipe(path)
    after = [recipe["install_after"]] if "install_after" in recipe else []
    python = environment(work / path.stem, [*recipe["install"], f"{ROOT}[virtual]"], *after)
    # What was built from the checkout once is not what is in it now.
    call(python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", ROOT)
    script = HERE / recipe["script"]
    with tempfile.TemporaryDirectory() as elsewhere:
        plain = json.loads(call(python, script, cwd=elsewhere)[0])
        for run in recipe["run"]:
            twins = compile_twins(recipe, python, work, converter_of()) if run.get("twins") else []
            try:
                swap = ("-m", "ort_rknn", "run", "--report", *run.get("options", ()))
                out, told = call(python, *swap, script, cwd=elsewhere)
                compare(run, plain, json.loads(out), told)
            finally:
                for twin in twins:
                    twin.unlink(missing_ok=True)
            compared = ", ".join([*run.get("equal", ()), *run.get("close", ())])
            say(f"{path.stem}: {run['name']}: as plain onnxruntime ({compared})")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = sorted(path.stem for path in HERE.glob("*.toml"))
    parser.add_argument("recipe", nargs="*", help=f"one of {', '.join(names)}; default: all")
    parser.add_argument("--keep", metavar="DIR", help="make the environments here, and use those that are there")
    parser.add_argument("--converter", metavar="PYTHON", help="a Python that has rknn-toolkit2")
    given = parser.parse_args(argv)
    for name in given.recipe:
        if name not in names:
            parser.error(f"no recipe {name!r}; there are {', '.join(names)}")

    failed = 0
    with tempfile.TemporaryDirectory(prefix="downstream-") as temporary:
        work = Path(given.keep or temporary).resolve()
        work.mkdir(parents=True, exist_ok=True)

        def converter():
            return Path(given.converter) if given.converter else environment(work / "converter", CONVERTER)

        for name in given.recipe or names:
            try:
                run_recipe(HERE / f"{name}.toml", work, converter, lambda line: print(line, flush=True))
            except (Failed, subprocess.TimeoutExpired) as error:
                failed += 1
                print(f"{name}: FAILED: {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
