"""``cosmos3 serve``: check the deployment file and the checkpoint, start the server, and stop it in good order."""

import os
import signal
import subprocess
import sys
import time

import click

from serve.cli import deploy_file

SEVERAL_MACHINES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's name for a cluster that other machines can join. Elsewhere than on Windows and macOS it is on unless it is set
to 0; then Ray opens its ports on loopback alone."""


@click.command("serve")
@deploy_file.options
def command(change: deploy_file.Change) -> None:
    """Run the server that FILE describes.

    FILE and its checkpoint are checked first. Ctrl-C or SIGTERM stops the server after the running videos. The exit
    status is 0 after a requested stop, and 1 if the server cannot start.
    """
    sys.exit(serve(change))


def serve(change: deploy_file.Change) -> int:
    """Serve until a signal; the exit status."""
    started_at = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM interrupts as Ctrl-C does
    # A process of its own, because PyTorch would stay in the memory of this one.
    check = subprocess.Popen([sys.executable, "-m", "serve", "check", *change.arguments], start_new_session=True)
    try:
        if not os.environ.get("RAY_ADDRESS"):
            os.environ.setdefault(SEVERAL_MACHINES, "0")  # Ray reads it when it is imported
        from serve.cli.launch import serve_until_stopped

        return check.wait() or serve_until_stopped(deploy_file.read(change), started_at)
    except KeyboardInterrupt:
        return 0
    finally:
        check.kill()
        check.wait()
