"""``cosmos3 check``: what is wrong with a deployment file."""

import sys

import click

from serve.cli import deploy_file


@click.command("check")
@deploy_file.options
def command(change: deploy_file.Change) -> None:
    """Check a deployment file and its checkpoint.

    The exit status is 1 if the server would not start, or if FILE has unknown keys, which Ray Serve would ignore. Only
    the headers of the weights are read.
    """
    from serve.check import problems  # brings Ray

    found = problems(deploy_file.read(change))
    for problem in found:
        click.echo(f"{change.file}: {problem}", err=True)
    sys.exit(1 if found else 0)
