"""What a command of ``ort-rknn`` is. Other packages bring them with the hook ``ort_rknn_commands``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass


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
    """Called instead of ``run`` with the words after the command's name. For a command that reads its arguments itself
    and whose exceptions must not be caught, as one that runs a user's program."""
    epilog: str = "Exit codes: 0 fine, 1 failed, 2 used wrongly."
    """The last paragraph of ``--help``."""
    usage: str | None = None
    """The usage line, where argparse's own would mislead."""
