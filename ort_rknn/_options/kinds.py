"""The kinds of option values: how each is parsed, its type, and its description in the docs.

Values may be Python objects or strings, because onnxruntime passes every option as a string.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Literal, Protocol

from .._environment import FALSE, TRUE
from .._errors import OptionError, did_you_mean
from .._rknpu import TP_MODES

_LONGEST_SHOWN = 300
_LONGEST_SCHEDULE = 1024
#: Of an integer; onnxruntime and the runtime take 32 bits.
_LARGEST = 2**31 - 1
#: Limited, because Python rejects thousands of digits with an error of its own.
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")


class Kind(Protocol):
    """A kind of option value."""

    takes: str
    """The type that callers pass, as an annotation. Every option accepts ``str`` as well."""
    gives: str
    """The type that :meth:`read` returns, as an annotation."""
    type_text: str
    """The type in the docs' table, as Markdown."""

    def read(self, key: str, value: object) -> Any:
        """The parsed ``value`` of the option ``key``. Raises OptionError, which says what is accepted."""


def bad_value(key: str, value: object, accepted: str) -> OptionError:
    """The error for an invalid value of the option ``key``."""
    return OptionError(f"provider option {key}={_short(value)}: {accepted}")


def _short(value: object) -> str:
    """``repr(value)``, truncated if it is long."""
    try:
        text = repr(value)
    except RecursionError:
        return f"a {type(value).__name__} nested too deeply"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}... ({len(text)} characters)"


def _json(key: str, text: str, wanted: str = "") -> object:
    """``text`` parsed as JSON. Raises OptionError, whose message ends with ``wanted``."""
    from .._json import bounded_loads

    try:
        return bounded_loads(text)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise bad_value(key, text, f"this is not valid JSON ({why}){wanted and f'; {wanted}'}") from None


def _read_integer(key: str, value: object, accepted: str, least: int, most: int = _LARGEST) -> int:
    number: int | None = None
    if isinstance(value, str):
        text = value.strip()
        if _INTEGER.fullmatch(text):
            number = int(text)
    elif hasattr(value, "__index__") and not isinstance(value, bool):
        with suppress(TypeError):  # numpy's arrays have it, and most are not a single number
            number = value.__index__()
    if number is not None and number > most:
        raise bad_value(key, value, f"{accepted}, at most {most}")
    if number is None or number < least:
        raise bad_value(key, value, accepted)
    return number


class Integer:
    """An int from ``least`` to ``most``. ``accepted``: what the error says."""

    takes = gives = "int"

    def __init__(self, least: int, accepted: str = "", most: int = _LARGEST) -> None:
        self._least, self._accepted, self._most = least, accepted or f"expected an integer >= {least}", most
        self.type_text = f"int from {least}" + (f" to {most}" if most < _LARGEST else "")

    def read(self, key: str, value: object) -> int:
        return _read_integer(key, value, self._accepted, self._least, self._most)


def milliseconds(least: int, zero: str = "") -> Integer:
    """A number of milliseconds. ``zero``: what 0 means."""
    return Integer(least, f"expected milliseconds, an integer >= {least}{zero and f' (0: {zero})'}")


class Boolean:
    """A bool, 0 or 1, or a word for one."""

    takes = gives = type_text = "bool"

    def read(self, key: str, value: object) -> bool:
        if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
            value = value.item()  # numpy's, as a comparison of its numbers gives
        if isinstance(value, (bool, int)) and value in (0, 1):
            return bool(value)
        if isinstance(value, str):
            text = value.strip().lower()
            if text in TRUE:
                return True
            if text in FALSE:
                return False
        raise bad_value(
            key, value, "expected a boolean: True, False, 1, 0, 'true', 'false', 'on', 'off', 'yes' or 'no'"
        )


class AutoOrBoolean(Boolean):
    """A bool, or "auto"."""

    takes = "bool | str"
    gives = 'Literal["auto"] | bool'
    type_text = '`"auto"`, bool'

    def read(self, key: str, value: object) -> Any:
        if isinstance(value, str) and value.strip().lower() == "auto":
            return "auto"
        try:
            return super().read(key, value)
        except OptionError:
            raise bad_value(key, value, "expected 'auto' or a boolean") from None


def _read_word(key: str, value: object, accepted: Iterable[str]) -> str:
    if isinstance(value, str) and value.strip().lower() in accepted:
        return value.strip().lower()
    accepted = tuple(accepted)
    raise bad_value(key, value, f"expected one of {', '.join(map(repr, accepted))}{did_you_mean(value, accepted)}")


def _quoted(words: Iterable[str]) -> str:
    return ", ".join(f'`"{word}"`' for word in words)


class Word:
    """One of a set of words, in any case."""

    takes = "str"

    def __init__(self, *words: str) -> None:
        self.words = words
        self.gives = f"Literal[{', '.join(map(_double_quoted, words))}]"
        self.type_text = _quoted(words)

    def read(self, key: str, value: object) -> str:
        return _read_word(key, value, self.words)


def _double_quoted(word: str) -> str:
    return f'"{word}"'


class Name:
    """A non-empty name."""

    takes = gives = "str"
    type_text = "name"

    def read(self, key: str, value: object) -> str:
        if isinstance(value, str) and value.strip():
            return value.strip()
        raise bad_value(key, value, "expected a non-empty name")


