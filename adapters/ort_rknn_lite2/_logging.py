"""Keeps the vendor's package from changing the program's logging, and captures what it logs.

Seen with rknn-toolkit-lite2 2.3.2 and 2.5.0: importing it replaces logging's level names ("WARNING" becomes "W" in
every log of the program, and ``setLevel("INFO")`` raises ValueError), and creating an object sets the level of the
handler of its logger "acuityLogger", which writes to stderr. Its functions return -1 or None; the reason is only in the
log.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

log: Final = logging.getLogger("ort_rknn.lite2")

#: The package's logger.
THEIRS: Final = "acuityLogger"
_MOST_WORDS: Final = 1500


@contextmanager
def logging_untouched() -> Iterator[None]:
    """Restore all state of ``logging`` that the block changes on existing objects.

    Level names, the logger class, the record factory, and of every logger and handler: level, handlers, filters and
    flags; except the package's own logger, which needs its handlers. Concurrent changes by other threads are undone as
    well, so the block should be short.
    """
    module: Any = logging
    manager = logging.Logger.manager
    tables = [(name, getattr(module, name), dict(getattr(module, name))) for name in ("_levelToName", "_nameToLevel")]
    named = [x for name, x in list(manager.loggerDict.items()) if name != THEIRS and isinstance(x, logging.Logger)]
    loggers = [logging.getLogger(), *named]
    states = [(x, x.level, x.propagate, x.disabled, list(x.handlers), list(x.filters)) for x in loggers]
    handlers = [h for h in (reference() for reference in list(module._handlerList)) if h is not None]
    settings = [(h, h.level, h.formatter, list(h.filters)) for h in handlers]
    factory, logger_class, own_class = logging.getLogRecordFactory(), logging.getLoggerClass(), manager.loggerClass
    disabled, raises, last = manager.disable, logging.raiseExceptions, logging.lastResort
    try:
        yield
    finally:
        for name, table, content in tables:
            table.clear()
            table.update(content)
            setattr(module, name, table)
        for handler, level, formatter, filters in settings:
            handler.level, handler.formatter, handler.filters[:] = level, formatter, filters
        for logger, level, propagate, off, kept, filters in states:
            logger.propagate, logger.disabled, logger.handlers[:], logger.filters[:] = propagate, off, kept, filters
            logger.setLevel(level)  # also clears the cache of isEnabledFor()
        logging.setLogRecordFactory(factory)
        if logging.getLoggerClass() is not logger_class:
            logging.setLoggerClass(logger_class)
        manager.loggerClass = own_class
        manager.disable, logging.raiseExceptions, logging.lastResort = disabled, raises, last


class _Heard(threading.local):
    """The package's messages on this thread; None while nothing listens."""

    words: list[str] | None = None


_heard: Final = _Heard()


def listen() -> list[str]:
    """From now on, collect what the package logs on this thread in the returned list, until :func:`ignore`."""
    words: list[str] = []
    _heard.words = words
    return words


def listening() -> list[str] | None:
    """The current list of this thread, to be restored with :func:`ignore`."""
    return _heard.words


def ignore(words: list[str] | None = None) -> None:
    """End :func:`listen`; with ``words``, continue with that list."""
    _heard.words = words


def install_listener() -> None:
    """Let :func:`listen` hear the package's logger; once per process.

    Levels, ``logging.disable()`` and a disabled logger apply to the program, not to the listener: some errors are
    reported nowhere else. A filter would come after them.
    """
    logger = logging.getLogger(THEIRS)
    if "handle" in vars(logger):
        return
    enabled, handle = logger.isEnabledFor, logger.handle

    def hear(record: logging.LogRecord) -> None:
        words = _heard.words
        if words is None:
            handle(record)
        else:
            words.append(record.getMessage())

    logger.isEnabledFor = lambda level: _heard.words is not None or enabled(level)  # type: ignore[method-assign]
    logger.handle = hear  # type: ignore[method-assign]


def as_text(words: list[str]) -> str:
    """The package's messages for an error: without tracebacks and markers, limited in length."""
    kept: list[str] = []
    for message in words:
        log.debug("rknn-toolkit-lite2 says: %s", message)
        lines = [line for line in message.splitlines() if line.strip()]
        if lines and lines[0].startswith("Traceback"):
            lines = lines[-1:]  # the exception itself
        kept += [line.strip() for line in lines if line.strip("-* \t") and not line.startswith("-----")]
    return " / ".join(kept)[:_MOST_WORDS]
