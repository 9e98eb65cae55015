"""``ort-rknn toolkit``: installs or shows the vendor's converter."""

from __future__ import annotations

import argparse
from typing import Any

from ..adapter.command import Command
from . import schemas
from .output import FAILED, FINE, Column, Mistake, TextTable, add_json_option, say, say_json, say_step, show


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("install", "status"), help="create the environment, or show the current one")
    parser.add_argument("--python", metavar="PYTHON", help="install: the Python interpreter for the environment")
    add_json_option(parser)


def run(given: argparse.Namespace) -> int:
    """Install or show it."""
    from .._compile.toolkit import ToolkitError, find_toolkit, install, toolkit_folder

    try:
        if given.action == "install":
            found = install(python=given.python, say=say_step if given.json else say)
            if not given.json:
                return FINE
        else:
            found = find_toolkit()
    except ToolkitError as error:
        if given.action == "status" and given.json:
            nothing: dict[str, Any] = {"version": None, "python": None, "chosen_by": None, "packages": {}}
            status = {"found": False, "reason": str(error), "folder": str(toolkit_folder()), **nothing}
            say_json("toolkit", status)
            return FAILED
        raise Mistake(str(error)) from None
    if given.json:
        say_json(
            "toolkit",
            {
                "found": True,
                "reason": "",
                "folder": str(toolkit_folder()),
                "version": found.version,
                "python": found.python,
                "chosen_by": found.chosen_by,
                "packages": dict(found.packages),
            },
        )
        return FINE
    say(f"rknn-toolkit2 {found.version}, {found.chosen_by}: {found.python}")
    say(f"folder of the installed one: {toolkit_folder()}")
    show(TextTable((Column("package", keep=True), Column("version")), list(found.packages.items())))
    return FINE


COMMAND = Command(
    name="toolkit",
    summary="install the vendor's converter, or show where it is",
    description="'install' creates an environment with rknn-toolkit2 in the user's cache (about 6 GB, three to eight "
    "minutes). 'status' shows the environment that would be used.",
    add_arguments=_add_arguments,
    run=run,
    json_output=schemas.TOOLKIT,
)
