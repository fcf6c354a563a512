"""A reader's process that misbehaves in the way that the file's content names."""

import importlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cosmos3_models.media import reader_process
from cosmos3_models.media.reader_process import run, send

SIZE = [8, 8]


def eat_memory() -> None:
    eaten = []
    while True:
        eaten.append(np.ones(2**24))


def spend_time() -> None:
    while True:
        pass


def sleep() -> None:
    send({"size": SIZE}, bytes(192))
    time.sleep(3600)


def open_files() -> None:
    here, new = Path(__file__), Path("new")
    for attempt in (here.read_bytes, new.touch, socket.socket, lambda: importlib.import_module("sqlite3")):
        try:
            attempt()
        except (OSError, ImportError):
            continue
        send({"info": ["image", 1, 1, 1]})  # would be a good answer


def write(data: bytes) -> Callable[[], None]:
    def action() -> None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    return action


def framed(message: object) -> bytes:
    body = json.dumps(message).encode()
    return len(body).to_bytes(4) + body


FAULTS: dict[str, Callable[[], None]] = {
    "eat memory": eat_memory,
    "spend time": spend_time,
    "sleep": sleep,
    "open files": open_files,
    "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(0),
    "raise": lambda: [][0],
    "garbage": write(b"\x80\x04\x95 garbage"),
    "long message": write(b"\x7f\xff\xff\xff"),
    "no json": write((3).to_bytes(4) + b"{{{"),
    "deep json": write((4000).to_bytes(4) + b"[" * 4000),
    "a list": write(framed([1])),
    "wrong types": write(framed({"info": ["image", "1", 1, 1]})),
    "wrong frame types": write(framed({"size": ["8", 8]})),
    "wrong kind": write(framed({"info": ["sound", 1, 1, 1]})),
    "huge frame": write(framed({"size": [100_000, 100_000]})),
    "negative frame": write(framed({"size": [-8, -8]})),
    "half a frame": write(framed({"size": SIZE}) + bytes(100)),
    "odd refusal": write(framed({"refused": ["got", "expected", 3]})),
}


def misbehave(file: BinaryIO) -> None:
    FAULTS[file.read().decode()]()


if __name__ == "__main__":
    if sys.argv[2:3] == ["inspect"] and sys.stdin.buffer.peek().startswith(b"never"):
        sys.exit("no start")
    reader_process.PARENT_CHECK_S = 0.1
    if sys.stdin.buffer.peek().startswith(b"spend"):
        reader_process.CPU_SECONDS = 1
    if sys.stdin.buffer.peek().startswith(b"eat"):
        reader_process.MEMORY_BYTES = 2**30
    assert threading.active_count() == 1
    run(int(sys.argv[1]), misbehave)
