"""``python -m serve deploy.yaml``: check the file and the checkpoint, start the server, and stop it in good order."""

import argparse
import os
import signal
import subprocess
import sys
import time

from serve.cli import deploy_file

SEVERAL_MACHINES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's name for a cluster that other machines can join. Elsewhere than on Windows and macOS it is on unless it is set
to 0; then Ray opens its ports on loopback alone."""


def main() -> int:
    """Serve until a signal; the exit status is 0 after a stop that was asked for."""
    started_at = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM interrupts as Ctrl-C does
    parser = argparse.ArgumentParser(prog="python -m serve", description=__doc__)
    deploy_file.add_options(parser)
    options = parser.parse_args()
    # A process of its own, because PyTorch would stay in the memory of this one.
    check = subprocess.Popen([sys.executable, "-m", "serve.check", *sys.argv[1:]], start_new_session=True)
    try:
        if not os.environ.get("RAY_ADDRESS"):
            os.environ.setdefault(SEVERAL_MACHINES, "0")  # Ray reads it when it is imported
        from serve.cli.launch import serve_until_stopped

        return check.wait() or serve_until_stopped(deploy_file.read(options), started_at)
    except KeyboardInterrupt:
        return 0
    finally:
        check.kill()


if __name__ == "__main__":
    sys.exit(main())
