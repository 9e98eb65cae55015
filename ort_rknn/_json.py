"""Reads JSON from untrusted sources: limited in bytes and values, and checked value by value.

The checks take a parsed value, and ``what``, its name in messages. A missing member is None, which only ``none_or``
accepts.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import TypeVar

from ._regular import open_regular

#: Default limits for the bytes of a file, and the values in it. A value takes up to 100 bytes of memory.
MOST_BYTES, MOST_VALUES = 8 << 20, 1 << 18
#: Maximum number of characters in a text.
MOST_TEXT = 4096
_MOST_NESTED = 200
_BRACKET = re.compile(r"[\[\]{}]")

Checked = TypeVar("Checked")


class JsonError(ValueError):
    """Not JSON, too large, or with an unexpected value. The message says which."""


def read_json(
    path: str | os.PathLike[str],
    *,
    most_bytes: int = MOST_BYTES,
    owner: int | None = None,
    closed_to: int = 0,
    follow: bool = True,
) -> object:
    """The content of the file at ``path``. Reads no more than ``most_bytes``.

    ``owner``, ``closed_to``, ``follow``: see :func:`open_regular`. Raises OSError if it cannot be opened or is not a
    regular file, JsonError for everything else.
    """
    with open_regular(path, owner=owner, closed_to=closed_to, follow=follow) as file:
        content = b""
        while len(content) <= most_bytes and (block := file.read(most_bytes + 1 - len(content))):
            content += block
    if len(content) > most_bytes:
        raise JsonError(f"it has more than the {most_bytes} bytes that are read")
    return parse_json(content)


def parse_json(content: str | bytes, *, most_values: int = MOST_VALUES) -> object:
    """Parse ``content``; bytes must be UTF-8. Raises JsonError, also if it is nested deeper than 200 levels or has more
    than about ``most_values`` values."""
    try:
        spelled = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        return bounded_loads(spelled, most_values=most_values)
    except JsonError:
        raise
    except RecursionError:
        raise JsonError("it is nested too deeply") from None
    except ValueError as error:
        raise JsonError(f"it is not JSON: {error}") from None


def bounded_loads(spelled: str, *, most_values: int = MOST_VALUES) -> object:
    """``json.loads`` with the limits of :func:`parse_json`. Raises JsonError for too many values, RecursionError for
    too deep nesting, json's own ValueError for invalid JSON."""
    if spelled.count(",") + spelled.count("[") + spelled.count("{") > most_values:
        raise JsonError(f"it has more than the {most_values} values that are read")
    if _is_deep(spelled):  # the parser's own limit differs by release, and ignores a thread's stack size
        raise RecursionError
    value: object = json.loads(spelled)
    return value


def _is_deep(spelled: str) -> bool:
    if spelled.count("[") + spelled.count("{") <= _MOST_NESTED:
        return False
    depth = 0
    for outside in re.sub(r"\\.", "", spelled, flags=re.DOTALL).split('"')[::2]:
        for sign in _BRACKET.findall(outside):
            depth += 1 if sign in "[{" else -1
            if depth > _MOST_NESTED:
                return True
    return False


def _wrong(what: str, expected: str, value: object) -> JsonError:
    if isinstance(value, (dict, list)):
        found = "an object" if isinstance(value, dict) else "a list"
    elif isinstance(value, str):
        found = ascii(value[:40])
    else:  # an integer may have thousands of digits
        found = "a large number" if isinstance(value, int) and abs(value) >= 1 << 64 else json.dumps(value)
    return JsonError(f"{what}: expected {expected}, found {found}")


def text(value: object, what: str, *, most: int = MOST_TEXT) -> str:
    """Text of at most ``most`` characters. Lone surrogates are rejected, except those that represent bytes of a file
    name."""
    if not isinstance(value, str):
        raise _wrong(what, "text", value)
    if len(value) > most:
        raise JsonError(f"{what}: expected at most {most} characters, found {len(value)}")
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise _wrong(what, "Unicode text", value) from None
    if "\0" in value:
        raise _wrong(what, "text without NUL", value)
    return value


def one_of(value: object, what: str, words: tuple[str, ...]) -> str:
    """One of ``words``."""
    if not isinstance(value, str) or value not in words:
        raise _wrong(what, " or ".join(map(repr, words)), value)
    return value


def hex_digest(value: object, what: str) -> str:
    """A sha256 as 64 lower-case hex digits."""
    if not isinstance(value, str) or len(value) != 64 or value.strip("0123456789abcdef"):
        raise _wrong(what, "64 hex digits", value)
    return value


def integer(value: object, what: str, *, least: int = 0, most: int = (1 << 63) - 1) -> int:
    """An integer from ``least`` to ``most``; 1.0 and true are rejected."""
    if type(value) is not int or not least <= value <= most:
        raise _wrong(what, f"an integer from {least} to {most}", value)
    return value


def number(value: object, what: str, *, least: float = -1e38, most: float = 1e38) -> float:
    """A finite number from ``least`` to ``most``."""
    if type(value) not in (int, float) or not least <= value <= most:  # type: ignore[operator]  # NaN is not between
        raise _wrong(what, f"a number from {least:g} to {most:g}", value)
    return float(value)  # type: ignore[arg-type]


def boolean(value: object, what: str) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise _wrong(what, "true or false", value)
    return value


def array(value: object, what: str, *, most: int = MOST_VALUES) -> list[object]:
    """A list of at most ``most`` values."""
    if not isinstance(value, list) or len(value) > most:
        raise _wrong(what, f"a list of at most {most}", value)
    return value


def members(value: object, what: str, *, most: int = MOST_VALUES) -> dict[str, object]:
    """An object of at most ``most`` members."""
    if not isinstance(value, dict) or len(value) > most:
        raise _wrong(what, f"an object of at most {most} members", value)
    return value


def none_or(check: Callable[[object, str], Checked], value: object, what: str) -> Checked | None:
    """null, or a value that ``check`` accepts."""
    return None if value is None else check(value, what)
