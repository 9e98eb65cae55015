"""Holds what a command printed under ``--json`` against its schema."""

import json

import fastjsonschema

from ort_rknn._cli.registry import commands


def closed(schema):
    """The schema without room for members that it does not name: what a page does not tell is not printed."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: closed(value) for key, value in schema.items()}
    if "properties" in out and isinstance(out["properties"], dict) and "type" in out:
        out["additionalProperties"] = False
    return out


def validate(name, printed):
    """The one object that a command printed, which is as declared."""
    found = json.loads(printed)
    fastjsonschema.compile(closed(commands()[name].json_schema()))(found)
    assert found["schema"].startswith(f"ort-rknn/{name}/")
    return found
