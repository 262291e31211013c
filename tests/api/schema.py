"""As much of JSON Schema 2020-12 as openapi.json uses; what it does not know is an error."""

import re
from datetime import datetime
from typing import Any

ANNOTATIONS = {"description", "default", "format"}
KNOWN = ANNOTATIONS | {
    "$ref",
    "additionalProperties",
    "enum",
    "exclusiveMinimum",
    "items",
    "maxLength",
    "maxProperties",
    "maximum",
    "minLength",
    "minimum",
    "pattern",
    "properties",
    "required",
    "type",
}
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def faults(
    value: Any, schema: dict[str, Any], document: dict[str, Any], at: str = "$"
) -> list[str]:
    """What is wrong with a value, each with its place."""
    assert set(schema) <= KNOWN, f"{at}: {set(schema) - KNOWN}"
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/components/schemas/")
        return faults(value, document["components"]["schemas"][name], document, at)
    kinds = schema.get("type", list(TYPES))
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if not any(_is(value, kind) for kind in kinds):
        return [f"{at}: {value!r} is none of {kinds}"]
    found = []
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{at}: {value!r} is none of {schema['enum']}")
    if isinstance(value, str):
        found += _text(value, schema, at)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if not schema.get("minimum", value) <= value <= schema.get("maximum", value):
            found.append(f"{at}: {value} is out of range")
        if "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"]:
            found.append(f"{at}: {value} is too small")
    elif isinstance(value, list):
        for place, each in enumerate(value):
            found += faults(each, schema.get("items", {}), document, f"{at}[{place}]")
    elif isinstance(value, dict):
        found += _object(value, schema, document, at)
    return found


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, TYPES[kind])  # type: ignore[arg-type]


def _text(value: str, schema: dict[str, Any], at: str) -> list[str]:
    if schema.get("format") == "date-time":
        datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ")
    good = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
    good = good and re.search(schema.get("pattern", ""), value) is not None
    return [] if good else [f"{at}: {value!r}"]


def _object(
    value: dict[str, Any], schema: dict[str, Any], document: dict[str, Any], at: str
) -> list[str]:
    properties = schema.get("properties", {})
    more = schema.get("additionalProperties", True)
    found = [f"{at}.{name} is missing" for name in schema.get("required", ()) if name not in value]
    if len(value) > schema.get("maxProperties", len(value)):
        found.append(f"{at} has too many fields")
    for name, each in value.items():
        if name in properties:
            found += faults(each, properties[name], document, f"{at}.{name}")
        elif more is False:
            found.append(f"{at}.{name} is not described")
        elif isinstance(more, dict):
            found += faults(each, more, document, f"{at}.{name}")
    return found
