"""Find what would not start in a deployment file, and misspelt keys, which Ray Serve ignores."""

import typing
from collections.abc import Callable, Iterator
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ray.serve.schema import ServeDeploySchema

from cosmos3_models.checkpoint.folder import Checkpoint
from serve.app import AppArgs
from serve.cli.deploy_file import is_ours

SECRET = ("api_keys", "database_url", "guard", "prompt_upsampler")


Show = Callable[[AppArgs, Checkpoint], None]


def problems(text: str, show: Show | None = None) -> list[str]:
    """Find unknown keys, values that Ray Serve or ``AppArgs`` refuse, and errors of the checkpoint; one line each.

    Args:
        text: a deployment file.
        show: called with the arguments and the checkpoint of each application that has no problem.
    """
    try:
        config = yaml.safe_load(text)
        if not isinstance(config, dict):
            return [f"got a YAML {type(config).__name__}, expected a mapping"]
        found = list(_unknown_keys(config, ServeDeploySchema, ""))
        ServeDeploySchema.model_validate(config)
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    except ValidationError as error:
        return found + [f"{'.'.join(map(str, e['loc']))}: got {e['input']!r}, {e['msg']}" for e in error.errors()]
    ours = [application for application in config["applications"] if is_ours(application["import_path"])]
    return found + [
        problem for application in ours for problem in argument_problems(application.get("args") or {}, show)
    ]


def argument_problems(args: dict[str, Any], show: Show | None = None) -> list[str]:
    """Find values that ``AppArgs`` refuses and errors of the checkpoint; see ``problems``."""
    try:
        given = AppArgs.model_validate(args)
        given.access()
        if given.guard is not None:
            given.guard.guard_class()
        given.job_settings()
        if given.prompt_upsampler is not None:
            given.prompt_upsampler.key()
        return _checkpoint_problems(given, show)
    except ValidationError as error:
        return [_line(found) for found in error.errors()]
    except ValueError as error:
        return [str(error)]


def _checkpoint_problems(args: AppArgs, show: Show | None) -> list[str]:
    """Read configs, text tokenizer and the headers of the weights: why the stages could not load the checkpoint.

    Raises:
        CheckpointError: the files cannot be downloaded.
        InvalidInput: the denoiser's GPUs could not share the model.
    """
    # Here, because it imports PyTorch, and an invalid argument is found without it.
    from cosmos3_models.checkpoint.inspection import checkpoint_problems, headers_of
    from cosmos3_models.parallel.world import check_world

    with headers_of(args.checkpoint) as folder:
        if not (found := checkpoint_problems(folder)):
            checkpoint = Checkpoint.open(folder)
            check_world(args.gpus_per_denoiser, checkpoint.transformer)
            if show is not None:
                show(args, checkpoint)
        return [str(error).replace(str(folder), args.checkpoint) for error in found]


def _line(found: ErrorDetails) -> str:
    """One line for a problem, with the value unless it may be a secret."""
    name = str(found["loc"][0]) if found["loc"] else ""
    secret = name in SECRET or name not in AppArgs.model_fields
    got = "" if secret else f"got {found['input']!r}, "
    return f"{'.'.join(map(str, found['loc']))}: {got}{found['msg'].removeprefix('Value error, ')}"


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
