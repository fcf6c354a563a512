"""``cosmos3 check``: what is wrong with a deployment file or a checkpoint, and what a checkpoint needs."""

import sys
from functools import partial
from pathlib import Path

import click

from cosmos3_models.resources.cards import CARDS
from serve.cli import deploy_file

YAML = (".yaml", ".yml")


@click.command("check")
@click.argument("target")
@click.option("--gpu", type=click.Choice(list(CARDS)), help="Report memory and time on this card.")
@click.option("--port", type=int, help="HTTP port, instead of the one in the file.")
@click.option("--checkpoint", help="Folder, owner/name on the Hub, or demo, instead of the one in the file.")
def command(target: str, gpu: str | None, port: int | None, checkpoint: str | None) -> None:
    """Check TARGET: a deployment file and its checkpoint, or a checkpoint.

    TARGET is a deployment file if it is a file or its name ends in .yaml or .yml. Otherwise it is a checkpoint: demo, a
    folder, or owner/name, perhaps with @revision, of a model on the Hugging Face Hub. The exit status is 1 if the
    server would not start, or if the file has unknown keys, which Ray Serve would ignore.

    Only configs and the headers of the weights are read, of a model on the Hub as well. Without problems, memory and
    time are reported: for a checkpoint on all known cards, for a deployment file on the one of --gpu.
    """
    if Path(target).is_file() or target.endswith(YAML):
        found = _file_problems(deploy_file.Change(Path(target), port, checkpoint), gpu)
        _exit([f"{target}: {problem}" for problem in found])
    for option, value in (("--port", port), ("--checkpoint", checkpoint)):
        if value is not None:
            raise click.UsageError(f"{option} changes a deployment file, and {target} is none.")
    _exit(_checkpoint_problems(target, gpu))


def _file_problems(change: deploy_file.Change, gpu: str | None) -> list[str]:
    if not change.file.is_file():
        return ["no such file"]
    from serve.check import problems  # brings Ray
    from serve.cli.report import print_report

    return problems(deploy_file.read(change), None if gpu is None else partial(print_report, gpu=gpu))


def _checkpoint_problems(target: str, gpu: str | None) -> list[str]:
    from serve.check import argument_problems  # brings Ray
    from serve.cli.report import print_report

    arguments = {"checkpoint": deploy_file.absolute(target)}
    return argument_problems(arguments, partial(print_report, gpu=gpu))


def _exit(problems: list[str]) -> None:
    for problem in problems:
        click.echo(problem, err=True)
    sys.exit(1 if problems else 0)
