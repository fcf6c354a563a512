"""Queries of lists, and names such as ``metadata[job]`` in queries and forms."""

import re
from collections.abc import Mapping
from typing import Any

from fastapi import Request

from serve.errors import InvalidRequest, invalid_input_refused
from serve.schema import ListQuery

NESTED = re.compile(r"([^\[\]]+)\[([^\[\]]*)\]")
MAPPING = {"style": "deepObject", "explode": True}  # in the query as metadata[name]=text
LIST_PARAMETERS: list[dict[str, Any]] = [
    {"name": name, "in": "query", "description": schema.pop("description", ""), "schema": schema}
    | (MAPPING if schema.get("type") == "object" else {})
    for name, schema in ListQuery.model_json_schema()["properties"].items()
]


def read_query(fields: Mapping[str, Any]) -> ListQuery:
    """The checked query of a list.

    Raises:
        InvalidRequest: a field is unknown, or its value is invalid.
    """
    with invalid_input_refused():
        return ListQuery(**fields)


def nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields, with names such as ``metadata[job]`` collected in one mapping ``metadata``."""
    result: dict[str, Any] = {}
    for name, value in fields.items():
        if found := NESTED.fullmatch(name):
            inner = result.setdefault(found[1], {})
            if isinstance(inner, dict):
                inner[found[2]] = value
                continue
        elif name not in result:
            result[name] = value
            continue
        raise InvalidRequest(f"{name}: got the field twice, expected it once", name)
    return result


async def check_query(request: Request) -> None:
    """A dependency that refuses unknown and repeated keys of a query, which a route would ignore."""
    route = request.scope["route"]
    parameters = (route.openapi_extra or {}).get("parameters", ())
    known = [field.alias for field in route.dependant.query_params] + [one["name"] for one in parameters]
    mappings = [one["name"] for one in parameters if "style" in one]
    expected = f"one of {', '.join(known)}" if known else "no query"
    seen = set()
    for name, value in request.query_params.multi_items():
        found = NESTED.fullmatch(name)
        if name not in known and not (found and found[1] in mappings):
            raise InvalidRequest(
                f"{name[:80]}: got {value[:80]!r}, expected {expected}, because this key is unknown", name
            )
        if name in seen:
            raise InvalidRequest(f"{name}: got the key twice, expected it once", name)
        seen.add(name)
