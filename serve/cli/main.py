"""The command line ``cosmos3``. A command's module is imported when it is called: ``serve`` must start at once."""

import importlib
from typing import Any

import click

INTERRUPTED = 130  # what a shell reports of a program that Ctrl-C ended

COMMANDS = ("serve", "generate", "submit", "batch", "check")


class Commands(click.Group):
    """The commands, each of which is ``command`` in a module of its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"serve.cli.{cmd_name}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. Ctrl-C ends it with a shell's status, where click's own would be 1, that of an error."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


@click.command("cosmos3", cls=Commands)
def main() -> None:
    """Generate videos with Cosmos3: run a server, ask one for a video or many, or make one in this process."""
