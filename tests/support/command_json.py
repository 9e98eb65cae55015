"""Checks the ``--json`` output of a command against its schema."""

import json

import fastjsonschema

from ort_rknn._cli.registry import commands


def closed(schema):
    """The schema with additional members forbidden: a command must not print undocumented ones."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: closed(value) for key, value in schema.items()}
    if "properties" in out and isinstance(out["properties"], dict) and "type" in out:
        out["additionalProperties"] = False
    return out


def validate(name, printed):
    """Check that a command printed exactly one object that matches its schema."""
    found = json.loads(printed)
    fastjsonschema.compile(closed(commands()[name].json_schema()))(found)
    assert found["schema"].startswith(f"ort-rknn/{name}/")
    return found
