"""``cosmos3 batch``: make the videos of a file on a server."""

import re
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from serve.cli.options import server_options
from serve.client import batch
from serve.client.batch import InvalidBatch, Options, Report, Summary
from serve.client.videos import RemoteError

if TYPE_CHECKING:
    from typing import Never

INCOMPLETE, INVALID = 1, 2
BAR = "{n_fmt} of {total_fmt} |{bar}| {elapsed}{postfix}"
LINE_PERIOD_S = 10.0  # between two lines of progress where there is no terminal
HOUR_S = 3600.0
SEEDS = re.compile(r" *([0-9]{1,10})(?:-([0-9]{1,10}))? *")
MAX_SEEDS = 100_000


class Seeds(click.ParamType[tuple[int, ...]]):
    """Numbers and ranges of numbers, such as 1,2,10-19."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Return all the numbers."""
        if isinstance(value, tuple):
            return value
        parts = [SEEDS.fullmatch(part) for part in str(value).split(",")]
        ranges = [range(int(part[1]), int(part[2] or part[1]) + 1) for part in parts if part]
        if not all(parts) or not all(ranges) or sum(map(len, ranges)) > MAX_SEEDS:
            self.fail(f"got {value!r}, expected up to {MAX_SEEDS} numbers, such as 1,2,10-19", param, ctx)
        return tuple(seed for one in ranges for seed in one)


@click.command("batch")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--out", required=True, help="Folder for the videos, or any URL that fsspec supports.")
@server_options
@click.option("--repeat", type=click.IntRange(1), default=1, show_default=True, help="Videos of each line.")
@click.option("--seeds", type=Seeds(), default=(), help="Of each line one video with each seed, such as 1,2,10-19.")
@click.option("--shuffle", is_flag=True, help="Make the videos in a random order.")
@click.option(
    "--max-failures", type=click.IntRange(0), default=10, show_default=True, help="End after more than these."
)
def command(file: Path, out: str, url: str, api_key: str | None, **given: Any) -> None:
    """Make the videos of FILE, which has one JSON request a line, on a server.

    FILE is checked as a whole before anything is made. Stop or kill it at any time and run it again: it goes on where
    it was, also on another machine. The exit status is 0 if all videos are there, 1 if some are missing, 2 if nothing
    was started because something is invalid, and 130 after Ctrl-C.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM interrupts as Ctrl-C does
    report = Progress(file, sys.stderr.isatty())
    try:
        summary = batch.run(file, out, url, api_key, Options(**given), report)
    except InvalidBatch as error:
        report.end(f"error: {error}", INVALID)
    except (RemoteError, OSError) as error:
        report.end(f"error: {error}; run the command again to go on", INCOMPLETE)
    except KeyboardInterrupt:
        report.note("stopped; run the command again to go on")
        raise
    else:
        report.finish(summary, out)


class Progress(Report):
    """What a user sees: a bar on a terminal, or a line every few seconds."""

    def __init__(self, file: Path, terminal: bool) -> None:
        self._file, self._terminal = file, terminal
        self._bar: tqdm[Never] | None = None
        self._total = self._found = self._made = 0
        self._start = self._shown_at = time.monotonic()

    def invalid(self, line: int, problem: str) -> None:
        """Print the place and the problem, in the form in which editors know it."""
        self.note(f"{self._file}:{line}: {problem}")

    def note(self, text: str) -> None:
        """Print a line."""
        tqdm.write(text, file=sys.stderr)

    def begins(self, total: int, found: int) -> None:
        """Start the bar."""
        self._total, self._found = total, found
        self._start = self._shown_at = time.monotonic()
        self.note(f"{total} videos, {found} of them there already")
        if self._terminal:
            self._bar = tqdm(total=total, initial=found, bar_format=BAR)

    def made(self, saved: dict[str, Any]) -> None:  # noqa: ARG002
        """Show how far it is and how fast."""
        self._made += 1
        now = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(self._pace(now), refresh=False)
            self._bar.update()
        elif self._made == 1 or now - self._shown_at >= LINE_PERIOD_S:
            self._shown_at = now
            self.note(f"{self._found + self._made} of {self._total} videos, {self._pace(now)}")

    def failed(self, name: str, line: int, problem: str) -> None:
        """Print what failed and why."""
        self.note(f"{self._file}:{line}: {name} failed: {problem}")

    def end(self, text: str, status: int) -> "Never":
        """Print the last line and end the program."""
        self._close()
        self.note(text)
        sys.exit(status)

    def finish(self, summary: Summary, out: str) -> None:
        """Print the summary and end the program."""
        self._close()
        there = summary.found + summary.made
        rate = f" ({summary.made / summary.seconds * HOUR_S:.0f} videos/hour)" if summary.made else ""
        counts = f"{summary.found} were there, {summary.made} made, {summary.failed} failed"
        took = tqdm.format_interval(summary.seconds)
        sys.stdout.write(f"{there} of {summary.total} videos are in {out}: {counts} in {took}{rate}\n")
        sys.exit(0 if summary.complete else INCOMPLETE)

    def _pace(self, now: float) -> str:
        per_hour = self._made / max(now - self._start, 1e-9) * HOUR_S
        left_s = (self._total - self._found - self._made) / per_hour * HOUR_S
        return f"{per_hour:.0f} videos/hour, {tqdm.format_interval(left_s)} left"

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
