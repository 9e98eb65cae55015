"""A command of ``ort-rknn``. Packages provide commands with the hook ``ort_rknn_commands``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .json_output import Schema


@dataclass(frozen=True, slots=True)
class Command:
    """One command of ``ort-rknn``."""

    name: str
    """The word after ``ort-rknn``."""
    summary: str
    """One line for the list of commands."""
    description: str
    """The first paragraph of ``--help``."""
    add_arguments: Callable[[argparse.ArgumentParser], None]
    """Adds the command's arguments to its own parser."""
    run: Callable[[argparse.Namespace], int]
    """Runs the command and returns the exit code."""
    takes_over: Callable[[Sequence[str]], int] | None = None
    """Called instead of ``run``, with the words after the command's name. For a command that parses its own arguments
    and whose exceptions must not be caught, such as one that runs a user's program."""
    epilog: str = "Exit codes: 0 success, 1 failure, 2 usage error."
    """The last paragraph of ``--help``."""
    usage: str | None = None
    """The usage line, if argparse's own would mislead."""
    json_output: Mapping[str, Schema] | None = None
    """The members of the object that ``--json`` prints, besides "schema", built with
    :mod:`ort_rknn.adapter.json_output`. None for a command without ``--json``."""
    json_version: int = 1
    """Increased when a member of that object is removed or changes its meaning."""

    def schema_name(self) -> str:
        """The value of the member "schema": "ort-rknn/COMMAND/VERSION"."""
        return f"ort-rknn/{self.name}/{self.json_version}"

    def json_schema(self) -> Schema | None:
        """The JSON Schema (draft 7) of the ``--json`` output; None for a command without it."""
        if self.json_output is None:
            return None
        first = {"type": "string", "const": self.schema_name()}
        members = {"schema": first, **self.json_output}
        return {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "object",
            "properties": members,
            "required": list(members),
        }
