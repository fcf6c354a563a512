"""What the OpenAPI document says beyond what FastAPI finds out by itself: bodies, files, errors."""

from typing import Any

from fastapi import FastAPI

from serve.graph.artifacts import MAIN, MEDIA_TYPES
from serve.http.body import FORM_TYPES, JSON_TYPE
from serve.schema import VideoRequest

Responses = dict[int | str, dict[str, Any]]

REQUEST_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": VideoRequest.model_json_schema()} for kind in (JSON_TYPE, *FORM_TYPES)},
    }
}
FIELDS_OF_ERRORS: dict[str, dict[str, Any]] = {
    "message": {"type": "string"},
    "type": {"type": "string"},
    "param": {"type": ["string", "null"]},
    "code": {"type": "string"},
}
ERROR: dict[str, Any] = {
    "description": "An error.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error"],
                "properties": {
                    "error": {"type": "object", "required": [*FIELDS_OF_ERRORS], "properties": FIELDS_OF_ERRORS}
                },
            }
        }
    },
}
MADE: Responses = {
    200: {"content": {MEDIA_TYPES[name]: {} for name in MAIN}, "description": "The finished video, or the image."}
}
FILES: Responses = {
    status: {"content": {kind: {} for kind in sorted(set(MEDIA_TYPES.values()))}, "description": description}
    for status, description in ((200, "The file."), (206, "A range of the file."))
}
FILES[304] = {"description": "The client has this file already."}


def errors(*statuses: int) -> Responses:
    """The answers of a route that can fail with these statuses."""
    return {status: ERROR for status in statuses}


def describe(api: FastAPI) -> None:
    """Let the document promise the answers that any route can give, and not FastAPI's 422, which none does."""
    generate = api.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation["responses"].pop("422", None)
                statuses = (400, 403, 421, 500) if path.startswith("/v1/") else (403, 421, 500)
                for status in statuses:
                    operation["responses"].setdefault(str(status), ERROR)
        schemas = document["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        return document

    api.openapi = openapi  # type: ignore[method-assign]
