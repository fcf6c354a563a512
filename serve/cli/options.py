"""The command lines' options for the fields of a request, derived from their declaration."""

import functools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import click

from serve.schema import VideoRequest

ARGUMENT = "prompt"
KEY_VARIABLE = "COSMOS3_API_KEY"
SHORT = {"generate_sound": ["--sound"]}
KINDS = {"integer": click.INT, "number": click.FLOAT, "string": click.STRING, "array": click.STRING}

out_option = click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="The mp4 to write, or a picture of one frame, in a folder that exists.",
)


def preview_file(out: Path) -> Path:
    """Where the newest preview of the video ``out`` is written, as long as there is no video."""
    return out.with_suffix(".preview.jpg")


def reference_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command with ``--image`` and ``--video``; it gets the file of one of them, or None, as ``reference``.

    The options differ in name alone: the content of the file tells what it is.
    """

    @functools.wraps(command)
    def with_reference(image: Path | None, video: Path | None, **given: Any) -> Any:
        if image is not None and video is not None:
            raise click.UsageError("got --image and --video, expected one of them: a video starts from one file")
        return command(reference=image or video, **given)

    decorated: Callable[..., Any] = with_reference
    file = click.Path(path_type=Path, exists=True, dir_okay=False)
    for kind, what in (("video", "clip"), ("image", "picture")):
        decorated = click.option(f"--{kind}", type=file, help=f"The {what} that the video starts from.")(decorated)
    return decorated


def server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command with ``--url`` and ``--api-key`` of a server."""
    of_key = f"API key; {KEY_VARIABLE} is safer, since process lists omit it."
    with_key = click.option("--api-key", envvar=KEY_VARIABLE, help=of_key)(command)
    of_url = "URL of the server."
    return click.option("--url", default="http://127.0.0.1:8000", show_default=True, help=of_url)(with_key)


def request_options(without: Collection[str] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a command with PROMPT and an option for each other field that has a single value.

    The command gets the given fields, not yet checked, as ``fields``.
    """
    properties = VideoRequest.model_json_schema()["properties"]
    schemas = {name: _given(schema) for name, schema in properties.items() if name not in (ARGUMENT, *without)}
    options = {name: schema for name, schema in schemas.items() if schema["type"] != "object"}

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_fields(**given: Any) -> Any:
            values = {name: given.pop(name) for name in (ARGUMENT, *options)}
            return command(fields={name: value for name, value in values.items() if value is not None}, **given)

        decorated: Callable[..., Any] = with_fields
        for name, schema in reversed(options.items()):
            decorated = _option(name, schema)(decorated)
        return click.argument(ARGUMENT)(decorated)

    return decorate


def _given(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a field's value where it is given, with the field's description."""
    return schema | schema.get("anyOf", [schema])[0]


def _option(name: str, schema: dict[str, Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    flag, description = f"--{name.replace('_', '-')}", schema["description"]
    description = description[:1].upper() + description[1:]
    if schema["type"] == "boolean":
        return click.option(name, f"{flag}/--no-{flag[2:]}", *SHORT.get(name, []), default=None, help=f"{description}.")
    if "maximum" in schema:
        description += f" ({schema['minimum']} to {schema['maximum']})"
    kind = click.Choice([_as_text(choice) for choice in schema["enum"]]) if "enum" in schema else KINDS[schema["type"]]
    return click.option(name, flag, type=kind, help=f"{description}.")


def _as_text(choice: str | bool) -> str:
    return choice if isinstance(choice, str) else str(choice).lower()
