"""Runs a program like ``python app.py`` or ``python -m module``, for commands that first replace modules."""

from __future__ import annotations

import builtins
import importlib.machinery
import io
import os
import pkgutil
import runpy
import sys
from collections.abc import Sequence
from types import CodeType, ModuleType, TracebackType
from typing import Any


class NoProgram(Exception):
    """The script cannot be opened; the message is the interpreter's own."""


def run_script(path: str, args: Sequence[str]) -> None:
    """``python path args``: a file of source or byte code, or a folder or zip file with ``__main__.py``; "-" is
    standard input.

    Raises NoProgram if it cannot be opened, else whatever the program raises.
    """
    sys.argv = [path, *args]
    main = _new_main()
    if path == "-":
        _set_first_path("")
        with _Stripped():
            main.__loader__ = importlib.machinery.BuiltinImporter
            main.__file__ = "<stdin>"
            exec(compile(_standard_input(), "<stdin>", "exec", dont_inherit=True), vars(main))  # noqa: S102
        return
    if pkgutil.get_importer(path) is not None:  # a folder or a zip file
        _set_first_path(os.path.abspath(path), insert_safe=True)
        _as_main("__main__", alter_argv=False)
        return
    code = _read(path)
    _set_first_path(os.path.dirname(os.path.realpath(path)))
    full = os.path.abspath(path)
    main.__file__ = full
    loader: Any = importlib.machinery.SourceFileLoader
    if path.endswith(".pyc"):
        loader = importlib.machinery.SourcelessFileLoader
    main.__loader__ = loader("__main__", full)
    with _Stripped():
        exec(code, vars(main))  # noqa: S102 - what "python app.py" does


def run_module(name: str, args: Sequence[str]) -> None:
    """``python -m name args``. Raises whatever the module raises; SystemExit if it cannot be found."""
    sys.argv = ["-m", *args]
    _new_main()
    _set_first_path(os.getcwd())
    _as_main(name, alter_argv=True)


def _as_main(name: str, *, alter_argv: bool) -> None:
    with _Stripped():
        # The interpreter's own function for -m; the public functions of runpy restore the old __main__ too early.
        runpy._run_module_as_main(name, alter_argv)  # type: ignore[attr-defined]


def _new_main() -> ModuleType:
    main = ModuleType("__main__")
    vars(main).update(__builtins__=builtins, __spec__=None, __package__=None, __loader__=None)
    sys.modules["__main__"] = main
    return main


def _set_first_path(folder: str, *, insert_safe: bool = False) -> None:
    """Replace what the interpreter put there for us: the command's folder, or the current one."""
    if not getattr(sys.flags, "safe_path", False) and not sys.flags.isolated:
        sys.path[0] = folder
    elif insert_safe:
        sys.path.insert(0, folder)


def _read(path: str) -> CodeType:
    full = os.path.abspath(path)
    try:
        with io.open_code(full) as file:
            code: CodeType | None = pkgutil.read_code(file) if path.endswith(".pyc") else None
        if code is not None:
            return code
        with io.open_code(full) as file:
            source = file.read()
    except OSError as error:
        raise NoProgram(f"can't open file {full!r}: [Errno {error.errno}] {error.strerror}") from None
    with _Stripped():
        compiled: CodeType = compile(source, full, "exec", dont_inherit=True)
    return compiled


def _standard_input() -> bytes:
    return sys.stdin.buffer.read() if sys.stdin is not None else b""  # closed: the interpreter runs nothing either


class _Stripped:
    """Lets an uncaught exception reach the interpreter, which handles the end of a program best, but without our own
    frames in its traceback."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, SystemExit):
            return
        # The current hook may be the program's own.
        hook = sys.excepthook

        def strip(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
            sys.excepthook = hook
            while trace is not None and trace is not inner:
                trace = trace.tb_next
            # The default hook prints the exception's own traceback if it has one.
            hook(kind, error.with_traceback(trace), trace)

        inner = trace
        while inner is not None and inner.tb_frame.f_code.co_filename == run_script.__code__.co_filename:
            inner = inner.tb_next
        sys.excepthook = strip
