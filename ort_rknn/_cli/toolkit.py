"""``ort-rknn toolkit``: install and show the vendor's converter."""

from __future__ import annotations

import argparse
import json

from ..adapter.command import Command
from .output import FAILED, FINE, Mistake, say


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("install", "status"), help="make the environment, or show what there is")
    parser.add_argument("--python", metavar="PYTHON", help="install: the interpreter to make the environment of")
    parser.add_argument("--json", action="store_true", help="status: print JSON")


def run(given: argparse.Namespace) -> int:
    """Install or show it."""
    from .._compile.toolkit import ToolkitError, find_toolkit, install, toolkit_folder

    try:
        if given.action == "install":
            install(python=given.python, say=say)
            return FINE
        found = find_toolkit()
    except ToolkitError as error:
        if given.action == "status" and given.json:
            say(json.dumps({"found": False, "reason": str(error)}))
            return FAILED
        raise Mistake(str(error)) from None
    if given.json:
        say(
            json.dumps(
                {
                    "found": True,
                    "version": found.version,
                    "python": found.python,
                    "chosen_by": found.chosen_by,
                    "packages": dict(found.packages),
                }
            )
        )
        return FINE
    say(f"rknn-toolkit2 {found.version}, {found.chosen_by}: {found.python}")
    say(f"folder of the installed one: {toolkit_folder()}")
    for name, version in found.packages.items():
        say(f"  {name} {version}")
    return FINE


COMMAND = Command(
    name="toolkit",
    summary="install the vendor's converter, or show where it is",
    description="'install' makes an environment with rknn-toolkit2 in the user's cache (some 6 GB, about four "
    "minutes); 'status' shows the one that would be used.",
    add_arguments=_add_arguments,
    run=run,
)
