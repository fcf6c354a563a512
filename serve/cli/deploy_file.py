"""The deployment file that a command line names, with what the command line changes in it."""

import argparse
import os
from pathlib import Path
from typing import Any

import yaml

DEMO = "demo"
BUILDER = "serve.app.build_app"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path)
    parser.add_argument("--port", type=int, help="of HTTP, in place of the one in the file")
    parser.add_argument("--checkpoint", help="a folder, or demo, in place of the one in the file")


def read(options: argparse.Namespace) -> str:
    """The file as YAML. Where it is too wrong to be changed it stays as it is, and the check says why."""
    text: str = options.file.read_text()
    try:
        config = yaml.safe_load(text)
        _change(config, options)
    except (yaml.YAMLError, AttributeError, KeyError, TypeError):
        return text
    return yaml.safe_dump(config, sort_keys=False)


def _change(config: dict[str, Any], options: argparse.Namespace) -> None:
    if options.port is not None:
        config["http_options"] = (config.get("http_options") or {}) | {"port": options.port}
    if options.checkpoint is not None:
        for application in filter(lambda application: is_ours(application["import_path"]), config["applications"]):
            application["args"] = (application.get("args") or {}) | {"checkpoint": _folder(options.checkpoint)}


def is_ours(import_path: str) -> bool:
    """Whether an application is this project's, in either of the forms in which Serve takes its path."""
    return import_path.replace(":", ".") == BUILDER


def _folder(checkpoint: str) -> str:
    """On a command line a path may be relative."""
    return checkpoint if checkpoint == DEMO else os.path.abspath(os.path.expanduser(checkpoint))
