"""Builds the JSON Schema of a command's ``--json`` output.

Every member of an object is always present; a value that may be unknown is null (:func:`nullable`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from .contract import Device

#: A JSON Schema, draft 7.
Schema: TypeAlias = Mapping[str, Any]


def _plain(kind: str, about: str) -> Schema:
    return {"type": kind, "description": about} if about else {"type": kind}


def text(about: str = "") -> Schema:
    """A string."""
    return _plain("string", about)


def integer(about: str = "") -> Schema:
    """An integer."""
    return _plain("integer", about)


def number(about: str = "") -> Schema:
    """A number; null if it is not finite."""
    return {**_plain("number", about), "type": ["number", "null"]}


def boolean(about: str = "") -> Schema:
    """true or false."""
    return _plain("boolean", about)


def enum(*words: str, about: str = "") -> Schema:
    """One of some strings."""
    return {**_plain("string", about), "enum": list(words)}


def array(item: Schema, about: str = "") -> Schema:
    """An array."""
    return {**_plain("array", about), "items": item}


def table(value: Schema, about: str = "") -> Schema:
    """An object whose member names are not known in advance."""
    return {**_plain("object", about), "additionalProperties": value}


def record(members: Mapping[str, Schema], about: str = "") -> Schema:
    """An object with these members. Later releases may add some."""
    return {**_plain("object", about), "properties": dict(members), "required": list(members)}


def nullable(schema: Schema) -> Schema:
    """The given schema, or null."""
    kind = schema["type"]
    kinds = [*kind, "null"] if isinstance(kind, list) else [kind, "null"]
    more = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
    return {**schema, **more, "type": list(dict.fromkeys(kinds))}


def device_as_json(device: Device) -> dict[str, Any]:
    """A device as the schemas of commands have it."""
    names = ("name", "virtual", "soc", "cores", "adapter", "runtime")
    return {name: getattr(device, name) for name in names}
