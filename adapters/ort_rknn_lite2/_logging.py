"""Keeping the vendor's package away from the program's logging, and hearing what it says.

Seen with rknn-toolkit-lite2 2.3.2 and 2.5.0: importing it replaces logging's level names ("WARNING" becomes "W" in
every log of the program, and ``setLevel("INFO")`` a ValueError), and making an object sets the level of the handler of
its logger "acuityLogger", which writes to stderr. Its functions return -1 or None; why is in the log only.
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
    """Put back everything of ``logging`` that the body changes on what is there already.

    Level names, the logger class, the record factory, and of every logger and handler: level, handlers, filters and
    switches; but for the package's own logger, whose handlers it relies on. What another thread changes in the same
    moment is put back, too; hence the body should be short.
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
            logger.setLevel(level)  # also forgets what is remembered of isEnabledFor()
        logging.setLogRecordFactory(factory)
        if logging.getLoggerClass() is not logger_class:
            logging.setLoggerClass(logger_class)
        manager.loggerClass = own_class
        manager.disable, logging.raiseExceptions, logging.lastResort = disabled, raises, last


class _Heard(threading.local):
    """What the package says on this thread; None while nobody listens."""

    words: list[str] | None = None


_heard: Final = _Heard()


def listen() -> list[str]:
    """From now on, on this thread, what the package logs goes to the list that this returns, until :func:`ignore`."""
    words: list[str] = []
    _heard.words = words
    return words


def listening() -> list[str] | None:
    """The list that is listened with on this thread, for :func:`ignore` to go back to."""
    return _heard.words


def ignore(words: list[str] | None = None) -> None:
    """The end of :func:`listen`; with ``words``, listen with those again."""
    _heard.words = words


def install_listener() -> None:
    """Let :func:`listen` hear the package's logger, once.

    Levels, ``logging.disable()`` and a logger that is switched off hold for the program, not for the listener: some
    errors are told nowhere else. A filter would come after them.
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
    """What the package said, for an error: without its tracebacks and its markers, bounded."""
    kept: list[str] = []
    for said in words:
        log.debug("rknn-toolkit-lite2 says: %s", said)
        lines = [line for line in said.splitlines() if line.strip()]
        if lines and lines[0].startswith("Traceback"):
            lines = lines[-1:]  # the exception itself
        kept += [line.strip() for line in lines if line.strip("-* \t") and not line.startswith("-----")]
    return " / ".join(kept)[:_MOST_WORDS]
