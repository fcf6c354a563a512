"""The command line ``cosmos3``. A command's module is imported when it is called: ``serve`` must start at once."""

import importlib

import click

COMMANDS = ("serve", "generate", "submit", "check")


class Commands(click.Group):
    """The commands, each of which is ``command`` in a module of its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"serve.cli.{cmd_name}").command
        return command


@click.command("cosmos3", cls=Commands)
def main() -> None:
    """Generate videos with Cosmos3: run a server, ask one for a video, or make one in this process."""
