"""What the OpenAPI document says beyond what FastAPI finds out by itself: bodies, files, errors."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from serve.graph.artifacts import MAIN, MEDIA_TYPES
from serve.http.body import FORM_TYPES, JSON_TYPE
from serve.inputs.reference import FIELD
from serve.schema import VideoRequest

Responses = dict[int | str, dict[str, Any]]

FILE = {"type": "string", "format": "binary"}
VIDEO_ID = {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}


def request_schema(
    model: type[BaseModel], file_field: str | None = None, **fields: dict[str, Any] | None
) -> dict[str, Any]:
    """What the document says of a route's body.

    Args:
        file_field: may be a file in a multipart form.
        fields: further required ones; None removes one.
    """
    schema = model.model_json_schema()
    properties = {name: field for name, field in (schema["properties"] | fields).items() if field is not None}
    required = [*schema.get("required", ()), *(name for name, field in fields.items() if field is not None)]
    schema |= {"properties": properties, "required": required}
    forms = {kind: {"schema": schema} for kind in (JSON_TYPE, *FORM_TYPES)}
    if file_field is not None:
        either = {"anyOf": [FILE, properties[file_field]]}
        forms[FORM_TYPES[0]] = {"schema": schema | {"properties": properties | {file_field: either}}}
    return {"requestBody": {"required": True, "content": forms}}


REQUEST_SCHEMA = request_schema(VideoRequest, FIELD)
REMIX_SCHEMA = REQUEST_SCHEMA
SYNC_SCHEMA = request_schema(VideoRequest, FIELD, webhook_url=None)
EXTENSION_SCHEMA = request_schema(VideoRequest, "video", video=VIDEO_ID, input_reference=None)
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
