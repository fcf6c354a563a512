"""``python -m serve``: the command line ``cosmos3``, also where it is not installed."""

from serve.cli.main import main

main(prog_name="cosmos3")
