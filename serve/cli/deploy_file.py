"""The deployment file that a command line names, and what the command line changes in it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import yaml

BUILDER = "serve.app.build_app"


class Change(NamedTuple):
    """A deployment file, and values that stand for those in it.

    Attributes:
        port: of HTTP.
        checkpoint: a folder, also a relative one, a model on the Hugging Face Hub, or ``demo``.
    """

    file: Path
    port: int | None = None
    checkpoint: str | None = None

    @property
    def arguments(self) -> list[str]:
        """The same as arguments of a command line."""
        given = {"--port": self.port, "--checkpoint": self.checkpoint}
        options = [f"{name}={value}" for name, value in given.items() if value is not None]
        return [*options, "--", str(self.file)]


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command with FILE, --port and --checkpoint, which it gets as one ``change``."""

    @click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
    @click.option("--port", type=int, help="HTTP port, instead of the one in the file.")
    @click.option("--checkpoint", help="Folder, owner/name on the Hub, or demo, instead of the one in the file.")
    def with_options(file: Path, port: int | None, checkpoint: str | None) -> Any:
        return command(Change(file, port, checkpoint))

    with_options.__doc__ = command.__doc__
    return with_options


def read(change: Change) -> str:
    """The changed file as YAML. A file that is too wrong to be changed stays as it is, and the check says why."""
    text = change.file.read_text()
    try:
        config = yaml.safe_load(text)
        _apply(change, config)
    except (yaml.YAMLError, AttributeError, KeyError, TypeError):
        return text
    return yaml.safe_dump(config, sort_keys=False)


def _apply(change: Change, config: dict[str, Any]) -> None:
    if change.port is not None:
        config["http_options"] = (config.get("http_options") or {}) | {"port": change.port}
    if change.checkpoint is not None:
        for application in filter(lambda application: is_ours(application["import_path"]), config["applications"]):
            application["args"] = (application.get("args") or {}) | {"checkpoint": absolute(change.checkpoint)}


def is_ours(import_path: str) -> bool:
    """Whether an application is this project's, in either of the forms in which Serve takes its path."""
    return import_path.replace(":", ".") == BUILDER


def absolute(checkpoint: str) -> str:
    """The absolute form of a checkpoint on a command line, where a folder's path may be relative."""
    from cosmos3_models.checkpoint.folder import DEMO, hub_name  # here, because ``serve`` must start at once

    if checkpoint == DEMO or hub_name(checkpoint):
        return checkpoint
    return os.path.abspath(os.path.expanduser(checkpoint))
