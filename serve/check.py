"""``python -m serve.check deploy.yaml``: refuse a misspelt key, which Ray Serve itself would ignore."""

import argparse
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.schema import ServeDeploySchema

from serve.app import AppArgs


def problems(text: str) -> list[str]:
    """What is wrong with a deploy.yaml: unknown keys anywhere, and values that Ray Serve or ``AppArgs`` refuse."""
    try:
        config = yaml.safe_load(text)
        if not isinstance(config, dict):
            return [f"got a YAML {type(config).__name__}, expected a mapping"]
        found = list(_unknown_keys(config, ServeDeploySchema, ""))
        ServeDeploySchema.model_validate(config)
        for application in config["applications"]:
            AppArgs.model_validate(application.get("args") or {})
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    except ValidationError as error:
        return found + [
            f"{'.'.join(map(str, e['loc']))}: got {e['input']!r}, {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        ]
    return found


def _unknown_keys(data: dict[str, Any], model: type[BaseModel], where: str) -> Iterator[str]:
    for key, value in data.items():
        if key not in model.model_fields:
            yield f"{where}{key}: unknown key, expected one of {', '.join(model.model_fields)}"
            continue
        nested = _model_within(model.model_fields[key].annotation)
        for child in value if isinstance(value, list) else [value]:
            if nested is not None and isinstance(child, dict):
                yield from _unknown_keys(child, nested, f"{where}{key}.")


def _model_within(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model inside a field's type, such as that of ``Optional[list[Model]]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    models = (_model_within(part) for part in typing.get_args(annotation))
    return next((model for model in models if model is not None), None)


def main() -> int:
    """Print the problems of the file; the exit status is 1 if there are some."""
    parser = argparse.ArgumentParser(prog="python -m serve.check", description=__doc__)
    parser.add_argument("file", type=Path)
    path = parser.parse_args().file
    found = problems(path.read_text())
    for problem in found:
        sys.stderr.write(f"{path}: {problem}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
