"""How many lines of log a number of small jobs leave, by level, on a server of its own, and what the warnings say.

python -m benchmarks.log_lines
"""

import argparse
import json
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from benchmarks.server import COLOUR, TINIEST, server, wait_until

LEVEL = re.compile(r"\b(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200, help="to make (%(default)s)")
    parser.add_argument("--port", type=int, default=8128, help="port of the server (%(default)s)")
    args = parser.parse_args()
    every_line = {"RAY_DEDUP_LOGS": "0"}
    with (
        tempfile.TemporaryDirectory() as folder,
        server(Path(folder), args.port, environment=every_line) as started,
        httpx.Client(base_url=started.url, timeout=60) as client,
    ):
        before = len(_lines(started.log))
        ids = [client.post("/v1/videos", json=TINIEST).raise_for_status().json()["id"] for _ in range(args.jobs)]
        wait_until(lambda: client.get(f"/v1/videos/{ids[-1]}").json()["status"] == "completed", 600, period_s=1)
        lines = _lines(started.log)[before:]
    print(json.dumps({"jobs": args.jobs} | counted(lines)))


def counted(lines: list[str]) -> dict[str, Any]:
    levels = [found[1] if (found := LEVEL.search(line)) else "other" for line in lines]
    loud = [line for line, level in zip(lines, levels, strict=True) if level != "INFO"]
    return {"lines": len(lines), "levels": dict(Counter(levels)), "not INFO": loud[:5]}


def _lines(log: Path) -> list[str]:
    return [line for line in COLOUR.sub("", log.read_text(errors="replace")).splitlines() if line.strip()]


if __name__ == "__main__":
    main()
