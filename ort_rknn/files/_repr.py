"""Parses the ``repr`` of plain Python data: dicts with text keys, lists, tuples, text, numbers, True, False, None.

``ast.literal_eval`` could do it, but it needs some 450 bytes per number (463 MB and seconds for 1 MB of text, CPython
3.11), and this text comes from a file. Rewriting the text as JSON takes a tenth of that, and C code parses it.
"""

from __future__ import annotations

import re

# An unterminated string is a token too; otherwise every quote in it would be tried as a start.
_TOKEN = re.compile(
    r"""'[^'\\]*(?:\\.[^'\\]*)*(?:'|\Z|\\\Z) | "[^"\\]*(?:\\.[^"\\]*)*(?:"|\Z|\\\Z)
      | \b(?:True|False|None|nan|inf)\b | [()]""",
    re.VERBOSE | re.DOTALL,
)
_WORDS = {"True": "true", "False": "false", "None": "null", "nan": "NaN", "inf": "Infinity", "(": "[", ")": "]"}


def parse_repr(text: str) -> object:
    """The value whose ``repr`` is ``text``; tuples become lists. Raises ValueError if it is not a repr."""
    import json
    from json.encoder import encode_basestring_ascii

    def as_json(match: re.Match[str]) -> str:
        token = match.group()
        word = _WORDS.get(token)
        if word is not None:
            return word
        return encode_basestring_ascii(_unquote(token))

    try:
        return json.loads(_TOKEN.sub(as_json, text))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unquote(token: str) -> str:
    if len(token) < 2 or token[-1] != token[0]:
        raise ValueError("a string without an end")
    if "\\" not in token:
        return token[1:-1]
    import ast

    try:
        value = ast.literal_eval(token)
    except (SyntaxError, MemoryError) as error:
        raise ValueError(f"not a string: {error}") from None
    if not isinstance(value, str):
        raise ValueError("not a string")
    return value
