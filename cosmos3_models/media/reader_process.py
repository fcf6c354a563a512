"""The process that reads one foreign file: ``python -m cosmos3_models.media.reader_process``.

The file is its standard input. It writes messages to its standard output: four bytes with a length, then JSON. Each
message with ``size`` is followed by the pixels of one frame. Once its limits are in place, it cannot open anything.

    {"ready": true}                       first, before the file is touched
    {"size": [height, width]} + pixels    each frame of ``frames``
    {"info": [kind, width, height, n]}    the result of ``inspect``
    {"done": true}                        all frames are written
    {"refused": [got, expected, why]}     the fields of an InvalidInput
"""

import contextlib
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import astuple
from typing import Any, BinaryIO, Literal

from cosmos3_models.errors import InvalidInput
from cosmos3_models.media.limits import CPU_SECONDS, MEMORY_BYTES
from cosmos3_models.media.reading import frames_of_file, inspect_file

LENGTH_BYTES = 4
PARENT_CHECK_S = 0.5

Action = Callable[[BinaryIO], None]


def send(message: dict[str, Any], pixels: bytes | memoryview = b"") -> None:
    """Write a message, and the pixels that belong to it."""
    body = json.dumps(message).encode()
    sys.stdout.buffer.write(len(body).to_bytes(LENGTH_BYTES) + body)
    sys.stdout.buffer.write(pixels)
    sys.stdout.buffer.flush()


def send_info(file: BinaryIO) -> None:
    """Write what the file holds."""
    send({"info": astuple(inspect_file(file))})


def send_frames(file: BinaryIO, count: int, keep: Literal["first", "last"]) -> None:
    """Write the first or last frames of the file."""
    for frame in frames_of_file(file, count, keep):
        send({"size": frame.shape[1:3]}, frame.data)
    send({"done": True})


def give_up_rights() -> None:
    """Limit memory and CPU time, and open no file from now on."""
    limits = {
        resource.RLIMIT_AS: (MEMORY_BYTES, MEMORY_BYTES),
        # The first one ends the process with a signal of its own, the second with SIGKILL.
        resource.RLIMIT_CPU: (CPU_SECONDS, CPU_SECONDS + 1),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_NOFILE: (0, 0),
    }
    for name, limit in limits.items():
        # macOS has no limit on address space.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(name, limit)


def end_with(parent: int) -> None:
    """End this process soon after its parent has ended."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os._exit(1)


def run(parent: int, action: Action) -> None:
    """Read the file on standard input with limits in place, and write the result or the refusal."""
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    give_up_rights()
    send({"ready": True})
    try:
        action(sys.stdin.buffer)
    except InvalidInput as error:
        send({"refused": [str(error.got), error.expected, error.why]})


def action_of(arguments: list[str]) -> Action:
    """The action of a command line: ``inspect``, or ``frames COUNT first|last``."""
    if arguments == ["inspect"]:
        return send_info
    _, count, keep = arguments
    return lambda file: send_frames(file, int(count), "last" if keep == "last" else "first")


if __name__ == "__main__":
    run(int(sys.argv[1]), action_of(sys.argv[2:]))