class OnePath:
    """A path."""

    takes = "str | os.PathLike[str]"
    gives = "str"
    type_text = "path"

    def read(self, key: str, value: object) -> str:
        try:
            text = os.fspath(value)  # type: ignore[call-overload]
        except TypeError:
            raise bad_value(key, value, "expected a path") from None
        if not isinstance(text, str) or not text or "\0" in text:
            raise bad_value(key, value, "expected a non-empty path, as str or os.PathLike[str]")
        return text


class Paths(OnePath):
    """A path, or a list of paths."""

    takes = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]"
    gives = "tuple[str, ...]"
    type_text = "path or list of paths"

    def read(self, key: str, value: object) -> Any:
        if isinstance(value, str) and value.startswith("["):
            value = _json(key, value)
        if isinstance(value, (str, os.PathLike)):
            return (super().read(key, value),)
        if isinstance(value, Sequence) and not isinstance(value, bytes):
            return tuple(OnePath.read(self, key, item) for item in value)
        raise bad_value(key, value, "expected a path or a list of paths")


class Schedule:
    """Core numbers in round-robin order, or "auto"."""

    takes = "int | str | Sequence[int]"
    gives = 'tuple[int, ...] | Literal["auto"]'
    type_text = 'core number, `"0,1,2"`, list of core numbers, `"auto"`'
    _ACCEPTED = "expected a core number, text such as '0,1,2', a list of core numbers, or 'auto'"

    def read(self, key: str, value: object) -> tuple[int, ...] | Literal["auto"]:
        if isinstance(value, str) and value.strip().lower() == "auto":
            return "auto"
        items = self._items(key, value)
        if not items:
            raise bad_value(key, value, f"it names no core; {self._ACCEPTED}")
        if len(items) > _LONGEST_SCHEDULE:
            raise bad_value(key, value, f"at most {_LONGEST_SCHEDULE} tasks are expected before it begins again")
        cores = []
        for item in items:
            try:
                cores.append(_read_integer(key, item, "", 0))
            except OptionError:
                raise bad_value(key, value, f"{_short(item)} is not a core number; {self._ACCEPTED}") from None
        return tuple(cores)

    def _items(self, key: str, value: object) -> Sequence[object]:
        if isinstance(value, str):
            text = value.strip()
            if text[:1] in "[(" and text[-1:] in "])":
                text = text[1:-1]
            return [t for t in text.replace(",", " ").split(" ") if t]
        if isinstance(value, Iterable) and not isinstance(value, (bytes, Mapping)) and getattr(value, "ndim", True):
            return list(islice(value, _LONGEST_SCHEDULE + 1))  # it may be infinite
        if hasattr(value, "__index__") and not isinstance(value, bool):
            return [value]
        raise bad_value(key, value, self._ACCEPTED)


class TpMode:
    """A key of :data:`TP_MODES`."""

    takes = gives = "str"
    type_text = _quoted(TP_MODES)

    def read(self, key: str, value: object) -> str:
        if isinstance(value, str):
            text = value.strip().lower().replace(" ", "")
            if text in TP_MODES:
                return text
        raise bad_value(key, value, f"expected one of {', '.join(map(repr, TP_MODES))}")


class PerInput:
    """A word for all inputs, or a dict of words by input name. ``words``: each word and its parsed value."""

    takes = "str | Mapping[str, str]"
    gives = "Mapping[str, str]"

    def __init__(self, words: Mapping[str, str], type_text: str) -> None:
        self.words, self.type_text = words, type_text

    def read(self, key: str, value: object) -> Mapping[str, str]:
        if isinstance(value, str) and value.lstrip().startswith("{"):
            value = _json(key, value)
        if isinstance(value, Mapping):
            if not all(isinstance(name, str) for name in value):
                raise bad_value(key, value, "the keys of the dict are input names (str)")
            return {name: self.words[_read_word(key, item, self.words)] for name, item in value.items()}
        return {"*": self.words[_read_word(key, value, self.words)]}


class _NumbersPerInput:
    gives = "Mapping[str, tuple[int, ...]]"


class Axes(_NumbersPerInput):
    """Axis numbers for all inputs, or a dict of them by input name."""

    takes = "str | Sequence[int] | Mapping[str, Sequence[int]]"
    type_text = "list of axes, or a dict of them by input name"

    def read(self, key: str, value: object) -> Mapping[str, tuple[int, ...]]:
        wanted = "expected axis numbers: [2, 3] for every input, or a dict by input name"
        if isinstance(value, str):
            value = _json(key, value, wanted)
        groups = value if isinstance(value, Mapping) else {"*": value}
        out = {}
        for name, axes in groups.items():
            axes = [axes] if isinstance(axes, int) else axes
            if not isinstance(axes, Sequence) or not axes or not all(type(a) is int and a >= 0 for a in axes):
                raise bad_value(key, value, wanted)
            out[str(name)] = tuple(sorted(set(axes)))
        return out


class Shapes(_NumbersPerInput):
    """Shapes by input name."""

    takes = "str | Mapping[str, Sequence[int]]"
    type_text = "dict of lists by input name"

    def read(self, key: str, value: object) -> Mapping[str, tuple[int, ...]]:
        wanted = "expected a shape by input name: {'images': [1, 3, 640, 640]}"
        if isinstance(value, str):
            value = _json(key, value, wanted)
        if not isinstance(value, Mapping) or not value:
            raise bad_value(key, value, wanted)
        out = {}
        for name, shape in value.items():
            fits = isinstance(shape, Sequence) and not isinstance(shape, (str, bytes))
            if not fits or not all(type(d) is int and 0 < d < 2**31 for d in shape):
                raise bad_value(key, value, wanted)
            out[str(name)] = tuple(shape)
        return out
